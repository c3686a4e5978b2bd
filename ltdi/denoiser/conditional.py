"""The trained network as a whole, and what it is told."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ltdi.weights import WeightSpace


@dataclass(frozen=True)
class Guide:
    """What a denoiser may know besides x_t, t and the support.

    Attributes:
        anchor: [B, n] weights that residuals are added to, in the coordinates of the support.
        between: [B, D] variance of class means along each coordinate (`Frame.between`).
        signal: [B] share of the target in x_t.
        stage: [B] i/k of the local target that is asked for.
    """

    anchor: Tensor
    between: Tensor
    signal: Tensor
    stage: Tensor


class Network(nn.Module):
    """What training and generation need of a network of heads: f_phi(x_t, t, c)."""

    def standardise(self, features: Tensor) -> None:
        """Fit what the network keeps of the training features [..., D]: nothing, here."""

    @abstractmethod
    def encode(self, support: Tensor, mask: Tensor) -> Any:
        """What can be worked out once per task, from support [B, way, shot, D] and its mask."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, code: Any, space: WeightSpace, guide: Guide) -> Tensor:
        """Denoise x [B, n] at t [B]."""

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        support: Tensor,
        mask: Tensor,
        space: WeightSpace,
        guide: Guide,
    ) -> Tensor:
        """Denoise x [B, n] at t [B], given support [B, way, shot, D] and mask [B, way, shot]."""
        return self.denoise(x, t, self.encode(support, mask), space, guide)


class ConditionalDenoiser(Network):
    """f_phi with c embedded from the support by an encoder; no guide is read.

    These are `(support, mask) -> Condition` and `(x, t, condition, space) -> [B, n]`.
    """

    def __init__(self, encoder: nn.Module, denoiser: nn.Module) -> None:
        super().__init__()
        self.encoder, self.denoiser = encoder, denoiser

    def standardise(self, features: Tensor) -> None:
        """See `Network.standardise`."""
        self.encoder.standardise(features)  # type: ignore[operator]

    def encode(self, support: Tensor, mask: Tensor) -> Any:
        """See `Network.encode`."""
        return self.encoder(support, mask)

    def denoise(self, x: Tensor, t: Tensor, code: Any, space: WeightSpace, guide: Guide) -> Tensor:
        """See `Network.denoise`."""
        out: Tensor = self.denoiser(x, t, code, space)
        return out
