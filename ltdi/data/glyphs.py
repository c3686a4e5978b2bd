"""The embedded data set: characters of many scripts, "drawn" by many hands, from fonts alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.data.glyph_fonts import BOLD, FACES, ITALIC, Glyph, inventory
from ltdi.data.glyph_styles import Hand, Pen, brush, draw, fill, noisy, outline
from ltdi.data.images import ImageSet, check_geometry
from ltdi.data.layout import check_split
from ltdi.errors import InputError

# Scripts by part; a character that looks like one of an earlier script is dropped.
SPLIT: dict[str, tuple[str, ...]] = {
    "train": (
        "Latin",
        "Greek",
        "Cyrillic",
        "Arabic",
        "Latin extended",
        "IPA",
        "Canadian syllabics",
        "Mathematics",
    ),
    "val": ("Georgian", "Hebrew", "Lao"),
    "test": ("Armenian", "Tifinagh", "N'Ko"),
}
_STEADY = Hand(rotation=3, scale=0.05, shear=0.04, shift=0.05, elastic=0.02, stroke=0.1)


@dataclass(frozen=True)
class Domain:
    """A way of rendering: the faces preferred where they have the character, hand and pen."""

    faces: frozenset[str]
    hand: Hand = _STEADY
    pen: Pen = fill


_PLAIN = frozenset(FACES) - BOLD - ITALIC
DOMAINS: dict[str, Domain] = {
    "print": Domain(_PLAIN),
    "italic": Domain(ITALIC, replace(_STEADY, slant=0.3)),
    "bold": Domain(BOLD, replace(_STEADY, weight=-0.9)),
    "brush": Domain(_PLAIN, Hand(weight=-0.2), brush),
    "outline": Domain(BOLD, _STEADY, outline),
    "noisy": Domain(_PLAIN, replace(_STEADY, shift=0.1), noisy),
}


def load(
    path: object = None,
    *,
    size: int = 28,
    channels: int = 1,
    split: str | None = None,
    seed: int = 0,
    drawers: int = 20,
) -> dict[str, ImageSet]:
    """Draw the whole set; no download, no data files, the same images for the same arguments.

    As in Omniglot, a script has its own drawers, and each draws every character of it once, with
    habits of their own: a favourite face, slant, proportions, pressure.

    Args:
        path: Not looked at.
        size: Height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        split: "scripts", the only one.
        seed: Chooses the drawers and their drawings; the classes stay the same.
        drawers: Images per class.

    Returns:
        "train", "val" and "test", disjoint by script: uint8 [n, channels, size, size], ink 0, paper
        255; classes are "<script>/<Unicode name>".

    Raises:
        InputError: For an unknown split, another number of channels, a size or number of drawers
            below 1, or when matplotlib's fonts are missing.
    """
    check_geometry(size, channels)
    check_split(split, ("scripts",), "glyphs")
    plain = Domain(frozenset(), Hand())
    sets = {
        part: _draw_scripts(f"glyphs-{part}", scripts, plain, size, drawers, seed)
        for part, scripts in SPLIT.items()
    }
    return {p: replace(s, images=s.images.repeat(1, channels, 1, 1)) for p, s in sets.items()}


def load_domains(*, size: int = 28, drawers: int = 20, seed: int = 0) -> dict[str, ImageSet]:
    """The same characters, Latin ones, in every style of `DOMAINS`, for domain generalisation.

    Args:
        size: Height and width of the images, in pixels.
        drawers: Images per class and domain.
        seed: Chooses the drawings.

    Returns:
        Domain name -> images as `load` makes them; all have the same classes in the same order.

    Raises:
        InputError: As `load`.
    """
    return {
        name: _draw_scripts(f"glyphs-{name}", ("Latin",), domain, size, drawers, seed)
        for name, domain in DOMAINS.items()
    }


def _draw_scripts(
    name: str, scripts: Sequence[str], domain: Domain, size: int, drawers: int, seed: int
) -> ImageSet:
    check_geometry(size, 1)
    if drawers < 1:
        raise InputError(
            f"cannot draw with {drawers} drawers", where="drawers", fix="use 1 or more"
        )
    groups = [[g for g in inventory() if g.script == script] for script in scripts]
    images = [
        _draw_script(group, domain, size, drawers, _generator(name, script, seed))
        for script, group in zip(scripts, groups, strict=True)
    ]
    classes = [g.name for group in groups for g in group]
    return ImageSet.by_class(name, torch.cat(images).split(drawers), classes)


def _draw_script(
    glyphs: Sequence[Glyph], domain: Domain, size: int, drawers: int, generator: torch.Generator
) -> Tensor:
    """Images of one script by its own drawers, uint8 [characters * drawers, 1, size, size]."""
    tastes = [torch.randperm(len(FACES), generator=generator).tolist() for _ in range(drawers)]
    rank = [
        {FACES[f]: (FACES[f] not in domain.faces, place) for place, f in enumerate(taste)}
        for taste in tastes
    ]
    chosen = torch.tensor(
        [[min((r[face], i) for i, face in enumerate(g.faces))[1] for r in rank] for g in glyphs]
    )
    first = torch.tensor([0, *(len(g.faces) for g in glyphs[:-1])]).cumsum(0)
    heights = torch.cat([g.heights for g in glyphs])
    rows = first[:, None] + chosen
    return draw(heights, rows, domain.hand, domain.pen, size=size, generator=generator)


def _generator(name: str, script: str, seed: int) -> torch.Generator:
    """A stream of its own for each script, so that adding one leaves the others as they are."""
    digest = hashlib.sha256(f"{name}/{script}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
