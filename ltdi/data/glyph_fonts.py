"""Characters of many scripts as masks, rendered from the fonts in matplotlib's wheel."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ltdi.errors import InputError

CANVAS = 64  # pixels; a mask's side
_EXTENT = 44  # pixels; the longer side of the ink
_SOFTEN = 1.5  # pixels; the blur that turns a mask into a height field
_TEMPLATE = 24  # pixels; the side of what is compared for likeness
_ALIKE = 0.9  # correlation from which two characters count as the same
_COPY = 0.45  # correlation a face's copy needs with the reference face

# The first face that has a character gives its reference shape. Slanted copies of upright faces
# are absent on purpose: a drawer's shear makes them.
FACES = (
    "DejaVuSans",
    "DejaVuSerif",
    "STIXGeneral",
    "DejaVuSansMono",
    "DejaVuSans-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneralItalic",
    "DejaVuSerif-Bold",
    "STIXGeneralBol",
)
BOLD = frozenset({"DejaVuSans-Bold", "DejaVuSerif-Bold", "STIXGeneralBol"})
ITALIC = frozenset({"DejaVuSerif-Italic", "STIXGeneralItalic"})

# Code points by script. The order decides which of two look-alikes stays.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x30, 0x3A), (0x41, 0x5B), (0x61, 0x7B)),
    "Greek": ((0x370, 0x400),),
    "Cyrillic": ((0x400, 0x530),),
    "Arabic": ((0x621, 0x64B),),
    "Latin extended": ((0xDE, 0x100), (0x100, 0x250), (0x2C60, 0x2C7C)),
    "IPA": ((0x250, 0x2B0),),
    "Canadian syllabics": ((0x1401, 0x1680),),
    "Mathematics": ((0x2200, 0x2300),),
    "Georgian": ((0x10A0, 0x1100),),
    "Hebrew": ((0x5D0, 0x5EB),),
    "Lao": ((0xE81, 0xEDA),),
    "Armenian": ((0x531, 0x588),),
    "Tifinagh": ((0x2D30, 0x2D68),),
    "N'Ko": ((0x7C0, 0x7EB),),
}


@dataclass(frozen=True)
class Glyph:
    """One character in every face that draws it recognisably.

    Attributes:
        script: Its key in `SCRIPTS`.
        name: "<script>/<Unicode name>", or "<script>/U+XXXX" where Unicode gives none.
        faces: Names from `FACES`; the first is the reference.
        heights: uint8 [faces, 64, 64]; softened masks, high in the middle of a stroke.
        template: float32 [24, 24], zero mean, unit norm; the reference shape for comparing.
    """

    script: str
    name: str
    faces: tuple[str, ...]
    heights: Tensor
    template: Tensor


@cache
def inventory() -> tuple[Glyph, ...]:
    """All distinct characters of `SCRIPTS`, in order, look-alikes dropped.

    Raises:
        InputError: When matplotlib's fonts are not installed.
    """
    scripts = {p: s for s, ranges in SCRIPTS.items() for p in _letters(ranges)}
    reference: dict[int, tuple[str, Tensor]] = {}
    for face in FACES:
        missing = [p for p in scripts if p not in reference]
        reference |= {p: (face, mask) for p, mask in _render(face, missing).items()}
    found = [p for p in scripts if p in reference]
    shapes = templates(_soften(torch.stack([reference[p][1] for p in found])))
    kept = distinct(shapes)
    points, bank = [found[k] for k in kept], shapes[kept]

    drawn = {f: _render(f, [p for p in points if reference[p][0] != f]) for f in FACES}
    for p in points:
        drawn[reference[p][0]][p] = reference[p][1]
    copies = [(c, face) for c, p in enumerate(points) for face in FACES if p in drawn[face]]
    masks = torch.stack([drawn[face][points[c]] for c, face in copies])
    soft = _soften(masks)
    rows = _usable(templates(soft), bank, [c for c, _ in copies])
    heights = _heights(masks, soft)
    return tuple(
        Glyph(
            scripts[p], _name(scripts[p], p), tuple(copies[r][1] for r in own), heights[own], shape
        )
        for p, own, shape in zip(points, rows, bank, strict=True)
    )


def _usable(shapes: Tensor, bank: Tensor, owners: Sequence[int]) -> list[list[int]]:
    """Rows of each character's recognisable copies: italic te looks like m, so it is no te."""
    likeness = shapes.flatten(1) @ bank.flatten(1).T
    best = likeness.max(1).values.clamp(min=_COPY)
    rows: list[list[int]] = [[] for _ in bank]
    for r, c in enumerate(owners):
        if likeness[r, c] >= best[r] - 1e-6:
            rows[c].append(r)
    return rows


