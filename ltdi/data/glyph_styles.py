"""Turning clean character masks into what different hands and pens would have drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_KNOTS = 5  # control points a side of the elastic displacement
_MODES = 8  # rotation, log width, log height, shear, shift x, shift y, stroke, softness
_LEVEL = 92.0  # of 255: the height at which a stroke of normal width is cut
_CHUNK = 512  # images drawn at once: bounds the memory


@dataclass(frozen=True)
class Hand:
    """How far drawings stray from the font's shape; standard deviations, cut off at two.

    Each amount is split between the drawer (shared by all characters of one drawer) and the
    single drawing, in the ratio `personal`.

    Attributes:
        rotation: Degrees.
        scale: Log of width and of height.
        shear: Horizontal shift per height.
        slant: A fixed shear, the same for everybody.
        shift: Of half the image.
        elastic: Displacement of the control points, of half the image.
        stroke: Log of the cutting level: thinner or thicker strokes.
        weight: A fixed addition to it; negative is thicker.
        softness: Log of the width of the strokes' soft edge.
        personal: The drawer's share of the variance.
    """

    rotation: float = 9.0
    scale: float = 0.13
    shear: float = 0.14
    slant: float = 0.0
    shift: float = 0.07
    elastic: float = 0.075
    stroke: float = 0.22
    weight: float = 0.0
    softness: float = 0.35
    personal: float = 0.5


# Height field [n, s, s] in 0..255, cutting level and edge [n, 1, 1] -> ink in 0..1.
Pen = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def fill(heights: Tensor, level: Tensor, edge: Tensor, generator: torch.Generator) -> Tensor:
    """A plain pen: ink wherever the height is above the level."""
    del generator
    return _cut(heights, level, edge)


def outline(heights: Tensor, level: Tensor, edge: Tensor, generator: torch.Generator) -> Tensor:
    """Only the contour of a heavy stroke."""
    del generator
    outer, inner = 0.3 * level, 1.25 * level
    return _cut(heights, outer, 0.5 * edge) * (1 - _cut(heights, inner, 0.5 * edge))


def brush(heights: Tensor, level: Tensor, edge: Tensor, generator: torch.Generator) -> Tensor:
    """A wet brush: the stroke swells and thins across the image."""
    field = torch.randn(len(heights), 1, 4, 4, generator=generator).clamp(-2, 2)
    swell = F.interpolate(field, heights.shape[1:], mode="bicubic", align_corners=True)[:, 0]
    return _cut(heights, level * torch.exp(0.4 * swell), 1.5 * edge)


def _cut(heights: Tensor, level: Tensor, edge: Tensor) -> Tensor:
    """A ramp from 0 to 1 around the level that is 0 at height 0, so that paper stays white."""
    half = torch.minimum(2 * edge, level)
    return ((heights - level) / (2 * half) + 0.5).clamp(0, 1)


def noisy(heights: Tensor, level: Tensor, edge: Tensor, generator: torch.Generator) -> Tensor:
    """A bad photocopy: grey paper, grain and specks."""
    ink = 0.12 + 0.75 * fill(heights, level, edge, generator)
    grain = 0.3 * torch.randn(ink.shape, generator=generator)
    specks = (torch.rand(ink.shape, generator=generator) < 0.02).float()
    return (ink + grain + specks).clamp(0, 1)


def draw(
    heights: Tensor, faces: Tensor, hand: Hand, pen: Pen, *, size: int, generator: torch.Generator
) -> Tensor:
    """Draw every character once by every drawer.

    Args:
        heights: uint8 [masks, 64, 64], see `glyph_fonts.Glyph.heights`.
        faces: int64 [characters, drawers]; which mask each drawing starts from.
        hand: How far drawings stray.
        pen: How the strokes are inked.
        size: Height and width of the result, in pixels.
        generator: The source of all randomness.

    Returns:
        uint8 [characters * drawers, 1, size, size]; ink 0, paper 255; drawers vary fastest.
    """
    n = faces.numel()
    modes = _modes(faces.shape, (_MODES,), hand.personal, generator).view(n, _MODES)
    knots = _modes(faces.shape, (2, _KNOTS, _KNOTS), hand.personal, generator)
    knots = knots.view(n, 2, _KNOTS, _KNOTS) * hand.elastic
    rows = faces.flatten()
    done = []
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        field = heights[rows[part]].float()
        grid = _grid(modes[part], knots[part], hand, 2 * size)
        bent = F.grid_sample(field[:, None], grid, align_corners=False)[:, 0]
        level = _LEVEL * torch.exp(hand.stroke * modes[part, 6] + hand.weight)
        edge = 14.0 * torch.exp(hand.softness * modes[part, 7])
        ink = pen(bent, level[:, None, None], edge[:, None, None], generator)
        done.append((255 * (1 - F.avg_pool2d(ink[:, None], 2))).round().byte())
    return torch.cat(done)


def _modes(
    shape: torch.Size, inner: tuple[int, ...], personal: float, generator: torch.Generator
) -> Tensor:
    """Standard normal [characters, drawers, *inner], partly shared along the characters."""
    drawer = torch.randn(1, shape[1], *inner, generator=generator)
    single = torch.randn(*shape, *inner, generator=generator)
    mixed = math.sqrt(personal) * drawer + math.sqrt(1 - personal) * single
    return mixed.clamp(-2, 2)


def _grid(modes: Tensor, knots: Tensor, hand: Hand, side: int) -> Tensor:
    """Where to read the mask, [n, side, side, 2]: the inverse map of the drawing's distortion."""
    angle = torch.deg2rad(hand.rotation * modes[:, 0])
    wide, high = torch.exp(hand.scale * modes[:, 1]), torch.exp(hand.scale * modes[:, 2])
    shear = hand.shear * modes[:, 3] + hand.slant
    cos, sin = angle.cos(), angle.sin()
    shift = hand.shift * modes[:, 4:6]
    # Rotation, then shear along x, then scale; y points down, so a slant to the right adds +y.
    rows = [
        [(cos + shear * sin) * wide, (shear * cos - sin) * wide, shift[:, 0]],
        [sin * high, cos * high, shift[:, 1]],
    ]
    axis = (2 * torch.arange(side) + 1) / side - 1
    spread = _spread(side)
    bend = spread @ knots @ spread.T
    for r, (from_x, from_y, constant) in enumerate(rows):
        bend[:, r] += from_x[:, None, None] * axis
        bend[:, r] += (from_y[:, None] * axis + constant[:, None])[:, :, None]
    return bend.permute(0, 2, 3, 1)


def _spread(side: int) -> Tensor:
    """Bicubic weights [side, knots] that carry control points to pixels."""
    eye = torch.eye(_KNOTS)[None]
    return F.interpolate(eye[None], (side, _KNOTS), mode="bicubic", align_corners=True)[0, 0]
