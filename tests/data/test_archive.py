"""`ltdi.data.archive`: archives are not trusted."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from ltdi.data import archive
from ltdi.data.archive import open_tree
from ltdi.errors import DamagedFileError, InputError

from .conftest import write, zipped

FILES = {"b/2.png": b"two", "a/1.png": b"one", "Z.txt": b"z", "a.png": b"dot", "ä/ü.png": b"utf"}
CLUTTER = {".hidden": b"", "a/.DS_Store": b"", "__MACOSX/a/1.png": b"", "a/Thumbs.db": b""}


def contents(path: Path) -> dict[str, bytes]:
    with open_tree(path) as tree:
        assert list(tree) == sorted(tree.names)
        return {name: tree.read(name) for name in tree}


def test_folder_and_zip_look_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", FILES | CLUTTER)
    packed = zipped(tmp_path / "d.zip", FILES | CLUTTER)
    assert contents(folder) == contents(packed) == FILES


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "c:evil.png", "..\\e.png",
     "a\\b.png", "\\\\server\\e.png", "a/.."],
)  # fmt: skip
def test_unsafe_entries_are_named_and_refused(tmp_path: Path, name: str) -> None:
    packed = zipped(tmp_path / "x.zip", {"a/ok.png": b"", name: b""})
    with pytest.raises(InputError) as caught:
        open_tree(packed)
    assert repr(name) in str(caught.value)
    assert str(packed) in str(caught.value)


def test_symlink_entry_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"a/link\.png"):
        open_tree(tmp_path / "x.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entry_given_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("a/1.png", b"1")
        packed.writestr("./a/1.png", b"2")
    with pytest.raises(InputError, match="twice"):
        open_tree(tmp_path / "x.zip")


@pytest.mark.parametrize("outside", ["folder", "file"])
def test_links_out_of_a_directory_are_refused(tmp_path: Path, outside: str) -> None:
    write(tmp_path, {"secret/1.png": b"s", "d/a/1.png": b"1"})
    target = tmp_path / "secret" / ("1.png" if outside == "file" else "")
    (tmp_path / "d" / "link").symlink_to(target)
    with pytest.raises(InputError, match="'link'"):
        open_tree(tmp_path / "d")


def test_links_inside_a_directory_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"a/1.png": b"1"})
    (root / "a" / "2.png").symlink_to(root / "a" / "1.png")
    assert contents(root) == {"a/1.png": b"1", "a/2.png": b"1"}


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.95])
def test_truncated_zip_is_damaged(tmp_path: Path, keep: float) -> None:
    packed = zipped(tmp_path / "x.zip", FILES)
    data = packed.read_bytes()
    packed.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DamagedFileError, match=r"x\.zip"):
        contents(packed)


def test_wrong_checksum_and_encryption_are_damaged(tmp_path: Path) -> None:
    packed = zipped(tmp_path / "x.zip", {"a/1.png": b"content"})
    data = packed.read_bytes()
    packed.write_bytes(data.replace(b"content", b"CONTENT"))
    with pytest.raises(DamagedFileError, match=r"a/1\.png"):
        contents(packed)
    central = data.index(b"PK\x01\x02") + 8
    packed.write_bytes(data[:central] + b"\x01" + data[central + 1 :])
    with pytest.raises(DamagedFileError, match="encrypted"):
        contents(packed)


def test_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 2)
    for path in (write(tmp_path / "d", FILES), zipped(tmp_path / "d.zip", FILES)):
        with pytest.raises(InputError, match="larger than the limit"):
            contents(path)


def test_missing_path_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        open_tree(tmp_path / "nowhere")


def test_zip_within_a_zip(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "in.zip", {"a/1.png": b"1"})
    outer = zipped(tmp_path / "out.zip", {"in.zip": inner.read_bytes()})
    for path in (outer, tmp_path):
        with open_tree(path) as tree, tree.open_zip("in.zip") as nested:
            assert nested.read("a/1.png") == b"1"


def test_only_what_unpacks_in_bounded_memory_is_read(tmp_path: Path) -> None:
    """Four kilobytes of bzip2 can be gigabytes, which zipfile would unpack at once."""
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as packed:
            packed.writestr("a/1.png", b"1")
        with pytest.raises(InputError, match="another method than deflate"):
            open_tree(tmp_path / "x.zip")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="PIPES NOT TESTED: none on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(write(tmp_path, {"a/1.png": b"1"}) / "a" / "2.png")
    with pytest.raises(InputError, match="pipe or a device"):
        contents(tmp_path)
