"""Tiny-ImageNet: 200 ImageNet classes at 64x64, with category-disjoint few-shot splits.

A folder or archive with `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` and
`val/val_annotations.txt`; a class's train and val images are pooled. The splits are "tiered" (the
61 / 17 / 45 classes that belong to the train / val / test classes of tiered-ImageNet, Ren et al.,
2018, disjoint by category; the other 77 are left out), "mini" (likewise 14 / 6 / 5 of
mini-ImageNet, Ravi and Larochelle, 2017) and "all" (every class, as one part). Classes are
WordNet ids, see `words`.
"""

from __future__ import annotations

import os

from ltdi.data import splits
from ltdi.data.archive import FileTree
from ltdi.data.layout import (
    Groups,
    ImageSource,
    choose,
    find,
    image_file,
    open_source,
    read_lines,
)
from ltdi.errors import InputError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_ARCHIVES = ("tiny-imagenet-200.zip",)


def words(path: str | os.PathLike[str]) -> dict[str, str]:
    """What the classes are called: WordNet id -> its synonyms, "goldfish, Carassius auratus".

    Args:
        path: Where the set is; `wnids.txt` lists the classes, `words.txt` has their words.

    Raises:
        InputError: When one of the two files is missing, or a class has no words.
    """
    with open_source(path, "Tiny-ImageNet", _ARCHIVES) as tree:
        lines = read_lines(tree, r"words\.txt", "it names the classes")
        named = dict(line.split("\t", 1) for line in lines if "\t" in line)
        wnids = read_lines(tree, r"wnids\.txt", "it lists the classes")
        return choose(named, wnids, f"{tree.where}: words.txt", lack="classes have no words")


def _parts(tree: FileTree, split: str, seed: int) -> dict[str, Groups]:
    groups = _pooled(tree)
    every = {"all": tuple(groups)}
    lists = {"tiered": splits.TIERED, "mini": splits.MINI, "all": every}[split]
    fix = "complete the data, or use split='all'"
    return {part: choose(groups, names, tree.where, fix=fix) for part, names in lists.items()}


def _pooled(tree: FileTree) -> Groups:
    """Class -> its images, those of the official training part first."""
    groups: Groups = {}
    for match, name in find(tree, r"train/(?P<wnid>n\d{8})/images/[^/]+\.(?i:jpeg)"):
        groups.setdefault(match["wnid"], []).append(image_file(tree, name))
    held = {m["file"]: name for m, name in find(tree, r"val/images/(?P<file>[^/]+\.(?i:jpeg))")}
    if not groups or not held:
        raise InputError(
            f"no {'val/images' if groups else 'train/<wnid>/images'}/*.JPEG "
            f"among {len(tree.names)} files",
            where=tree.where,
            fix=f"give {URL}, packed or unpacked",
        )
    labels = _labels(tree)
    strays = sorted(held.keys() ^ labels.keys())
    if strays:
        lack = "a line in val_annotations.txt" if strays[0] in held else "an image"
        raise InputError(
            f"{len(strays)} of the val images and their labels do not fit: "
            f"{strays[0]!r} is without {lack}",
            where=tree.where,
            fix=f"unpack {URL} again",
        )
    for file, name in held.items():
        groups.setdefault(labels[file], []).append(image_file(tree, name))
    return groups


def _labels(tree: FileTree) -> dict[str, str]:
    """File name of each val image -> WordNet id."""
    purpose = "it has the labels of the val images"
    lines = read_lines(tree, r"val/val_annotations\.txt", purpose)
    rows = [line.split("\t") for line in lines]
    short = next((line for line, row in zip(lines, rows, strict=True) if len(row) < 2), None)
    if short is not None:
        raise InputError(
            f"val_annotations.txt has a line without a label: {short!r}",
            where=tree.where,
            fix="its columns are the file, its WordNet id and a box, between tabs",
        )
    return {row[0]: row[1] for row in rows}


load = ImageSource(
    "tiny-imagenet", "Tiny-ImageNet", ("tiered", "mini", "all"), _parts, _ARCHIVES, size=64
)
