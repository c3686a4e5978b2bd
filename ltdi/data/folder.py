"""Any directory, zip or `.tar.gz` of images laid out as `<class>/<image>`."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from torch import Tensor

from ltdi.data.archive import FileTree, open_tree, stem_of
from ltdi.data.images import ImageSet
from ltdi.data.layout import Groups, decode_groups, image_file
from ltdi.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
# Images that would be missed if they were passed over like other files.
UNREAD = frozenset(
    {".avif", ".cr2", ".dng", ".heic", ".heif", ".jfif", ".jp2", ".nef", ".pgm", ".ppm", ".psd"}
    | {".raw", ".svg", ".tga"}
)
_LAYOUT = "lay the images out as <class>/<image>, one folder a class"


def load(
    path: str | os.PathLike[str], *, size: int, channels: int, min_per_class: int = 1
) -> ImageSet:
    """Read every image below `path`; a class is a folder that directly holds images.

    Wrapper folders common to all classes are stripped: "data/cat/1.png" and "data/dog/1.png"
    give the classes "cat" and "dog"; nested folders give classes such as "Greek/character01".
    Files that are not images by their suffix are ignored; a folder of nothing else beside those of
    the classes is not.

    Args:
        path: A directory, a zip or a `.tar.gz`.
        size: Height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        min_per_class: The fewest images a class may have.

    Returns:
        The images, classes and files sorted by code point.

    Raises:
        InputError: When there is no image, an image lies outside a class folder, a class has too
            few images or its folder none, or the path is missing or unsafe.
        DamagedFileError: For an unreadable image or archive.
    """
    with open_tree(path) as tree:
        groups = classes_of(tree)
        _check_counts(groups, min_per_class, tree.where)
        return decode_groups(name_of(path), groups, size=size, channels=channels)


def name_of(path: str | os.PathLike[str]) -> str:
    """What a directory or an archive of images is called."""
    return stem_of(Path(path).resolve().name)


def load_unlabelled(path: str | os.PathLike[str], *, size: int, channels: int) -> Tensor:
    """Read every image below `path`, in whatever folders: uint8 [n, channels, size, size].

    Raises:
        InputError: When there is no image, or the path is missing or unsafe.
        DamagedFileError: For an unreadable image or archive.
    """
    with open_tree(path) as tree:
        files = [image_file(tree, name) for name in _images(tree, "give images")]
        return decode_groups("pool", {"all": files}, size=size, channels=channels).images


def _images(tree: FileTree, fix: str) -> list[str]:
    """The names of all images; `fix` is what to do where there are none."""
    known = ", ".join(sorted(SUFFIXES))
    suffix = {n: posixpath.splitext(n)[1].lower() for n in tree.names}
    unread = [n for n in tree.names if suffix[n] in UNREAD]
    if unread:
        raise InputError(
            f"{len(unread)} images are of a format that is not read, such as {unread[0]!r}",
            where=tree.where,
            fix=f"convert them to one of {known}, or remove them",
        )
    names = [n for n in tree.names if suffix[n] in SUFFIXES]
    if not names:
        raise InputError(
            f"no image among {len(tree.names)} files",
            where=tree.where,
            fix=f"{fix}; known suffixes: {known}",
        )
    return names


def classes_of(tree: FileTree, layout: str = _LAYOUT) -> Groups:
    """The images of each class; see `load` for names and errors, which advise `layout`."""
    folders: dict[str, list[str]] = {}
    for name in _images(tree, layout):
        folders.setdefault(posixpath.dirname(name), []).append(name)
    top = "" if "" in folders else posixpath.commonpath(folders)
    if top in folders and (top == "" or len(folders) > 1):
        raise InputError(
            f"{len(folders[top])} images lie outside any class folder, such as {folders[top][0]!r}",
            where=tree.where,
            fix=layout,
        )
    _check_empty(tree, folders)
    # A lone class keeps its own folder's name.
    prefix = top if len(folders) > 1 else posixpath.dirname(top)
    return {
        posixpath.relpath(f, prefix or "."): [image_file(tree, n) for n in names]
        for f, names in folders.items()
    }


def _check_empty(tree: FileTree, classes: Collection[str]) -> None:
    """Refuse a folder beside those of the classes that holds no image: a class would be lost."""
    homes = {posixpath.dirname(c) for c in classes}
    used = {
        parent.as_posix()
        for c in classes
        for parent in (PurePosixPath(c), *PurePosixPath(c).parents)
    }
    empty = [f for f in tree.folders if f not in used and posixpath.dirname(f) in homes]
    if empty:
        raise InputError(
            f"the folder {empty[0]!r} lies beside those of the classes and holds no image",
            where=tree.where,
            fix=f"add images, or remove it; known suffixes: {', '.join(sorted(SUFFIXES))}",
        )


def _check_counts(groups: Groups, least: int, where: str) -> None:
    few = {c: len(names) for c, names in sorted(groups.items()) if len(names) < least}
    if few:
        listed = ", ".join(f"{c!r} ({n})" for c, n in list(few.items())[:5])
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise InputError(
            f"{len(few)} of {len(groups)} classes have fewer than {least} images: {listed}{more}",
            where=where,
            fix="add images to these classes, remove their folders, "
            "or ask for fewer shots and queries",
        )
