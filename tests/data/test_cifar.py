"""`ltdi.data.cifar`: every packing gives the same images, each class in its part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltdi import data
from ltdi.data import cifar, splits
from ltdi.data.cifar import CIFAR10, CIFAR100
from ltdi.data.cifar_binary import Family
from ltdi.data.images import ImageSet, decode
from ltdi.errors import DamagedFileError, InputError

from .conftest import png, write, zipped
from .fakes import PER_CLASS, cifar_binary, cifar_folders, cifar_pixels, tarred

FAMILIES = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def same(a: dict[str, ImageSet], b: dict[str, ImageSet]) -> bool:
    return list(a) == list(b) and all(
        a[p].classes == b[p].classes
        and torch.equal(a[p].images, b[p].images)
        and torch.equal(a[p].offsets, b[p].offsets)
        for p in a
    )


@pytest.fixture(scope="module")
def folders() -> dict[str, bytes]:
    return cifar_folders(CIFAR100)


@pytest.mark.parametrize("source", FAMILIES)
def test_every_packing_gives_the_same_images(tmp_path: Path, source: str) -> None:
    family = FAMILIES[source]
    images, binary = cifar_folders(family), cifar_binary(family)
    write(tmp_path / "images", {f"wrapped/{n}": d for n, d in images.items()})
    write(tmp_path / "binary", binary)
    (tmp_path / "held").mkdir()
    (tmp_path / "held-tar").mkdir()
    paths = [
        tmp_path / "images",
        tmp_path / "binary",
        zipped(tmp_path / "mine.zip", images),
        zipped(tmp_path / "binary.zip", binary),
        tarred(tmp_path / "mine.tgz", binary),
        zipped(tmp_path / "held" / f"{source}.zip", images).parent,
        tarred(tmp_path / "held-tar" / f"{family.stem}-binary.tar.gz", binary).parent,
    ]
    first, *others = (cifar.SETS[source](path) for path in paths)
    assert [s.classes for s in first.values()] == [family.classes] * 2
    for part, n in PER_CLASS.items():
        assert (first[part].counts == n).all()
    for (part, label, i), pixels in cifar_pixels(family).items():
        row = family.classes.index(label) * PER_CLASS[part] + i
        assert torch.equal(first[part].images[row], torch.from_numpy(pixels))
    for other in others:
        assert same(first, other)


@pytest.mark.parametrize("source", ["cifar-fs", "fc100"])
def test_few_shot_sets_pool_both_official_parts(
    tmp_path: Path, folders: dict[str, bytes], source: str
) -> None:
    path = zipped(tmp_path / "x.zip", folders)
    whole, parts = cifar.SETS["cifar100"](path), cifar.SETS[source](path)
    lists = {"cifar-fs": splits.CIFAR_FS, "fc100": splits.FC100}[source]
    assert {part: s.classes for part, s in parts.items()} == lists
    for images in parts.values():
        assert (images.counts == sum(PER_CLASS.values())).all()
        for c, name in enumerate(images.classes):
            label = CIFAR100.classes.index(name)
            halves = [s.select([label]).images for s in whole.values()]
            assert torch.equal(images.select([c]).images, torch.cat(halves))
    assert same(parts, cifar.SETS[source](tarred(tmp_path / "x.tgz", cifar_binary(CIFAR100))))


def test_release_of_cifar_fs_has_one_folder(tmp_path: Path, folders: dict[str, bytes]) -> None:
    train = {n: d for n, d in folders.items() if n.startswith("train")}
    released = {f"cifar100/data{n.removeprefix('train')}": d for n, d in train.items()}
    path = zipped(tmp_path / "x.zip", released)
    parts = cifar.SETS["cifar-fs"](path)
    assert {part: s.classes for part, s in parts.items()} == splits.CIFAR_FS
    assert all((s.counts == PER_CLASS["train"]).all() for s in parts.values())
    with pytest.raises(InputError, match=r"part 'train'"):
        cifar.SETS["cifar100"](path)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (17, 3), (40, 1)])
def test_records_are_decoded_like_image_files(tmp_path: Path, size: int, channels: int) -> None:
    path = write(tmp_path, cifar_binary(CIFAR10))
    loaded = cifar.SETS["cifar10"](path, size=size, channels=channels)["test"]
    for image, name in zip(loaded.images, loaded.classes, strict=True):
        file = cifar_folders(CIFAR10)[f"test/{name}/{name}_s_000000.png"]
        assert torch.equal(image, decode(file, size=size, channels=channels, where=name))


def python_version(family: Family) -> dict[str, bytes]:
    if family is CIFAR100:
        return dict.fromkeys((f"cifar-100-python/{n}" for n in ("meta", "train", "test")), b"\x80")
    names = ["batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return dict.fromkeys((f"cifar-10-batches-py/{n}" for n in names), b"\x80")


@pytest.mark.parametrize("source", FAMILIES)
def test_pickles_are_refused_and_the_binary_version_named(tmp_path: Path, source: str) -> None:
    family = FAMILIES[source]
    files = python_version(family)
    (tmp_path / "held").mkdir()
    packed = tarred(tmp_path / "held" / f"{family.stem}-python.tar.gz", files)
    for path in (write(tmp_path / "unpacked", files), packed, packed.parent):
        with pytest.raises(InputError, match=f"pickles(.|\n)*{family.stem}-binary.tar.gz"):
            cifar.SETS[source](path)


def test_missing_classes_and_parts_are_named(tmp_path: Path, folders: dict[str, bytes]) -> None:
    some = {n: d for n, d in folders.items() if "/whale/" not in n and "/ray/" not in n}
    for source in ("cifar100", "cifar-fs", "fc100"):
        with pytest.raises(InputError, match=r"2 of 100 classes have no image: 'ray', 'whale'"):
            cifar.SETS[source](zipped(tmp_path / "x.zip", some))
    train = {n: d for n, d in folders.items() if n.startswith("train")}
    with pytest.raises(InputError, match=r"100 of 100(.|\n)*part 'test'"):
        cifar.SETS["cifar-fs"](zipped(tmp_path / "y.zip", train))


def test_other_layouts_are_refused(tmp_path: Path, folders: dict[str, bytes]) -> None:
    for files in ({"dog/1.png": png()}, {}, cifar_folders(CIFAR10)):
        with pytest.raises(InputError, match=r"no CIFAR-100 images(.|\n)*<class>/<image>"):
            cifar.SETS["cifar100"](zipped(tmp_path / "x.zip", files))
    twice = folders | {f"copy/{n}": d for n, d in folders.items()}
    with pytest.raises(InputError, match="more than once"):
        cifar.SETS["fc100"](zipped(tmp_path / "y.zip", twice))


def test_damage_is_named(tmp_path: Path) -> None:
    images, binary = cifar_folders(CIFAR10), cifar_binary(CIFAR10)
    images["test/cat/cat_s_000000.png"] = png()[:60]
    with pytest.raises(DamagedFileError, match=r"test/cat/cat_s_000000\.png"):
        cifar.SETS["cifar10"](zipped(tmp_path / "i.zip", images))
    name = "cifar-10-batches-bin/data_batch_3.bin"
    for bad in (binary[name][:-1], b"", b"\x0a" + binary[name][1:]):
        with pytest.raises(DamagedFileError, match=r"data_batch_3\.bin"):
            cifar.SETS["cifar10"](write(tmp_path / "b", binary | {name: bad}))
    with pytest.raises(InputError, match=r"data_batch_3\.bin of CIFAR-10's binary"):
        kept = {n: d for n, d in binary.items() if n != name}
        cifar.SETS["cifar10"](zipped(tmp_path / "b.zip", kept))


@pytest.mark.parametrize(
    ("text", "what"),
    [("bird cat", "label 0 is called 'bird'"), (" ".join(splits.CIFAR10[:9]), "label 9"),
     (" ".join(splits.CIFAR10) + " house", "label 10 is called 'house'")],
)  # fmt: skip
def test_other_names_of_labels_are_refused(tmp_path: Path, text: str, what: str) -> None:
    name = "cifar-10-batches-bin/batches.meta.txt"
    files = cifar_binary(CIFAR10) | {name: "\n".join(text.split()).encode()}
    with pytest.raises(InputError, match=what):
        cifar.SETS["cifar10"](write(tmp_path, files))


def test_by_name(tmp_path: Path, folders: dict[str, bytes]) -> None:
    path = zipped(tmp_path / "x.zip", folders)
    loaded = data.load("cifar-fs", path, size=8, channels=1, split="official")
    assert loaded["test"].images.shape == (20 * 3, 1, 8, 8)
    with pytest.raises(InputError, match="did you mean 'cifar-fs'"):
        data.load("cifarfs", path, size=8, channels=1)
    with pytest.raises(InputError, match="unknown split 'random'"):
        data.load("fc100", path, size=8, channels=1, split="random")
    with pytest.raises(InputError, match="data_dir"):
        data.load("cifar10", size=8, channels=1)
    unsafe = zipped(tmp_path / "y.zip", folders | {"../evil.png": b""})
    with pytest.raises(InputError, match="evil"):
        data.load("fc100", unsafe, size=8, channels=1)


@pytest.mark.data
def test_real_cifar10(real: Callable[[str], Path]) -> None:
    parts = data.load("cifar10", real("cifar10"), size=32, channels=3)
    assert [s.classes for s in parts.values()] == [splits.CIFAR10] * 2
    assert all(len(set(s.counts.tolist())) == 1 for s in parts.values())
    # Known means of the training images, per channel.
    mean = parts["train"].images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01)


@pytest.mark.data
@pytest.mark.slow
def test_real_cifar_fs(real: Callable[[str], Path]) -> None:
    parts = data.load("cifar-fs", real("cifar100"), size=32, channels=3)
    assert [len(s.classes) for s in parts.values()] == [64, 16, 20]
    assert len({int(n) for s in parts.values() for n in s.counts}) == 1
    every = torch.cat([s.images for s in parts.values()])
    mean = every.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.5071, 0.4865, 0.4409]), atol=0.01)
