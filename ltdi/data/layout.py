"""Finding the files of a data set in what a user gives, and decoding them class by class."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from ltdi import errors
from ltdi.data.archive import FileTree, open_tree
from ltdi.data.images import ImageSet, check_geometry, decode
from ltdi.errors import InputError

_T = TypeVar("_T")


class ImageFile(NamedTuple):
    """One image that has not been read yet: its name, for messages, and what reads its bytes."""

    where: str
    read: Callable[[], bytes]


def image_file(tree: FileTree, name: str) -> ImageFile:
    """The file `name` of `tree`."""
    return ImageFile(tree.label(name), partial(tree.read, name))


def readable(name: str) -> str:
    """A class name as text: "Egyptian_Mau" -> "Egyptian Mau"; folders before it are left out."""
    return " ".join(name.rpartition("/")[2].replace("_", " ").split())


def check_split(split: str | None, known: Sequence[str], title: str) -> str:
    """`split`, or the first of `known` for None.

    Raises:
        InputError: For a name that is not among `known`.
    """
    if split is None:
        return known[0]
    if split not in known:
        raise errors.unknown("split", split, known, where=title)
    return split


def locate(path: str | os.PathLike[str] | None, title: str, archives: Sequence[str] = ()) -> Path:
    """The first of `archives` that lies directly in the folder `path`, else `path` itself.

    Raises:
        InputError: When there is no path, which the set called `title` cannot do without.
    """
    if path is None:
        raise InputError(
            f"{title} is not embedded",
            where="data_dir",
            fix="give the folder or archive that holds it",
        )
    root = Path(path)
    return next((root / a for a in archives if (root / a).is_file()), root)


def open_source(
    path: str | os.PathLike[str] | None, title: str, archives: Sequence[str] = ()
) -> FileTree:
    """Open what `locate` finds: a folder, a zip or a `.tar.gz`.

    Raises:
        InputError: When the path is missing, or holds an entry that points outside it.
        DamagedFileError: For an unreadable archive.
    """
    return open_tree(locate(path, title, archives))


def find(tree: FileTree, pattern: str) -> list[tuple[re.Match[str], str]]:
    """Files whose names match `pattern` below one folder, wherever that folder lies.

    Args:
        tree: Where to look.
        pattern: A regular expression with named groups, for the whole rest of the name.

    Returns:
        Matches and full names, sorted by name.

    Raises:
        InputError: When there are such files below two folders: two copies of the set.
    """
    rule = re.compile(rf"(?P<_root>(?:.*/)?)(?:{pattern})")
    found = [(match, name) for name in tree.names if (match := rule.fullmatch(name))]
    roots = sorted({match["_root"] for match, _ in found})
    if len(roots) > 1:
        raise InputError(
            f"the files are there more than once: in {roots[0] or './'!r} and in {roots[1]!r}",
            where=tree.where,
            fix="give the folder of one of them",
        )
    return found


def read_lines(tree: FileTree, pattern: str, purpose: str) -> list[str]:
    """The lines of the text file that matches `pattern`, a fixed name; empty ones are left out.

    Raises:
        InputError: When there is no line; `purpose` says what they are needed for.
    """
    found = find(tree, pattern)
    text = tree.read(found[0][1]).decode("utf-8", "replace") if found else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        file = pattern.replace("\\", "")
        raise InputError(
            f"{file} is empty" if found else f"there is no {file}",
            where=tree.where,
            fix=f"put it back where the official layout has it; {purpose}",
        )
    return lines


def halve(
    groups: Mapping[str, Sequence[_T]], seed: int, where: str
) -> tuple[dict[str, list[_T]], dict[str, list[_T]]]:
    """Split every class in two at random; of an odd number the first half gets one more.

    Raises:
        InputError: If a class has one item only.
    """
    rng = torch.Generator().manual_seed(seed)
    first, second = {}, {}
    for name, items in groups.items():
        if len(items) < 2:
            raise InputError(
                f"class {name!r} has {len(items)} image, and two halves need two",
                where=where,
                fix="give every class two images or more",
            )
        order = torch.randperm(len(items), generator=rng).tolist()
        cut = (len(items) + 1) // 2
        first[name] = [items[i] for i in sorted(order[:cut])]
        second[name] = [items[i] for i in sorted(order[cut:])]
    return first, second


def choose(
    groups: Mapping[str, _T],
    names: Sequence[str],
    where: str,
    *,
    lack: str = "classes have no image",
    fix: str = "complete the data",
) -> dict[str, _T]:
    """The given items of `groups`, in the order of `names`.

    Raises:
        InputError: Saying which are not there, what they `lack`, and how to `fix` it.
    """
    absent = [n for n in names if n not in groups]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise InputError(
            f"{len(absent)} of {len(names)} {lack}: {', '.join(map(repr, absent[:5]))}{more}",
            where=where,
            fix=fix,
        )
    return {n: groups[n] for n in names}


def decode_groups(
    name: str, groups: Mapping[str, Sequence[ImageFile]], *, size: int, channels: int
) -> ImageSet:
    """Decode images class by class into one tensor; the memory is the result's and no more.

    Raises:
        DamagedFileError: For an unreadable image.
        InputError: For an impossible geometry, or a class without images.
    """
    check_geometry(size, channels)
    classes = tuple(sorted(groups))
    files = [file for c in classes for file in groups[c]]
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    for row, file in enumerate(files):
        images[row] = decode(file.read(), size=size, channels=channels, where=file.where)
    offsets = torch.tensor([0, *(len(groups[c]) for c in classes)]).cumsum(0)
    return ImageSet(name, images, offsets, classes)


# Class -> its images; and those of each part.
Groups = dict[str, list[ImageFile]]


@dataclass(frozen=True)
class ImageSource:
    """A data set in its official layout; call it to load it.

    Attributes:
        name: Its key in `ltdi.data.SOURCES`.
        title: For messages.
        splits: Their names, the usual one first.
        parts: (tree, split, seed) -> part -> class -> images.
        archives: File names under which the set is distributed.
        size: Height and width of the images, in pixels, where nothing else is asked for.
        channels: 1 (grey) or 3 (RGB), likewise.
        turned: Whether turns by 90, 180 and 270 degrees are classes of their own.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    parts: Callable[[FileTree, str, int], Mapping[str, Groups]]
    archives: tuple[str, ...] = ()
    size: int = 64
    channels: int = 3
    turned: bool = False

    def __call__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        split: str | None = None,
        size: int | None = None,
        channels: int | None = None,
        seed: int = 0,
    ) -> dict[str, ImageSet]:
        """Read a folder, a zip or a `.tar.gz` with the set, or a folder that holds one of these.

        Args:
            path: Where it is.
            split: One of `splits`.
            size: Height and width of the images, in pixels.
            channels: 1 (grey) or 3 (RGB).
            seed: Of splits that are drawn.

        Returns:
            The parts by name; classes and files are sorted by code point.

        Raises:
            InputError: For an unknown split, or files or classes that are missing or do not fit.
            DamagedFileError: For an unreadable image or archive.
        """
        split = check_split(split, self.splits, self.name)
        size = self.size if size is None else size
        channels = self.channels if channels is None else channels
        with open_source(path, self.title, self.archives) as tree:
            sets = {
                part: decode_groups(f"{self.name}-{part}", groups, size=size, channels=channels)
                for part, groups in self.parts(tree, split, seed).items()
            }
        return {part: s.with_rotations() if self.turned else s for part, s in sets.items()}
