"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), and the few-shot splits CIFAR-FS and FC100."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from ltdi.data import splits
from ltdi.data.archive import FileTree
from ltdi.data.cifar_binary import Family, Parts, records
from ltdi.data.images import ImageSet
from ltdi.data.layout import (
    ImageFile,
    check_split,
    choose,
    decode_groups,
    find,
    image_file,
    open_source,
)
from ltdi.errors import InputError, unknown

CIFAR10 = Family(
    "CIFAR-10",
    "cifar-10",
    splits.CIFAR10,
    {f"data_batch_{i}.bin": "train" for i in range(1, 6)} | {"test_batch.bin": "test"},
    labels=1,
    names=r"batches\.meta\.txt",
    python=r"batches\.meta|data_batch_1|cifar-10-python\.tar\.gz",
)
CIFAR100 = Family(
    "CIFAR-100",
    "cifar-100",
    splits.CIFAR100,
    {"train.bin": "train", "test.bin": "test"},
    labels=2,
    names=r"fine_label_names\.txt",
    python=r"meta|cifar-100-python\.tar\.gz",
)
# Name -> the images, and the classes of each part; None is the official split of the images.
SETS: dict[str, tuple[Family, splits.Split | None]] = {
    "cifar10": (CIFAR10, None),
    "cifar100": (CIFAR100, None),
    "cifar-fs": (CIFAR100, splits.CIFAR_FS),
    "fc100": (CIFAR100, splits.FC100),
}


def load(
    path: str | os.PathLike[str] | None,
    source: str,
    *,
    split: str | None = None,
    size: int = 32,
    channels: int = 3,
    seed: int = 0,
) -> dict[str, ImageSet]:
    """Read one of `SETS` from images in folders, or from the official binary version.

    Args:
        path: A folder or zip of `{train,test}/<class>/<image>.png`; the binary version as
            `cifar-100-binary.tar.gz`, as a folder, or as a zip; a folder that holds one of these
            archives; or, for the few-shot sets, `data/<class>/<image>.png` as in the release of
            CIFAR-FS.
        source: "cifar10" or "cifar100", whose official parts have the same classes; "cifar-fs"
            (Bertinetto et al., 2019: 64 / 16 / 20 classes) or "fc100" (Oreshkin et al., 2018:
            60 / 20 / 20 classes, disjoint by superclass), which pool the official parts.
        split: "official", the only one of each source.
        size: Height and width of the images, in pixels; the originals have 32.
        channels: 1 (grey) or 3 (RGB).
        seed: Not looked at.

    Returns:
        "train" and "test", or "train", "val" and "test"; classes and files sorted by code point.

    Raises:
        InputError: For an unknown source or split, the python version (pickles), or missing files.
        DamagedFileError: For an unreadable image, record or archive.
    """
    if source not in SETS:
        raise unknown("CIFAR data set", source, SETS)
    check_split(split, ("official",), source)
    family, lists = SETS[source]
    with open_source(path, source, family.archives) as tree:
        parts = records(tree, family) or _files(tree, family)
        if not parts:
            raise _not_found(tree, family)
        groups = (
            {part: _part(tree, family, parts, part) for part in ("train", "test")}
            if lists is None
            else _pooled(tree, family, parts, lists)
        )
        return {
            part: decode_groups(f"{source}-{part}", images, size=size, channels=channels)
            for part, images in groups.items()
        }


def _files(tree: FileTree, family: Family) -> Parts:
    """Images laid out in folders."""
    classes = "|".join(map(re.escape, family.classes))
    layout = rf"(?P<part>train|test|data)/(?P<label>{classes})/[^/]+\.(?i:png|jpe?g)"
    parts: Parts = {}
    for match, name in find(tree, layout):
        groups = parts.setdefault(match["part"], {})
        groups.setdefault(match["label"], []).append(image_file(tree, name))
    return parts


def _part(tree: FileTree, family: Family, parts: Parts, part: str) -> dict[str, list[ImageFile]]:
    return choose(parts.get(part, {}), family.classes, f"{tree.where}, part {part!r}")


def _pooled(
    tree: FileTree, family: Family, parts: Parts, lists: Mapping[str, Sequence[str]]
) -> Parts:
    """All images of each part's classes, those of the official training part first."""
    # CIFAR-FS's own release has one folder, "data", and no official split of the images.
    official = ("data",) if set(parts) == {"data"} else ("train", "test")
    halves = [_part(tree, family, parts, part) for part in official]
    return {
        part: {c: [image for half in halves for image in half[c]] for c in classes}
        for part, classes in lists.items()
    }


def _not_found(tree: FileTree, family: Family) -> InputError:
    if find(tree, family.python):
        return InputError(
            f"this is the python version of {family.title}: its files are pickles, "
            "which can run any code when they are read",
            where=tree.where,
            fix=f"fetch the binary version, {family.url}, and give that",
        )
    return InputError(
        f"no {family.title} images among {len(tree.names)} files",
        where=tree.where,
        fix=f"give {{train,test}}/<class>/<image>.png as a folder or zip, or {family.url}",
    )
