"""`ltdi.data.splits`: the right classes, in one part each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ltdi.data import splits
from ltdi.data.splits import CIFAR10, CIFAR100, CIFAR_FS, FC100, MINI, SUPERCLASSES, TIERED, Split

# Where the lists lie among the real data.
FILES = {
    "cifar100/splits/cifar_fs": CIFAR_FS,
    "cifar100/splits/fc100": FC100,
    "tiny-imagenet/splits/tiered_imagenet": TIERED,
    "tiny-imagenet/splits/mini_imagenet": MINI,
}


@pytest.mark.parametrize(
    ("split", "sizes"),
    [(CIFAR_FS, (64, 16, 20)), (FC100, (60, 20, 20)), (TIERED, (61, 17, 45)), (MINI, (14, 6, 5))],
)
def test_sizes_and_no_class_in_two_parts(split: Split, sizes: tuple[int, ...]) -> None:
    assert list(split) == ["train", "val", "test"]
    assert tuple(map(len, split.values())) == sizes
    assert len(set().union(*split.values())) == sum(sizes)
    assert all(list(names) == sorted(names) for names in split.values())


def test_classes_of_cifar() -> None:
    assert len(CIFAR10) == 10
    assert len(SUPERCLASSES) == 20
    assert {len(classes) for classes in SUPERCLASSES.values()} == {5}
    assert len(set(CIFAR100)) == 100
    for split in (CIFAR_FS, FC100):
        assert sorted(c for names in split.values() for c in names) == list(CIFAR100)
    # The labels of both sets are alphabetical.
    assert list(CIFAR10) == sorted(CIFAR10)
    assert list(CIFAR100) == sorted(CIFAR100)


def test_no_superclass_is_in_two_parts_of_fc100() -> None:
    parts = [
        {name for name, classes in SUPERCLASSES.items() if set(classes) & set(part)}
        for part in FC100.values()
    ]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert len(set.union(*parts)) == 20


@pytest.mark.data
@pytest.mark.parametrize("files", FILES)
def test_as_published(real: Callable[[str], Path], files: str) -> None:
    for part, names in FILES[files].items():
        assert sorted(real(f"{files}_{part}.txt").read_text().split()) == list(names)


@pytest.mark.data
def test_superclasses_as_published(real: Callable[[str], Path]) -> None:
    text = real("cifar100/splits/superclasses.txt").read_text()
    rows = (line.split("\t") for line in text.splitlines())
    assert {name: set(classes.split()) for name, classes in rows} == {
        name: set(classes) for name, classes in splits.SUPERCLASSES.items()
    }
