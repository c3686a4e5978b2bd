"""`ltdi.data.layout`: files are found wherever they were unpacked, and decoded once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from ltdi.data import layout, readable
from ltdi.data.archive import open_tree
from ltdi.data.images import decode
from ltdi.data.layout import ImageFile
from ltdi.errors import DamagedFileError, InputError

from .conftest import png, write, zipped
from .fakes import tarred


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Egyptian_Mau", "Egyptian Mau"),
        ("aquarium_fish", "aquarium fish"),
        ("dog", "dog"),
        ("Greek/small_letter__pi", "small letter pi"),
        ("large_man-made_outdoor_things", "large man-made outdoor things"),
    ],
)
def test_names_as_text(name: str, text: str) -> None:
    assert readable(name) == text


@pytest.mark.parametrize("wrap", ["", "data/", "a/train/"])
def test_files_are_found_below_any_folder(tmp_path: Path, wrap: str) -> None:
    write(tmp_path, {f"{wrap}train/x/1.png": b"", f"{wrap}train/y/2.png": b"", "b.txt": b""})
    with open_tree(tmp_path) as tree:
        found = layout.find(tree, r"train/(?P<label>[^/]+)/[^/]+\.png")
    assert [(m["label"], n) for m, n in found] == [
        ("x", f"{wrap}train/x/1.png"),
        ("y", f"{wrap}train/y/2.png"),
    ]


def test_two_copies_are_refused_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, {"a/train/1.png": b"", "train/1.png": b""})
    with open_tree(tmp_path) as tree, pytest.raises(InputError, match=r"'\./'.*'a/'"):
        layout.find(tree, r"train/\d\.png")


def test_a_folder_may_hold_the_archive(tmp_path: Path) -> None:
    zipped(tmp_path / "set.zip", {"1.txt": b"zip"})
    tarred(tmp_path / "set.tar.gz", {"1.txt": b"tar"})
    for archives, expected in ((("set.zip",), b"zip"), (("no.zip", "set.tar.gz"), b"tar")):
        for path in (tmp_path, tmp_path / archives[-1]):
            with layout.open_source(path, "a set", archives) as tree:
                assert tree.read("1.txt") == expected
    with layout.open_source(tmp_path, "a set", ("other.zip",)) as tree:
        assert tree.names == ("set.tar.gz", "set.zip")


def test_absent_names_are_told(tmp_path: Path) -> None:
    groups = dict.fromkeys("ab", 1)
    assert list(layout.choose(groups, ("b", "a"), "x")) == ["b", "a"]
    with pytest.raises(InputError) as caught:
        layout.choose(groups, "abcdefgh", "the place")
    message = str(caught.value)
    assert "6 of 8 classes have no image: 'c', 'd', 'e', 'f', 'g' and 1 more" in message
    assert "the place" in message


def test_classes_are_sorted_and_decoded_in_turn() -> None:
    data = {"b": [png(1), png(2)], "a": [png(3)]}
    files = {c: [ImageFile("x", partial(bytes, d)) for d in group] for c, group in data.items()}
    ours = layout.decode_groups("s", files, size=7, channels=3)
    assert (ours.name, ours.classes, ours.counts.tolist()) == ("s", ("a", "b"), [1, 2])
    for image, file in zip(ours.images, [*data["a"], *data["b"]], strict=True):
        assert torch.equal(image, decode(file, size=7, channels=3, where="x"))
    with pytest.raises(DamagedFileError, match="the second"):
        layout.decode_groups("s", {"a": [ImageFile("the second", bytes)]}, size=7, channels=3)


def test_lines_of_a_missing_file_say_what_it_is_for(tmp_path: Path) -> None:
    write(tmp_path, {"in/words.txt": b" one \r\n\n two\n"})
    with open_tree(tmp_path) as tree:
        assert layout.read_lines(tree, r"words\.txt", "") == ["one", "two"]
        with pytest.raises(InputError, match=r"no wnids\.txt(.|\n)*it lists the classes"):
            layout.read_lines(tree, r"wnids\.txt", "it lists the classes")
