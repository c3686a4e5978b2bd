"""Image sources behind one call; a new source is one new file and one line in `SOURCES`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch

from ltdi import errors
from ltdi.data import archive, cifar, domains, folder, glyphs, omniglot, oxford_pets, tiny_imagenet
from ltdi.data.images import ImageSet, decode
from ltdi.data.layout import readable
from ltdi.errors import InputError

__all__ = ["SOURCES", "ImageSet", "Source", "decode", "fetch", "load", "readable"]


class Source(Protocol):
    """What a source's `load` does: the parts of the data set, by name."""

    def __call__(
        self, path: Path | None, /, *, size: int, channels: int, split: str | None, seed: int
    ) -> dict[str, ImageSet]:
        """Load the source; `split` None is its usual one."""


SOURCES: dict[str, Source] = {
    "glyphs": glyphs.load,
    "omniglot": omniglot.load,
    "tiny-imagenet": tiny_imagenet.load,
    "oxford-pets": oxford_pets.load,
    **cifar.SETS,
    **domains.SETS,
}


def load(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    size: int,
    channels: int,
    split: str | None = None,
    seed: int = 0,
) -> dict[str, ImageSet]:
    """Load a data set by name, or any folder, zip or tar.gz of images by path.

    Args:
        name_or_path: A key of `SOURCES`, or a path laid out as `<class>/<image>`. A name goes
            before a folder of the same name: write "./glyphs" for the folder.
        data_dir: Where the named set's files lie; not for paths.
        size: Height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        split: The named set's split; None is its usual one. For a path, None gives all classes
            as one part and "random" draws disjoint parts of 64, 16 and 20 % of the classes.
        seed: Of sets that are drawn, and of "random".

    Returns:
        "train", "val" and "test", disjoint by class; or "all", for a path without split. Of sets
        for transfer, "train" and "test" with the same classes; of domain sets, one part a domain.

    Raises:
        InputError: For an unknown name or split, a missing path, or unusable data.
        DamagedFileError: For an unreadable image or archive.
    """
    given = os.fspath(name_or_path)
    if given in SOURCES:
        place = None if data_dir is None else Path(data_dir)
        return SOURCES[given](place, size=size, channels=channels, split=split, seed=seed)
    looks_like_path = os.path.exists(given) or os.sep in given or archive.is_archive(given)
    if not looks_like_path:
        raise errors.unknown("data set (nor is there a file or folder)", given, SOURCES)
    if data_dir is not None:
        raise InputError(
            f"both a path, {given!r}, and data_dir={os.fspath(data_dir)!r} are given",
            where="data_dir",
            fix="give the path alone",
        )
    if split not in (None, "random"):
        raise errors.unknown("split of a folder", str(split), ("random",), where=given)
    images = folder.load(given, size=size, channels=channels)
    return {"all": images} if split is None else _random_split(images, seed)


def fetch(dataset: str, data_dir: str | None) -> None:
    """Download what a data set's directory lacks; only ever done when asked for.

    Raises:
        InputError: For a set without a download, or where no directory is given.
    """
    if dataset != "omniglot" or data_dir is None:
        raise InputError(
            "only Omniglot can be downloaded, into a directory of your choice",
            where="--download",
            fix="give --data-dir DIR with omniglot, or leave --download out",
        )
    omniglot.download(data_dir)


def _random_split(images: ImageSet, seed: int) -> dict[str, ImageSet]:
    n = len(images.classes)
    if n < 5:
        raise InputError(
            f"{n} classes are too few for three parts",
            where=images.name,
            fix="give 5 classes or more, or leave split unset",
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    val = max(1, round(0.16 * n))
    train = n - val - max(1, round(0.2 * n))
    bounds = {"train": (0, train), "val": (train, train + val), "test": (train + val, n)}
    return {part: images.select(sorted(order[a:b])) for part, (a, b) in bounds.items()}
