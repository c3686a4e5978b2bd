"""`ltdi.data.folder`: any folder or zip laid out as <class>/<image>."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ltdi.data import folder
from ltdi.errors import DamagedFileError, InputError

from .conftest import png, write, zipped
from .fakes import tarred


def layout(*names: str) -> dict[str, bytes]:
    return {name: png(i) for i, name in enumerate(names)}


def test_archives_and_folder_give_the_identical_set(tmp_path: Path) -> None:
    files = layout("w/dog/2.png", "w/cat/1.png", "w/dog/1.PNG", "w/cat/x.jpg") | {"w/t.txt": b"t"}
    a = folder.load(write(tmp_path / "pets", files), size=8, channels=3)
    b = folder.load(zipped(tmp_path / "pets.zip", files), size=8, channels=3)
    c = folder.load(tarred(tmp_path / "pets.TGZ", files), size=8, channels=3)
    assert a.name == b.name == c.name == "pets"
    assert a.classes == b.classes == c.classes == ("cat", "dog")
    for other in (b, c):
        assert torch.equal(a.images, other.images)
        assert torch.equal(a.offsets, other.offsets)
    assert a.images.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("Greek/a/1.png", "Latin/a/1.png"), ("Greek/a", "Latin/a")),
        (("x/y/Greek/a/1.png", "x/y/Greek/b/1.png"), ("a", "b")),
        (("wrap/cat/1.png", "wrap/cat/2.png"), ("cat",)),
        (("cat/1.png",), ("cat",)),
        (("a/1.png", "b/1.png", "b/c/1.png"), ("a", "b", "b/c")),
    ],
)
def test_classes_are_paths_below_the_common_wrapper(
    tmp_path: Path, names: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    assert folder.load(write(tmp_path, layout(*names)), size=4, channels=1).classes == classes


@pytest.mark.parametrize(
    "names", [("1.png",), ("1.png", "cat/1.png"), ("w/1.png", "w/cat/1.png", "w/dog/1.png")]
)
def test_images_outside_class_folders_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"outside any class folder.*1\.png"):
        folder.load(write(tmp_path, layout(*names)), size=4, channels=1)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image among 1 files"):
        folder.load(write(tmp_path, {"cat/readme.txt": b""}), size=4, channels=1)
    with pytest.raises(InputError, match="no image among 0 files"):
        folder.load(zipped(tmp_path / "empty.zip", {}), size=4, channels=1)


def test_classes_with_too_few_images_are_listed(tmp_path: Path) -> None:
    files = layout(*(f"c{i}/{k}.png" for i in range(7) for k in range(1 + (i == 6))))
    with pytest.raises(InputError) as caught:
        folder.load(write(tmp_path, files), size=4, channels=1, min_per_class=2)
    assert "6 of 7 classes have fewer than 2 images: 'c0' (1)" in str(caught.value)
    assert "'c4' (1) and 1 more" in str(caught.value)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    files = layout("cat/1.png", "dog/1.png") | {"dog/2.png": png()[:60]}
    for path in (write(tmp_path / "d", files), zipped(tmp_path / "d.zip", files)):
        with pytest.raises(DamagedFileError, match=r"dog/2\.png"):
            folder.load(path, size=4, channels=1)


@pytest.mark.parametrize(
    ("more", "lost"), [("dog/", "dog"), ("dog/1.xyz", "dog"), ("../notes/1.txt", None)]
)
def test_a_class_without_an_image_is_not_passed_over(
    tmp_path: Path, more: str, lost: str | None
) -> None:
    top = write(tmp_path / "d", layout("w/cat/1.png", "w/cow/a.png"))
    extra = top / "w" / more
    extra.mkdir(parents=True) if more.endswith("/") else write(extra.parent, {extra.name: b""})
    packed = Path(shutil.make_archive(str(tmp_path / "d"), "zip", top))
    for path in (top, packed):
        if lost is None:
            assert folder.load(path, size=4, channels=1).classes == ("cat", "cow")
            continue
        with pytest.raises(InputError, match=f"'w/{lost}' lies beside those of the classes"):
            folder.load(path, size=4, channels=1)


def test_images_of_other_formats_are_not_passed_over(tmp_path: Path) -> None:
    top = write(tmp_path, layout("cat/1.png", "dog/1.png") | {"dog/2.HEIC": b"", "dog/2.txt": b""})
    for read in (folder.load, folder.load_unlabelled):
        with pytest.raises(InputError, match=r"1 images are of a format.*'dog/2\.HEIC'"):
            read(top, size=4, channels=1)
