"""Random changes of a batch of images: every image its own, all of them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.errors import check, unknown

# Maps from output to input positions, in half sides; see `wiggle`.
_STEP, _COS, _SIN = 3 / 28, math.cos(0.2), math.sin(0.2)
_WIGGLES = torch.tensor(
    [
        *([[1.0, 0.0, x], [0.0, 1.0, y]] for x, y in ((_STEP, 0.0), (-_STEP, 0.0))),
        *([[1.0, 0.0, x], [0.0, 1.0, y]] for x, y in ((0.0, _STEP), (0.0, -_STEP))),
        *([[_COS, -s, 0.0], [s, _COS, 0.0]] for s in (_SIN, -_SIN)),
        *([[s, 0.0, 0.0], [0.0, s, 0.0]] for s in (1.15, 0.87)),
    ]
)
MIXES = ("none", "mixup", "cutmix")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of natural images, made on a backbone's normalised input.

    Attributes:
        crop: Smallest share of the area that a random crop keeps; 1 for none.
        flip: Whether half of the images are mirrored.
        jitter: Strength of random contrast, brightness and saturation; 0 for none.
        cutout: Side of a blanked square, as a share of the image's; 0 for none.
    """

    crop: float = 0.3
    flip: bool = True
    jitter: float = 0.4
    cutout: float = 0.0

    def __post_init__(self) -> None:
        check("augmentation", self, ranges={"crop": (0.01, 1), "jitter": (0, 1), "cutout": (0, 1)})


def augment(x: Tensor, how: Augmentation, rng: torch.Generator) -> Tensor:
    """A random view of each image [n, channels, size, size]."""
    x = crop_and_flip(x, how.crop, how.flip, rng)
    x = jitter(x, how.jitter, rng)
    return cutout(x, how.cutout, rng)


def crop_and_flip(x: Tensor, least: float, flip: bool, rng: torch.Generator) -> Tensor:
    """A random crop of each image [n, channels, size, size], resized to it, perhaps mirrored.

    Its area is uniform in `least`..1 of the image's, its aspect ratio log-uniform in 3/4..4/3 as
    far as it fits (Szegedy et al., arXiv 1409.4842, section 6).
    """
    u = torch.rand(len(x), 5, generator=rng)
    area = least + (1 - least) * u[:, 0]
    # A crop longer than the image is not one.
    longest = (1 / area).clamp(max=4 / 3).log()
    half = (0.5 * (2 * u[:, 1] - 1) * longest).exp()
    size = torch.stack([area.sqrt() * half, area.sqrt() / half], -1)
    centre = (2 * u[:, 2:4] - 1) * (1 - size)
    scale = torch.diag_embed(size)
    scale[:, 0, 0] *= torch.where((u[:, 4] < 0.5) & flip, -1.0, 1.0)
    return _warp(x, torch.cat([scale, centre.unsqueeze(-1)], -1), outside="border")


def jitter(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Random contrast, saturation (factors 1 - strength .. 1 + strength) and brightness.

    Brightness is a shift by up to `strength`, in the units of the normalised x, of the image
    [channels, size, size] as a whole.
    """
    if strength <= 0:
        return x
    u = 1 + (2 * torch.rand(3, len(x), 1, 1, 1, generator=rng) - 1) * strength
    contrast, saturation, brightness = u[0], u[1], u[2] - 1
    grey, level = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    return level + brightness + contrast * (grey - level + saturation * (x - grey))


def cutout(x: Tensor, side: float, rng: torch.Generator) -> Tensor:
    """Set a random square of each image to 0, the mean pixel (DeVries and Taylor, 2017).

    Args:
        x: [n, channels, size, size].
        side: Of the square, as a share of the image's; it may lie partly outside.
        rng: Where the squares are.
    """
    return x if side <= 0 else x.masked_fill(_squares(x, torch.full((len(x),), side), rng), 0.0)


def mix(x: Tensor, target: Tensor, kind: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each image and its target with those of a random partner.

    The share that is kept is uniform in 0..1, i.e. Beta(1, 1).

    Args:
        x: [n, channels, size, size].
        target: [n, classes] probabilities.
        kind: "none"; "mixup", a weighted mean of pixels (Zhang et al., arXiv 1710.09412); or
            "cutmix", a square taken from the partner (Yun et al., arXiv 1905.04899).
        rng: Partners, shares and squares.

    Raises:
        InputError: For another kind.
    """
    if kind not in MIXES:
        raise unknown("mix", kind, MIXES, where="training.mix")
    if kind == "none":
        return x, target
    partner = torch.randperm(len(x), generator=rng)
    kept = torch.rand(len(x), generator=rng)
    if kind == "cutmix":
        taken = _squares(x, (1 - kept).sqrt(), rng)
        x = torch.where(taken, x[partner], x)
        kept = 1 - taken.float().mean((1, 2, 3))
    else:
        x = torch.lerp(x[partner], x, kept[:, None, None, None])
    return x, torch.lerp(target[partner], target, kept.unsqueeze(1))


def distort(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Random affine distortion of images [n, channels, size, size], each its own."""
    if strength <= 0:
        return x
    u = (torch.rand(len(x), 6, generator=rng) - 0.5) * strength
    angle, shear = 0.5 * u[:, 0], 0.4 * u[:, 1]
    stretch, shift = 1 + 0.3 * u[:, 2:4], 0.25 * u[:, 4:6]
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * stretch[:, 0], shear - sin, shift[:, 0]], -1),
        torch.stack([sin, cos * stretch[:, 1], shift[:, 1]], -1),
    ]
    return _warp(x, torch.stack(rows, 1))


def wiggle(x: Tensor) -> list[Tensor]:
    """Images [n, channels, size, size] as they are, and in eight views that differ a little.

    They are shifted by a twentieth of the side in each direction, turned by 0.2 rad either way, and
    seen an eighth smaller and larger (docs/lab-notes/choices.md).
    """
    return [x, *(_warp(x, view.expand(len(x), -1, -1)) for view in _WIGGLES)]


def _warp(x: Tensor, affine: Tensor, outside: str = "zeros") -> Tensor:
    """Images [n, channels, size, size] seen through maps [n, 2, 3] of output to input positions."""
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=outside, align_corners=False)


def _squares(x: Tensor, side: Tensor, rng: torch.Generator) -> Tensor:
    """Masks [n, 1, size, size] of squares with side [n], a share of the image's, centred in it."""
    size = x.shape[-1]
    centre = torch.rand(len(x), 2, 1, generator=rng) * size
    near = (torch.arange(size) + 0.5 - centre).abs() < side[:, None, None] * size / 2
    return (near[:, 0, :, None] & near[:, 1, None, :]).unsqueeze(1)
