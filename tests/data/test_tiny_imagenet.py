"""`ltdi.data.tiny_imagenet`: both official parts pooled, classes in their parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltdi import data
from ltdi.data import splits, tiny_imagenet
from ltdi.data.images import decode
from ltdi.errors import DamagedFileError, InputError

from .conftest import png, write, zipped
from .fakes import tiny_imagenet as fake

ROOT = "tiny-imagenet-200"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zipped(tmp_path_factory.mktemp("tiny") / f"{ROOT}.zip", fake())


def without(pattern: str) -> dict[str, bytes]:
    return {n: d for n, d in fake().items() if not re.fullmatch(pattern, n)}


@pytest.mark.parametrize(("split", "lists"), [(None, splits.TIERED), ("mini", splits.MINI)])
def test_splits_pool_both_parts(packed: Path, split: str | None, lists: splits.Split) -> None:
    parts = data.load("tiny-imagenet", packed, size=8, channels=3, split=split)
    assert {part: s.classes for part, s in parts.items()} == lists
    files = fake()
    wnids = files[f"{ROOT}/wnids.txt"].decode().split()
    for images in parts.values():
        assert (images.counts == 3).all()
        wnid = images.classes[-1]
        names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(2)]
        names.append(f"val/images/val_{wnids.index(wnid)}.JPEG")
        for image, name in zip(images.images[-3:], names, strict=True):
            expected = decode(files[f"{ROOT}/{name}"], size=8, channels=3, where=name)
            assert torch.equal(image, expected)


def test_all_classes_as_one_part_from_every_packing(tmp_path: Path, packed: Path) -> None:
    write(tmp_path, fake())
    first, *others = (
        data.load("tiny-imagenet", p, size=4, channels=1, split="all")["all"]
        for p in (packed, packed.parent, tmp_path, tmp_path / ROOT)
    )
    assert first.classes[0] == "n00000001"
    assert set(splits.TIERED["train"]) < set(first.classes)
    for other in others:
        assert other.classes == first.classes
        assert torch.equal(other.images, first.images)


def test_words(tmp_path: Path, packed: Path) -> None:
    words = tiny_imagenet.words(packed)
    classes = data.load("tiny-imagenet", packed, size=4, channels=1, split="all")["all"].classes
    assert tuple(words) == classes
    assert words["n00000001"] == "word 0, its synonym"
    cut = fake() | {f"{ROOT}/words.txt": b"n00000001\tone"}
    with pytest.raises(InputError, match="classes have no words"):
        tiny_imagenet.words(zipped(tmp_path / "x.zip", cut))
    with pytest.raises(InputError, match=r"no wnids\.txt"):
        tiny_imagenet.words(zipped(tmp_path / "y.zip", without(r".*/wnids\.txt")))


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (r".*/val_annotations\.txt", r"no val/val_annotations\.txt"),
        (r".*/val_7\.JPEG", r"'val_7\.JPEG' is without an image"),
        (r".*/val/images/.*", r"no val/images/\*\.JPEG"),
        (r".*/train/.*", r"no train/<wnid>/images/\*\.JPEG"),
    ],
)
def test_missing_files(tmp_path: Path, gone: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_imagenet.load(zipped(tmp_path / "x.zip", without(gone)), size=4, channels=1)


def test_fewer_images_are_no_fault(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", without(r".*/n\d+_0\.JPEG"))
    parts = tiny_imagenet.load(path, split="mini", size=4, channels=1)
    assert all((s.counts == 2).all() for s in parts.values())


def test_images_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    extra = fake() | {f"{ROOT}/val/images/val_999.JPEG": png()}
    with pytest.raises(InputError, match=r"'val_999\.JPEG' is without a line"):
        tiny_imagenet.load(zipped(tmp_path / "x.zip", extra))
    name = f"{ROOT}/val/val_annotations.txt"
    spaces = fake()[name].split(b"\n", 1)[0].replace(b"\t", b" ")
    with pytest.raises(InputError, match=r"line without a label: 'val_0\.JPEG n"):
        tiny_imagenet.load(zipped(tmp_path / "y.zip", fake() | {name: spaces}))


def test_missing_classes_are_named(tmp_path: Path) -> None:
    wnid = splits.TIERED["val"][3]
    row = fake()[f"{ROOT}/wnids.txt"].decode().split().index(wnid)
    files = {n: d for n, d in fake().items() if wnid not in n and f"val_{row}." not in n}
    labels = files[f"{ROOT}/val/val_annotations.txt"].decode().split("\n")
    kept = "\n".join(line for line in labels if wnid not in line)
    files[f"{ROOT}/val/val_annotations.txt"] = kept.encode()
    path = zipped(tmp_path / "x.zip", files)
    with pytest.raises(InputError, match=f"1 of 17 classes have no image: '{wnid}'"):
        tiny_imagenet.load(path, size=4, channels=1)
    assert wnid not in tiny_imagenet.load(path, split="all", size=4, channels=1)["all"].classes


def test_bad_names_and_damage(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'tiered'"):
        data.load("tiny-imagenet", packed, size=4, channels=1, split="tired")
    with pytest.raises(InputError, match="data_dir"):
        data.load("tiny-imagenet", size=4, channels=1)
    name = f"{splits.MINI['test'][0]}_1.JPEG"
    files = {n: d[:70] if n.endswith(name) else d for n, d in fake().items()}
    with pytest.raises(DamagedFileError, match=name):
        tiny_imagenet.load(zipped(tmp_path / "x.zip", files), split="mini", size=4, channels=1)


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "sizes"),
    [("mini", [14, 6, 5]), pytest.param("tiered", [61, 17, 45], marks=pytest.mark.slow)],
)
def test_real_tiny_imagenet(real: Callable[[str], Path], split: str, sizes: list[int]) -> None:
    path = real("tiny-imagenet")
    parts = data.load("tiny-imagenet", path, size=64, channels=3, split=split)
    assert [len(s.classes) for s in parts.values()] == sizes
    assert len({int(n) for s in parts.values() for n in s.counts}) == 1
    words = tiny_imagenet.words(path)
    assert len(words) == 200
    assert words["n01443537"].startswith("goldfish")
