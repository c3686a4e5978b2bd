"""`ltdi.data.glyphs`: deterministic, disjoint, legible, and not too easy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ltdi.data import glyphs
from ltdi.data.glyph_fonts import SCRIPTS, inventory
from ltdi.data.images import ImageSet
from ltdi.errors import InputError


@pytest.fixture(scope="module")
def sets() -> dict[str, ImageSet]:
    return glyphs.load()


def ink(images: torch.Tensor) -> torch.Tensor:
    """Inked pixels of each image, [n]."""
    return (1 - images.float() / 255).sum((1, 2, 3))


def test_same_seed_same_images_other_seed_others() -> None:
    first, again, other = (glyphs.load(seed=s, drawers=3) for s in (0, 0, 1))
    for part, images in first.items():
        assert torch.equal(again[part].images, images.images)
        assert other[part].classes == images.classes
        changed = (other[part].images != images.images).flatten(1).any(1)
        assert changed.float().mean() > 0.99


def test_sizes_and_disjoint_scripts(sets: dict[str, ImageSet]) -> None:
    scripts = [{c.split("/")[0] for c in s.classes} for s in sets.values()]
    assert sum(map(len, scripts)) == len(set.union(*scripts)) == len(SCRIPTS)
    for part, least in (("train", 350), ("val", 60), ("test", 80)):
        assert len(sets[part].classes) >= least
        assert (sets[part].counts == 20).all()
        assert sets[part].images.shape[1:] == (1, 28, 28)


def test_no_image_is_blank_or_blotted(sets: dict[str, ImageSet]) -> None:
    for images in sets.values():
        amount = ink(images.images)
        assert amount.min() > 6
        assert amount.max() < 0.75 * 28 * 28


def test_characters_do_not_repeat_across_splits() -> None:
    shapes = torch.stack([g.template for g in inventory()]).flatten(1)
    likeness = shapes @ shapes.T - torch.eye(len(shapes))
    assert likeness.max() <= 0.9 + 1e-4
    assert not any(g.name == "Cyrillic/CYRILLIC CAPITAL LETTER A" for g in inventory())


def test_raw_pixels_are_neither_useless_nor_enough(sets: dict[str, ImageSet]) -> None:
    test = sets["test"]
    images = test.images.float().view(len(test.classes), 20, -1)
    generator = torch.Generator().manual_seed(0)
    right = []
    for _ in range(200):
        chosen = images[torch.randperm(len(images), generator=generator)[:5]]
        nearest = torch.cdist(chosen[:, 1:].reshape(95, -1), chosen[:, 0]).argmin(1)
        right.append((nearest == torch.arange(5).repeat_interleave(19)).float().mean())
    assert 0.4 < torch.stack(right).mean() < 0.8


def test_a_drawer_has_habits(sets: dict[str, ImageSet]) -> None:
    # A drawer's pressure shows in all of a script's characters: the mean ink of one half of them
    # tells that of the other half.
    test = sets["test"]
    amount = ink(test.images).view(len(test.classes), 20)[:40]
    halves = torch.stack([amount[0::2].mean(0), amount[1::2].mean(0)])
    assert torch.corrcoef(halves)[0, 1] > 0.6


@pytest.mark.parametrize("size", [1, 20, 64])
def test_any_size(size: int) -> None:
    small = glyphs.load_domains(size=size, drawers=1)
    assert all(s.images.shape[1:] == (1, size, size) for s in small.values())


def test_size_changes_resolution_not_drawings() -> None:
    small, large = (glyphs.load_domains(size=s, drawers=4) for s in (28, 56))
    for name in ("print", "brush"):
        shrunk = F.avg_pool2d(large[name].images.float(), 2)
        assert (shrunk - small[name].images.float()).abs().mean() < 8


def test_domains_share_classes_and_differ_in_look() -> None:
    domains = glyphs.load_domains(drawers=3)
    assert set(domains) == set(glyphs.DOMAINS)
    assert len({s.classes for s in domains.values()}) == 1
    amount = {name: ink(s.images).mean() for name, s in domains.items()}
    assert amount["bold"] > 1.3 * amount["print"]
    assert all(ink(s.images).min() > 6 for s in domains.values())


def test_misuse() -> None:
    with pytest.raises(InputError, match="drawers"):
        glyphs.load(drawers=0)
    with pytest.raises(InputError, match="size"):
        glyphs.load(size=0)
