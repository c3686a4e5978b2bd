"""The trained network as a whole: support encoder and denoiser."""

from __future__ import annotations

from torch import Tensor, nn

from ltdi.weights import WeightSpace


class ConditionalDenoiser(nn.Module):
    """f_phi(x_t, t, c) with c embedded from the support by `encoder`.

    Args:
        encoder: `(support, mask) -> Condition`.
        denoiser: `(x, t, condition, space) -> [B, n]`.
    """

    def __init__(self, encoder: nn.Module, denoiser: nn.Module) -> None:
        super().__init__()
        self.encoder, self.denoiser = encoder, denoiser

    def forward(
        self, x: Tensor, t: Tensor, support: Tensor, mask: Tensor, space: WeightSpace
    ) -> Tensor:
        """Denoise x [B, n] at t [B], given support [B, way, shot, D] and mask [B, way, shot]."""
        out: Tensor = self.denoiser(x, t, self.encoder(support, mask), space)
        return out
