"""`ltdi.data.oxford_pets`: the same breeds in both parts, no image in both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltdi import data
from ltdi.data import oxford_pets
from ltdi.errors import DamagedFileError, InputError

from .conftest import png, write, zipped
from .fakes import pets

BREEDS = ("Bengal", "Egyptian_Mau", "american_bulldog")


def test_own_split_halves_every_breed_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path, pets())
    first, again, other = (
        data.load("oxford-pets", path, size=12, channels=3, seed=s) for s in (0, 0, 1)
    )
    assert list(first) == ["train", "test"]
    assert [s.classes for s in first.values()] == [BREEDS, BREEDS]
    assert [s.counts.tolist() for s in first.values()] == [[2, 3, 3], [2, 3, 2]]
    assert torch.equal(first["test"].images, again["test"].images)
    assert not torch.equal(first["test"].images, other["test"].images)
    for parts in (first, other):
        images = torch.cat([s.images for s in parts.values()]).flatten(1)
        assert len(images.unique(dim=0)) == 15


def test_official_split_is_as_annotated(tmp_path: Path) -> None:
    path = write(tmp_path, {f"oxford-iiit-pet/{n}": d for n, d in pets().items()})
    parts = data.load("oxford-pets", path, size=12, channels=3, split="official")
    assert [s.counts.tolist() for s in parts.values()] == [[2, 4, 3], [2, 2, 2]]
    packed = zipped(tmp_path / "oxford-iiit-pet.zip", pets()).parent
    again = data.load("oxford-pets", packed, size=12, channels=3, split="official", seed=5)
    assert all(torch.equal(parts[p].images, again[p].images) for p in parts)


def test_breeds_without_an_image_in_a_part(tmp_path: Path) -> None:
    rows = pets()["annotations/test.txt"].decode().split("\n")
    kept = "\n".join(row for row in rows if not row.startswith("Bengal"))
    path = zipped(tmp_path / "x.zip", pets() | {"annotations/test.txt": kept.encode()})
    with pytest.raises(InputError, match="1 of 3 classes have no image: 'Bengal'") as caught:
        oxford_pets.load(path, split="official")
    assert "annotations/test.txt" in str(caught.value)
    assert "split='own'" in str(caught.value)
    lone = zipped(tmp_path / "y.zip", pets() | {"images/Birman_1.jpg": png()})
    with pytest.raises(InputError, match=r"'Birman' has 1 image, and two halves need two"):
        oxford_pets.load(lone)


def test_missing_files_damage_and_names(tmp_path: Path) -> None:
    images = {n: d for n, d in pets().items() if n.endswith(".jpg")}
    no_lists = zipped(tmp_path / "a.zip", images)
    assert len(oxford_pets.load(no_lists)["train"].classes) == 3
    with pytest.raises(InputError, match=r"no annotations/trainval\.txt"):
        oxford_pets.load(no_lists, split="official")
    less = {n: d for n, d in pets().items() if not n.endswith("Bengal_3.jpg")}
    with pytest.raises(InputError, match=r"annotations/trainval\.txt are not there: 'Bengal_3'"):
        oxford_pets.load(zipped(tmp_path / "b.zip", less), split="official")
    with pytest.raises(InputError, match=r"no images/<Breed>(.|\n)*images\.tar\.gz"):
        oxford_pets.load(zipped(tmp_path / "c.zip", {"Bengal/1.jpg": png()}))
    damaged = pets() | {"images/Bengal_2.jpg": png()[:40]}
    with pytest.raises(DamagedFileError, match=r"Bengal_2\.jpg"):
        oxford_pets.load(zipped(tmp_path / "d.zip", damaged))
    with pytest.raises(InputError, match="did you mean 'official'"):
        data.load("oxford-pets", no_lists, size=8, channels=1, split="officiel")
    with pytest.raises(InputError, match="data_dir"):
        data.load("oxford-pets", size=8, channels=1)


@pytest.mark.data
def test_real_pets(real: Callable[[str], Path]) -> None:
    parts = data.load("oxford-pets", real("oxford_pets"), size=32, channels=3)
    assert [len(s.classes) for s in parts.values()] == [37, 37]
    assert ((parts["train"].counts - parts["test"].counts).abs() <= 1).all()
    assert "Egyptian Mau" in map(data.readable, parts["test"].classes)
