"""CIFAR's binary version: how the two data sets are distributed, and their records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import numpy as np

from ltdi.data.archive import FileTree
from ltdi.data.layout import Groups, ImageFile, find, read_lines
from ltdi.errors import DamagedFileError, InputError

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE

# Part -> class -> images.
Parts = dict[str, Groups]


@dataclass(frozen=True)
class Family:
    """How one of the two data sets is distributed.

    Attributes:
        title: For messages.
        stem: Of the names of the official archives.
        classes: In the order of the official labels.
        binary: File of the binary version -> the part that it holds.
        labels: Label bytes before each record's pixels; the last one is the class.
        names: The binary version's list of class names.
        python: Matches the names that only the python version has.
    """

    title: str
    stem: str
    classes: tuple[str, ...]
    binary: Mapping[str, str]
    labels: int
    names: str
    python: str

    @property
    def url(self) -> str:
        """Where the binary version is."""
        return f"https://www.cs.toronto.edu/~kriz/{self.stem}-binary.tar.gz"

    @property
    def again(self) -> str:
        """What to do about a damaged binary version."""
        return f"unpack {self.url} again"

    @property
    def archives(self) -> tuple[str, ...]:
        """Names under which a folder may hold the set packed."""
        return f"{self.stem.replace('-', '')}.zip", f"{self.stem}-binary.tar.gz"


def records(tree: FileTree, family: Family) -> Parts:
    """Images of the binary version: label bytes, then the red, green and blue plane.

    Returns:
        The images of each part and class in the order of the files; empty when there is no such
        file at all.

    Raises:
        InputError: When some of the files are missing, or classes are called otherwise.
        DamagedFileError: For a file that is cut off, or a label beyond the classes.
    """
    found = {
        match["file"]: name
        for match, name in find(tree, f"(?P<file>{'|'.join(map(re.escape, family.binary))})")
    }
    if not found:
        return {}
    absent = [file for file in family.binary if file not in found]
    if absent:
        raise InputError(
            f"{', '.join(absent)} of {family.title}'s binary version is missing",
            where=tree.where,
            fix=family.again,
        )
    _check_names(tree, family)
    parts: Parts = {part: {} for part in family.binary.values()}
    for file, name in found.items():
        data, where = tree.read(name), tree.label(name)
        for row, label in enumerate(_labels(data, family, where)):
            start = row * (family.labels + _PIXELS) + family.labels
            image = ImageFile(f"{where}, record {row}", partial(_ppm, data, start))
            parts[family.binary[file]].setdefault(family.classes[label], []).append(image)
    return parts


def _labels(data: bytes, family: Family, where: str) -> list[int]:
    length = family.labels + _PIXELS
    if not data or len(data) % length:
        raise DamagedFileError(
            f"{len(data):,} bytes are not a whole number of records of {length:,}",
            where=where,
            fix=family.again,
        )
    labels: list[int] = np.frombuffer(data, np.uint8)[family.labels - 1 :: length].tolist()
    if max(labels) >= len(family.classes):
        raise DamagedFileError(
            f"label {max(labels)} is beyond {family.title}'s {len(family.classes)} classes",
            where=where,
            fix=family.again,
        )
    return labels


def _check_names(tree: FileTree, family: Family) -> None:
    """Labels are numbers: another order of names would put classes into the wrong parts."""
    names = read_lines(tree, family.names, "it names the labels")
    for label, (given, ours) in enumerate(zip_longest(names, family.classes)):
        if given != ours:
            raise InputError(
                f"label {label} is called {given!r}, {family.title} calls it {ours!r}",
                where=tree.where,
                fix=family.again,
            )


def _ppm(data: bytes, start: int) -> bytes:
    """One record's pixels as an image file, so that one decoder serves every version."""
    planes = np.frombuffer(data, np.uint8, _PIXELS, start).reshape(3, _SIDE, _SIDE)
    return f"P6 {_SIDE} {_SIDE} 255\n".encode() + planes.transpose(1, 2, 0).tobytes()
