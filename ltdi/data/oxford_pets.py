"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 breeds of cats and dogs."""

from __future__ import annotations

import os

from ltdi.data.archive import FileTree
from ltdi.data.images import ImageSet
from ltdi.data.layout import (
    ImageFile,
    check_split,
    choose,
    decode_groups,
    find,
    halve,
    image_file,
    open_source,
    read_lines,
)
from ltdi.errors import InputError

URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
_OWN = "complete the data, or use split='own', which needs no annotations"
_LISTS = {"train": "trainval", "test": "test"}

# Breed -> name without suffix, such as "Bengal_12" -> the image.
_Breeds = dict[str, dict[str, ImageFile]]


def load(
    path: str | os.PathLike[str] | None,
    *,
    split: str | None = None,
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
    split = check_split(split, ("own", "official"), "oxford-pets")
    with open_source(path, "Oxford-IIIT Pets", ("oxford-iiit-pet.zip",)) as tree:
        breeds = _breeds(tree)
        if split == "own":
            images = {breed: list(group.values()) for breed, group in sorted(breeds.items())}
            parts = dict(zip(_LISTS, halve(images, seed, tree.where), strict=True))
        else:
            parts = _annotated(tree, breeds)
        return {
            part: decode_groups(f"oxford-pets-{part}", groups, size=size, channels=channels)
            for part, groups in parts.items()
        }


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