def templates(soft: Tensor) -> Tensor:
    """Shapes to compare by dot product, [n, 64, 64] -> [n, 24, 24]: zero mean, unit norm."""
    small = F.adaptive_avg_pool2d(soft, _TEMPLATE).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True)).view(-1, _TEMPLATE, _TEMPLATE)


def distinct(shapes: Tensor) -> list[int]:
    """Indices of the templates [n, 24, 24] that resemble no kept template before them."""
    flat = shapes.flatten(1)
    alike = (flat @ flat.T > _ALIKE).numpy()
    kept: list[int] = []
    dropped = np.zeros(len(flat), dtype=bool)
    for i in range(len(flat)):
        if not dropped[i]:
            kept.append(i)
            dropped |= alike[i]
    return kept


def _name(script: str, point: int) -> str:
    return f"{script}/{unicodedata.name(chr(point), f'U+{point:04X}')}"


def _letters(ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Letters, digits and symbols that are not another character with an accent."""
    for start, stop in ranges:
        for point in range(start, stop):
            known = unicodedata.category(chr(point)) in ("Ll", "Lu", "Lo", "Nd", "Sm")
            if known and not unicodedata.decomposition(chr(point)):
                yield point


def _render(face: str, points: Iterable[int]) -> dict[int, Tensor]:
    """Masks float32 [64, 64] of the points that the face has: ink 1, centred, of one extent."""
    path = _font_path(face)
    covered = _covered(path)
    font = ImageFont.truetype(str(path), CANVAS, layout_engine=ImageFont.Layout.BASIC)
    masks: dict[int, Tensor] = {}
    for point in points:
        if point in covered:
            core = font.getmask(chr(point), mode="L")
            if core.size[0] and core.size[1]:
                pixels = np.frombuffer(bytes(core), dtype=np.uint8).reshape(core.size[::-1])
                fitted = _fit(pixels)
                if fitted is not None:
                    masks[point] = fitted
    return masks


def _fit(pixels: np.ndarray) -> Tensor | None:
    """The ink of `pixels`, scaled and centred on the canvas; None when there is none."""
    box = Image.fromarray(pixels).getbbox()
    if box is None:
        return None
    width, height = box[2] - box[0], box[3] - box[1]
    scale = _EXTENT / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    ink = Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR, box=box)
    left, top = (CANVAS - shape[0]) // 2, (CANVAS - shape[1]) // 2
    canvas = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    canvas[top : top + shape[1], left : left + shape[0]] = np.asarray(ink)
    return torch.from_numpy(canvas / 255)


def _heights(masks: Tensor, soft: Tensor) -> Tensor:
    """Softened masks as uint8, scaled so that the ink's mean is 160 of 255.

    A level cut through this field draws the character; the level sets the strokes' width. The
    scaling makes one level mean about the same for hairlines and for heavy strokes.
    """
    middle = (soft * masks).sum((1, 2)) / masks.sum((1, 2))
    return (soft / middle[:, None, None] * 160).clamp(max=255).round().byte()


def _soften(masks: Tensor) -> Tensor:
    x = torch.arange(CANVAS, dtype=torch.float32)
    blur = torch.exp(-((x[:, None] - x) ** 2) / (2 * _SOFTEN**2))
    blur = blur / blur[CANVAS // 2].sum()
    return blur @ masks @ blur.T


def _font_path(face: str) -> Path:
    import matplotlib  # slow to import, and needed for its data files only

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise InputError(
            f"font {face} is missing", where=str(path), fix="install matplotlib from its wheel"
        )
    return path


def _covered(path: Path) -> frozenset[int]:
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap())
