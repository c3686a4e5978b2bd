"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 breeds of cats and dogs, as "Egyptian_Mau".

A folder or zip with `images/<Breed>_<N>.jpg` and `annotations/{trainval,test}.txt`. The splits,
into "train" and "test" of the same breeds, are "own" (half of each breed's images are for
training, drawn by the seed; needs no annotations) and "official" (trainval and test as
annotated).
"""

from __future__ import annotations

from ltdi.data.archive import FileTree
from ltdi.data.layout import (
    Groups,
    ImageFile,
    ImageSource,
    choose,
    find,
    halve,
    image_file,
    read_lines,
)
from ltdi.errors import InputError

URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
_OWN = "complete the data, or use split='own', which needs no annotations"
_LISTS = {"train": "trainval", "test": "test"}

# Breed -> name without suffix, such as "Bengal_12" -> the image.
_Breeds = dict[str, dict[str, ImageFile]]


def _parts(tree: FileTree, split: str, seed: int) -> dict[str, Groups]:
    breeds = _breeds(tree)
    if split == "official":
        return _annotated(tree, breeds)
    images = {breed: list(group.values()) for breed, group in sorted(breeds.items())}
    return dict(zip(_LISTS, halve(images, seed, tree.where), strict=True))


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


def _annotated(tree: FileTree, breeds: _Breeds) -> dict[str, Groups]:
    images = {
        stem: (breed, file) for breed, group in breeds.items() for stem, file in group.items()
    }
    parts: dict[str, Groups] = {}
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


load = ImageSource(
    "oxford-pets",
    "Oxford-IIIT Pets",
    ("own", "official"),
    _parts,
    ("oxford-iiit-pet.zip",),
    size=96,
)
