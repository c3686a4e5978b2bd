"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), and the few-shot splits CIFAR-FS and FC100.

Images in folders, `{train,test}/<class>/<image>.png`, or the official binary version; for the
few-shot sets also `data/<class>/<image>.png`, as in the release of CIFAR-FS. "cifar10" and
"cifar100" have the official parts, of the same classes; "cifar-fs" (Bertinetto et al., 2019: 64 /
16 / 20 classes) and "fc100" (Oreshkin et al., 2018: 60 / 20 / 20 classes, disjoint by superclass)
pool them. The python version is refused: it is pickles.
"""

from __future__ import annotations

import re
from functools import partial

from ltdi.data import splits
from ltdi.data.archive import FileTree
from ltdi.data.cifar_binary import Family, Parts, records
from ltdi.data.layout import Groups, ImageSource, choose, find, image_file
from ltdi.errors import InputError

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


def _parts(
    tree: FileTree, split: str, seed: int, *, family: Family, lists: splits.Split | None
) -> Parts:
    parts = records(tree, family) or _files(tree, family)
    if not parts:
        raise _not_found(tree, family)
    if lists is None:
        return {part: _part(tree, family, parts, part) for part in ("train", "test")}
    return _pooled(tree, family, parts, lists)


def _files(tree: FileTree, family: Family) -> Parts:
    """Images laid out in folders."""
    classes = "|".join(map(re.escape, family.classes))
    layout = rf"(?P<part>train|test|data)/(?P<label>{classes})/[^/]+\.(?i:png|jpe?g)"
    parts: Parts = {}
    for match, name in find(tree, layout):
        groups = parts.setdefault(match["part"], {})
        groups.setdefault(match["label"], []).append(image_file(tree, name))
    return parts


def _part(tree: FileTree, family: Family, parts: Parts, part: str) -> Groups:
    return choose(parts.get(part, {}), family.classes, f"{tree.where}, part {part!r}")


def _pooled(tree: FileTree, family: Family, parts: Parts, lists: splits.Split) -> Parts:
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
        fix=f"give {{train,test}}/<class>/<image>.png as a folder or archive, or {family.url}",
    )


def _source(name: str, family: Family, lists: splits.Split | None = None) -> ImageSource:
    parts = partial(_parts, family=family, lists=lists)
    return ImageSource(name, name, ("official",), parts, family.archives, size=32)


SETS = {
    source.name: source
    for source in (
        _source("cifar10", CIFAR10),
        _source("cifar100", CIFAR100),
        _source("cifar-fs", CIFAR100, splits.CIFAR_FS),
        _source("fc100", CIFAR100, splits.FC100),
    )
}
