"""`ltdi.data.archive`: archives are not trusted."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdi.data import archive
from ltdi.data.archive import open_tree
from ltdi.errors import DamagedFileError, InputError, LtdiError

from .conftest import write, zipped
from .fakes import tarred

FILES = {"b/2.png": b"two", "a/1.png": b"one", "Z.txt": b"z", "a.png": b"dot", "ä/ü.png": b"utf"}
CLUTTER = {".hidden": b"", "a/.DS_Store": b"", "__MACOSX/a/1.png": b"", "a/Thumbs.db": b""}
PACKERS = {"x.zip": zipped, "x.tar.gz": tarred}
packers = pytest.mark.parametrize("kind", PACKERS)


def contents(path: Path) -> dict[str, bytes]:
    with open_tree(path) as tree:
        assert list(tree) == sorted(tree.names)
        return {name: tree.read(name) for name in tree}


def pack(tmp_path: Path, kind: str, files: dict[str, bytes]) -> Path:
    return PACKERS[kind](tmp_path / kind, files)


def inside(path: Path) -> bytearray:
    """The tar in the gzip, for tests that damage it."""
    return bytearray(gzip.decompress(path.read_bytes()))


def test_a_folder_and_archives_look_the_same(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "d", FILES | CLUTTER)) == FILES
    for kind in PACKERS:
        assert contents(pack(tmp_path, kind, FILES | CLUTTER)) == FILES
        assert contents(pack(tmp_path, kind, {"./d/x": b"kept"})) == {"d/x": b"kept"}


@packers
@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "c:evil.png", "..\\e.png",
     "a\\b.png", "\\\\server\\e.png", "a/.."],
)  # fmt: skip
def test_unsafe_entries_are_named_and_refused(tmp_path: Path, kind: str, name: str) -> None:
    packed = pack(tmp_path, kind, {"a/ok.png": b"", name: b""})
    with pytest.raises(InputError) as caught:
        open_tree(packed)
    assert repr(name) in str(caught.value)
    assert str(packed) in str(caught.value)


@packers
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_given_twice_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="twice"):
        open_tree(pack(tmp_path, kind, {"a/1.png": b"1", "./a/1.png": b"2"}))


@packers
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.95])
def test_what_is_cut_off_is_damaged(tmp_path: Path, kind: str, keep: float) -> None:
    packed = pack(tmp_path, kind, FILES)
    data = packed.read_bytes()
    packed.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DamagedFileError, match=kind):
        contents(packed)


@packers
def test_an_archive_within_another(tmp_path: Path, kind: str) -> None:
    inner = zipped(tmp_path / "in.zip", {"a/1.png": b"1"})
    outer = pack(tmp_path, kind, {"in.zip": inner.read_bytes()})
    for path in (outer, tmp_path):
        with open_tree(path) as tree, tree.open_zip("in.zip") as nested:
            assert nested.read("a/1.png") == b"1"


def test_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 2)
    for path in (write(tmp_path / "d", FILES), *(pack(tmp_path, k, FILES) for k in PACKERS)):
        with pytest.raises(InputError, match="larger than the limit"):
            contents(path)


def test_missing_path_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        open_tree(tmp_path / "nowhere")


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="PIPES NOT TESTED: none on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(write(tmp_path, {"a/1.png": b"1"}) / "a" / "2.png")
    with pytest.raises(InputError, match="pipe or a device"):
        contents(tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"'a/link\.png' is a link or a device"):
        open_tree(tmp_path / "x.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a/link")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as packed:
        packed.addfile(info)
    with pytest.raises(InputError, match="'a/link' is a link or a device"):
        open_tree(tmp_path / "x.tar.gz")


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


def test_only_what_unpacks_in_bounded_memory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four kilobytes of bzip2 can be gigabytes, which zipfile would unpack at once."""
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as packed:
            packed.writestr("a/1.png", b"1")
        with pytest.raises(InputError, match="another method than deflate"):
            open_tree(tmp_path / "x.zip")
    monkeypatch.setattr(archive, "MAX_TAR_BYTES", 2**20)
    behind = tarred(tmp_path / "y.tar.gz", FILES)
    behind.write_bytes(gzip.compress(inside(behind) + bytes(2**21)))
    with pytest.raises(InputError, match="unpacks to more than"):
        open_tree(behind)


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_tar_is_not_given_room_for_all_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = gzip.GzipFile.read

    def read(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(-1 if size is None else size)
        return real(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", read)
    packed = tarred(tmp_path / "x.tar.gz", FILES)
    assert contents(packed) == FILES
    assert set(asked) == {2**20}

    def none_left(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        raise MemoryError

    monkeypatch.setattr(gzip.GzipFile, "read", none_left)
    with pytest.raises(InputError, match="does not fit into the memory"):
        open_tree(packed)


@pytest.mark.parametrize("name", ["a/2.png", ".x", "a/"])
def test_a_negative_size_does_not_lead_back_for_ever(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "x.tar.gz"
    for first in (header("a/1.png", 0), b""):
        packed.write_bytes(gzip.compress(first + header(name, -512) + bytes(1024)))
        with pytest.raises(DamagedFileError, match="negative size"):
            open_tree(packed)


def test_the_entries_of_a_tar_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TAR_ENTRIES", len(FILES))
    assert contents(tarred(tmp_path / "x.tar.gz", FILES)) == FILES
    with pytest.raises(InputError, match="more than 5 entries"):
        open_tree(tarred(tmp_path / "y.tar.gz", FILES | {"more": b""}))


def test_no_entry_of_a_damaged_tar_is_lost_in_silence(tmp_path: Path) -> None:
    packed = tarred(tmp_path / "x.tar.gz", {"a/1.png": b"1", "a/2.png": b"2"})
    data = bytes(inside(packed))
    damaged = {
        "what follows entry 1": (
            data[:1024] + b"?" * 8 + data[1032:],
            data[: 1024 + 200],
        ),
        "what follows entry 2": (data + data,),
        "no entry": (bytes(10240),),
    }
    for message, tars in damaged.items():
        for tar in tars:
            packed.write_bytes(gzip.compress(tar))
            with pytest.raises(DamagedFileError, match=message):
                open_tree(packed)
    packed.write_bytes(gzip.compress(data[:2048]))  # nothing at all may follow
    assert list(contents(packed)) == ["a/1.png", "a/2.png"]


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    for name in ("a.TAR.GZ", "a.Tgz"):
        assert contents(tarred(tmp_path / name, FILES)) == FILES
    names = ("a.TAR.GZ", "a.tgz", "a.Zip", "a", "a.tar")
    assert [archive.stem_of(n) for n in names] == ["a", "a", "a", "a", "a.tar"]
    assert [archive.is_archive(n) for n in names] == [True, True, True, False, False]


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(long_name.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    with pytest.raises(DamagedFileError, match="header"):
        open_tree(packed)


@settings(max_examples=80)
@given(at=st.integers(0, 2**20), value=st.integers(0, 255), in_tar=st.booleans())
def test_an_altered_byte_of_a_tar_is_refused_by_us_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, in_tar: bool
) -> None:
    packed = tarred(tmp_path_factory.mktemp("t") / "x.tar.gz", FILES)
    data = inside(packed) if in_tar else bytearray(packed.read_bytes())
    data[at % len(data)] = value
    packed.write_bytes(gzip.compress(data) if in_tar else data)
    try:
        read = contents(packed)
    except LtdiError as error:
        assert "x.tar.gz" in str(error)
    else:
        # The gzip's checksum tells; inside it, what is no header is nobody's to check.
        assert in_tar or read == FILES


@pytest.mark.parametrize("data", [b"hello", gzip.compress(b"hello" * 200)])
def test_nothing_else_is_an_archive(tmp_path: Path, data: bytes) -> None:
    for name in PACKERS:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedFileError, match=name):
            open_tree(tmp_path / name)
