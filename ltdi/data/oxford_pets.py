"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 breeds of cats and dogs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ltdi.data.archive import FileTree
from ltdi.data.images import ImageSet, check_geometry
from ltdi.data.layout import (
    ImageFile,
    check_split,
    choose,
    decode_groups,
    find,
    image_file,
    open_source,
    read_lines,
    require,
)
from ltdi.errors import InputError

URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
SPLITS = ("own", "official")
_ARCHIVES = ("oxford-iiit-pet.zip",)
_OWN = "complete the data, or use split='own', which needs no annotations"
_LISTS = {"train": "trainval", "test": "test"}

# Breed -> name without suffix, such as "Bengal_12" -> the image.
_Breeds = dict[str, dict[str, ImageFile]]


def load(
    path: str | os.PathLike[str],
    *,
    split: str = "own",
    size: int = 96,
    channels: int = 3,
    seed: int = 0,
) -> dict[str, ImageSet]:
    """Read the official layout, `images/<Breed>_<N>.jpg` and `annotations/{trainval,test}.txt`.

    Args:
        path: A directory or zip with that layout, or a directory that holds
            `oxford-iiit-pet.zip`.
        split: "own" (half of each breed's images are for training, drawn by `seed`; needs no
            annotations) or "official" (trainval and test as annotated).
        size: Height and width of the images, in pixels; the aspect ratio is not kept.
        channels: 1 (grey) or 3 (RGB).
        seed: Of the split "own".

    Returns:
        "train" and "test", with the same breeds: "Egyptian_Mau"; see `ltdi.data.readable`.

    Raises:
        InputError: For an unknown split, missing files, or a breed without images in a part.
        DamagedFileError: For an unreadable image or zip.
    """
    check_geometry(size, channels)
    check_split(split, SPLITS, "oxford-pets")
    with open_source(path, _ARCHIVES) as tree:
        breeds = _breeds(tree)
        parts = _drawn(tree, breeds, seed) if split == "own" else _annotated(tree, breeds)
        return {
            part: decode_groups(f"oxford-pets-{part}", groups, size=size, channels=channels)
            for part, groups in parts.items()
        }


def load_named(
    data_dir: Path | None, *, size: int, channels: int, split: str | None, seed: int
) -> dict[str, ImageSet]:
    """The registry's entry.

    Raises:
        InputError: As `load`, and when no `data_dir` is given.
    """
    chosen = check_split(split, SPLITS, "oxford-pets")
    path = require(data_dir, "Oxford-IIIT Pets")
    return load(path, split=chosen, size=size, channels=channels, seed=seed)


def _breeds(tree: FileTree) -> _Breeds:
    breeds: _Breeds = {}
    for match, name in find(tree, r"images/(?P<stem>(?P<breed>[^/]+)_\d+)\.(?i:jpg)"):
        breeds.setdefault(match["breed"], {})[match["stem"]] = image_file(tree, name)
    if not breeds:
        raise InputError(
            f"no images/<Breed>_<N>.jpg among {len(tree.names)} files",
            where=tree.where,
            fix=f"unpack images.tar.gz and annotations.tar.gz of {URL} there",
        )
    return breeds


def _drawn(tree: FileTree, breeds: _Breeds, seed: int) -> dict[str, dict[str, list[ImageFile]]]:
    """Half of each breed's images for each part; of an odd number, training gets one more."""
    generator = torch.Generator().manual_seed(seed)
    train: dict[str, list[ImageFile]] = {}
    test: dict[str, list[ImageFile]] = {}
    for breed, images in sorted(breeds.items()):
        files = list(images.values())
        order = torch.randperm(len(files), generator=generator).tolist()
        half = (len(files) + 1) // 2
        train[breed] = [files[i] for i in sorted(order[:half])]
        if order[half:]:
            test[breed] = [files[i] for i in sorted(order[half:])]
    return {"train": train, "test": choose(test, list(train), f"{tree.where}, part 'test'")}


def _annotated(tree: FileTree, breeds: _Breeds) -> dict[str, dict[str, list[ImageFile]]]:
    images = {
        stem: (breed, file) for breed, group in breeds.items() for stem, file in group.items()
    }
    parts: dict[str, dict[str, list[ImageFile]]] = {}
    for part, file in _LISTS.items():
        lines = read_lines(
            tree, rf"annotations/{file}\.txt", "the split 'official' is read from it"
        )
        stems = [line.split()[0] for line in lines if not line.startswith("#")]
        groups = parts.setdefault(part, {})
        lack = f"images of annotations/{file}.txt are not there"
        for breed, image in choose(images, stems, tree.where, lack=lack, fix=_OWN).values():
            groups.setdefault(breed, []).append(image)
    named = sorted(set().union(*parts.values()))
    return {
        part: choose(groups, named, f"{tree.where}: annotations/{_LISTS[part]}.txt", fix=_OWN)
        for part, groups in parts.items()
    }
