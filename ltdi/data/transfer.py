"""Source and target sets of transfer without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ltdi.data import cifar, domains, glyphs, oxford_pets, splits, tiny_imagenet
from ltdi.data.images import ImageSet
from ltdi.data.layout import halve
from ltdi.errors import InputError, unknown

# Where each set lies in a directory that holds all of them.
PLACES = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "tiny-imagenet": "tiny-imagenet",
    "oxford-pets": "oxford_pets",
    "office-caltech10": "office_caltech10",
    "pacs": "pacs",
}


@dataclass(frozen=True)
class NamedSet:
    """Images whose classes have names in plain words.

    Attributes:
        name: Of the set.
        parts: Disjoint sets of images with the same classes, of one size each.
        names: One per class; synonyms after commas.
    """

    name: str
    parts: tuple[ImageSet, ...]
    names: tuple[str, ...]

    def select(self, classes: Sequence[int]) -> NamedSet:
        """The given classes, in the given order."""
        parts = tuple(part.select(classes) for part in self.parts)
        return NamedSet(self.name, parts, tuple(self.names[c] for c in classes))


@dataclass(frozen=True)
class Target:
    """A set to transfer to.

    Attributes:
        name: Of the set.
        pool: Images whose labels no method sees; of a set with an official training part, that.
        test: Images that are only measured on; none of them is in the pool.
        names: One per class.
    """

    name: str
    pool: ImageSet
    test: ImageSet
    names: tuple[str, ...]


def _halved(name: str, images: ImageSet, seed: int) -> Target:
    """A set without official parts: of every class one half is the pool."""
    rows = torch.arange(len(images)).split(images.counts.tolist())
    named = {c: r.tolist() for c, r in zip(images.classes, rows, strict=True)}
    pool, test = (
        ImageSet.by_class(
            f"{images.name}-{part}", [images.images[r] for r in half.values()], images.classes
        )
        for part, half in zip(("pool", "test"), halve(named, seed, images.name), strict=True)
    )
    return Target(name, pool, test, images.classes)


def _parts(name: str, parts: Mapping[str, ImageSet]) -> Target:
    """A set with official parts."""
    return Target(name, parts["train"], parts["test"], parts["test"].classes)


def _cifar10(path: Path, seed: int) -> Target:
    return _parts("cifar10", cifar.SETS["cifar10"](path))


def _pets(path: Path, seed: int) -> Target:
    return _parts("oxford-pets", oxford_pets.load(path, split="own", seed=seed))


def _cifar_fs(path: Path, seed: int) -> Target:
    return _halved("cifar-fs", cifar.SETS["cifar-fs"](path)["test"], seed)


def _pacs(path: Path, seed: int) -> Target:
    images = domains.SETS["pacs"](path, size=64, channels=3)["photo"]
    return _halved("pacs-photo", images, seed)


def _office(path: Path, seed: int) -> Target:
    """All four domains together: a class is a class wherever its picture was taken."""
    found = list(domains.SETS["office-caltech10"](path, size=64, channels=3).values())
    groups = [torch.cat(group) for group in zip(*(part.groups() for part in found), strict=True)]
    images = ImageSet.by_class("office-caltech10", groups, found[0].classes)
    return _halved("office-caltech10", images, seed)


# Target set -> the data set it is read from, how, and its classes, which are facts.
TARGETS: dict[str, tuple[str, Callable[[Path, int], Target], tuple[str, ...]]] = {
    "cifar10": ("cifar10", _cifar10, splits.CIFAR10),
    "oxford-pets": ("oxford-pets", _pets, splits.PETS),
    "office-caltech10": ("office-caltech10", _office, splits.OFFICE),
    "pacs-photo": ("pacs", _pacs, splits.PACS),
    "cifar-fs": ("cifar100", _cifar_fs, splits.CIFAR_FS["test"]),
}


def load_source(data_dir: str | os.PathLike[str]) -> list[NamedSet]:
    """CIFAR-100 and Tiny-ImageNet, every class and every image of both.

    Raises:
        InputError: If files are missing.
        DamagedFileError: For an unreadable image or archive.
    """
    small = cifar.SETS["cifar100"](_place(data_dir, "cifar100"))
    path = _place(data_dir, "tiny-imagenet")
    large = tiny_imagenet.load(path, split="all")["all"]
    words = tiny_imagenet.words(path)
    return [
        NamedSet("cifar100", (small["train"], small["test"]), small["train"].classes),
        NamedSet("tiny-imagenet", (large,), tuple(words[c] for c in large.classes)),
    ]


def load_target(name: str, data_dir: str | os.PathLike[str], *, seed: int = 0) -> Target:
    """A target set.

    The seed is that of the split into pool and test where there is no official one.

    Raises:
        InputError: For an unknown name, or if files are missing.
        DamagedFileError: For an unreadable image or archive.
    """
    if name not in TARGETS:
        raise unknown("target set", name, TARGETS, where="--targets")
    place, load, _ = TARGETS[name]
    return load(_place(data_dir, place), seed)


def target_names() -> dict[str, tuple[str, ...]]:
    """The class names of all target sets."""
    return {name: classes for name, (_, _, classes) in TARGETS.items()}


def _place(data_dir: str | os.PathLike[str], name: str) -> Path:
    path = Path(data_dir) / PLACES[name]
    if not path.exists():
        raise InputError(
            f"there is no {PLACES[name]}/ in {os.fspath(data_dir)}",
            where="--data-dir",
            fix=f"give a directory with the folders {', '.join(PLACES.values())}",
        )
    return path


def synthetic(seed: int = 0) -> tuple[list[NamedSet], list[Target]]:
    """Glyphs in place of photographs: all of the machinery, none of the meaning.

    The names are the characters' own ("GREEK SMALL LETTER ALPHA" shares words with its relatives).
    """
    parts = glyphs.load(seed=seed)
    test = parts["test"].select(range(min(10, len(parts["test"].classes))))
    source = NamedSet("glyphs", (parts["train"],), parts["train"].classes)
    return [source], [_halved("glyphs", test, seed)]
