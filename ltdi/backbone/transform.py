"""From images of any size to a backbone's input."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.errors import InputError, check

# Fields that the first files did not have: at these values they are left out of `fields`.
_LATER: dict[str, Any] = {"interpolation": "bilinear", "flip": False, "wiggle": False}


@dataclass(frozen=True)
class InputTransform:
    """From images of any size to a backbone's input.

    Attributes:
        size: Side of the square input in pixels.
        channels: 1 (grey) or 3 (RGB).
        polarity: "ink" makes strokes 1 and paper 0, whichever of the two is dark: the border of
            an image is taken for paper. "keep" leaves values as they are.
        mean: Subtracted per channel, after scaling to [0, 1].
        std: Divided by, per channel.
        interpolation: "bilinear" or "bicubic", how images of another size are resized; both are
            antialiased, and bicubic is clamped to the range of pixels.
        flip: Whether an image is seen twice, as it is and mirrored, and its features averaged.
        wiggle: Whether it is seen in eight further views that differ a little, likewise; see
            `ltdi.backbone.augment.wiggle`.
    """

    size: int = 28
    channels: int = 1
    polarity: str = "ink"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"
    flip: bool = False
    wiggle: bool = False

    def __post_init__(self) -> None:
        names = {"polarity": ("ink", "keep"), "interpolation": ("bilinear", "bicubic")}
        check("transform", self, known=names, ranges={"size": (1, math.inf)})

    def __call__(self, images: Tensor, *, first: int = 0) -> Tensor:
        """Transform.

        Args:
            images: [n, 1 or 3, height, width]; uint8 in 0..255 or floating point in 0..1.
            first: Number of the first image, for messages.

        Returns:
            float32 [n, channels, size, size].

        Raises:
            InputError: For another shape, size, dtype or range, and for NaN.
        """
        x = _as_float(images, first)
        if x.shape[1] != self.channels:
            x = _to_grey(x) if self.channels == 1 else x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode=self.interpolation, antialias=True)
            # Bicubic interpolation overshoots at edges.
            x = x.clamp(0, 1) if self.interpolation == "bicubic" else x
        if self.polarity == "ink":
            border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
            light = border.mean((1, 2)) > 0.5
            x = torch.where(light[:, None, None, None], 1 - x, x)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    @property
    def fields(self) -> dict[str, Any]:
        """What a backbone's fingerprint covers: equal for a file with and without later fields."""
        return {k: v for k, v in asdict(self).items() if k not in _LATER or v != _LATER[k]}


def _as_float(images: Tensor, first: int) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(
            f"images must have shape [n, 1 or 3, height, width], got {list(images.shape)}",
            where="images",
            fix="add the missing dimensions, or convert to grey or RGB",
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise InputError(
            f"images must be uint8 (0..255) or floating point (0..1), got {images.dtype}",
            where="images",
            fix="convert with .to(torch.uint8) or .float() / 255",
        )
    if not bool(images.isfinite().all()):
        bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(
            f"image {first + bad} has NaN or infinite pixels",
            where="images",
            fix="repair or drop it",
        )
    low, high = float(images.min()), float(images.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(
            f"floating-point pixels must lie in 0..1, these lie in {low:.3g}..{high:.3g}",
            where="images",
            fix="divide by 255, or undo the normalisation: the backbone brings its own",
        )
    return images.float()


def _to_grey(x: Tensor) -> Tensor:
    """ITU-R 601 luma, as PIL's mode L."""
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
