"""Source and target sets of transfer without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from ltdi.data import cifar, domains, glyphs, oxford_pets, splits, tiny_imagenet
from ltdi.data.images import ImageSet
from ltdi.data.layout import locate
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


def halves(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split every class in two at random; of an odd number the first half gets one more.

    Raises:
        InputError: If a class has one image only.
    """
    rng = torch.Generator().manual_seed(seed)
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for name, (a, b) in zip(images.classes, pairwise(images.offsets.tolist()), strict=True):
        if b - a < 2:
            raise InputError(
                f"class {name!r} has {b - a} image, and two halves need two",
                where=images.name,
                fix="give every class two images or more",
            )
        order = torch.randperm(b - a, generator=rng) + a
        cut = (b - a + 1) // 2
        rows[0].append(order[:cut].sort().values)
        rows[1].append(order[cut:].sort().values)
    first, second = (
        ImageSet(
            f"{images.name}-{part}",
            images.images[torch.cat(r)],
            torch.tensor([0, *map(len, r)]).cumsum(0),
            images.classes,
        )
        for part, r in zip(("pool", "test"), rows, strict=True)
    )
    return first, second


def _cifar10(path: Path, seed: int) -> Target:
    parts = cifar.load(path, "cifar10")
    return Target("cifar10", parts["train"], parts["test"], parts["test"].classes)


def _cifar_fs(path: Path, seed: int) -> Target:
    images = cifar.load(path, "cifar-fs")["test"]
    return Target("cifar-fs", *halves(images, seed), images.classes)


def _pets(path: Path, seed: int) -> Target:
    parts = oxford_pets.load(path, split="own", size=96, channels=3, seed=seed)
    return Target("oxford-pets", parts["train"], parts["test"], parts["test"].classes)


def _pacs(path: Path, seed: int) -> Target:
    zipped = locate(path, ("PACS.zip",))
    images = domains.load_domains(zipped, size=64, channels=3, domains=("photo",))["photo"]
    return Target("pacs-photo", *halves(images, seed), images.classes)


def _office(path: Path, seed: int) -> Target:
    """All four domains together: a class is a class wherever its picture was taken."""
    zipped = locate(path, ("office_caltech10.zip",))
    found = list(domains.load_domains(zipped, size=64, channels=3).values())
    classes = found[0].classes
    groups = {c: [i for part in found for i in _of(part, n)] for n, c in enumerate(classes)}
    images = ImageSet.from_groups("office-caltech10", groups)
    return Target("office-caltech10", *halves(images, seed), images.classes)


def _of(images: ImageSet, number: int) -> list[torch.Tensor]:
    a, b = images.offsets[number : number + 2].tolist()
    return list(images.images[a:b])


# Target set -> the data set it is read from, and how.
TARGETS: dict[str, tuple[str, Callable[[Path, int], Target]]] = {
    "cifar10": ("cifar10", _cifar10),
    "oxford-pets": ("oxford-pets", _pets),
    "office-caltech10": ("office-caltech10", _office),
    "pacs-photo": ("pacs", _pacs),
    "cifar-fs": ("cifar100", _cifar_fs),
}


def load_source(data_dir: str | os.PathLike[str]) -> list[NamedSet]:
    """CIFAR-100 and Tiny-ImageNet, every class and every image of both.

    Args:
        data_dir: Directory with `cifar100/` and `tiny-imagenet/`.

    Raises:
        InputError: If files are missing.
        DamagedFileError: For an unreadable image or archive.
    """
    small = cifar.load(_place(data_dir, "cifar100"), "cifar100")
    path = _place(data_dir, "tiny-imagenet")
    large = tiny_imagenet.load(path, split="all")["all"]
    words = tiny_imagenet.words(path)
    return [
        NamedSet("cifar100", (small["train"], small["test"]), small["train"].classes),
        NamedSet("tiny-imagenet", (large,), tuple(words[c] for c in large.classes)),
    ]


def load_target(name: str, data_dir: str | os.PathLike[str], *, seed: int = 0) -> Target:
    """A target set.

    Args:
        name: A key of `TARGETS`.
        data_dir: Directory with the folders of `PLACES`.
        seed: Of the split into pool and test where there is no official one.

    Raises:
        InputError: For an unknown name, or if files are missing.
        DamagedFileError: For an unreadable image or archive.
    """
    if name not in TARGETS:
        raise unknown("target set", name, TARGETS, where="--targets")
    place, load = TARGETS[name]
    return load(_place(data_dir, place), seed)


def target_names() -> Mapping[str, tuple[str, ...]]:
    """The class names of all target sets, as far as they are facts that need no file."""
    return {
        "cifar10": splits.CIFAR10,
        "oxford-pets": PETS,
        "office-caltech10": OFFICE,
        "pacs-photo": PACS,
        "cifar-fs": splits.CIFAR_FS["test"],
    }


# Parkhi et al., 2012; Gong et al., 2012; Li et al., 2017.
PETS = tuple(
    [
        "Abyssinian",
        "Bengal",
        "Birman",
        "Bombay",
        "British_Shorthair",
        "Egyptian_Mau",
        "Maine_Coon",
        "Persian",
        "Ragdoll",
        "Russian_Blue",
        "Siamese",
        "Sphynx",
        "american_bulldog",
        "american_pit_bull_terrier",
        "basset_hound",
        "beagle",
        "boxer",
        "chihuahua",
        "english_cocker_spaniel",
        "english_setter",
        "german_shorthaired",
        "great_pyrenees",
        "havanese",
        "japanese_chin",
        "keeshond",
        "leonberger",
        "miniature_pinscher",
        "newfoundland",
        "pomeranian",
        "pug",
        "saint_bernard",
        "samoyed",
        "scottish_terrier",
        "shiba_inu",
        "staffordshire_bull_terrier",
        "wheaten_terrier",
        "yorkshire_terrier",
    ]
)
OFFICE = tuple(
    [
        "backpack",
        "bike",
        "calculator",
        "headphones",
        "keyboard",
        "laptop",
        "monitor",
        "mouse",
        "mug",
        "projector",
    ]
)
PACS = tuple(["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"])


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
    parts = glyphs.load_named(None, size=28, channels=1, split=None, seed=seed)
    test = parts["test"].select(range(min(10, len(parts["test"].classes))))
    source = NamedSet("glyphs", (parts["train"],), parts["train"].classes)
    return [source], [Target("glyphs", *halves(test, seed), test.classes)]
