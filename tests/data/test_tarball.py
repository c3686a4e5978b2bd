"""`ltdi.data.tarball`: tars are trusted as little as zips."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdi.data import tarball
from ltdi.data.tarball import Tar
from ltdi.errors import DamagedFileError, InputError, LtdiError

from .fakes import tarred

FILES = {"b/2.bin": b"two", "a/1.bin": b"one" * 700, "Z.txt": b"z", "empty": b""}


def contents(path: Path) -> dict[str, bytes]:
    with Tar(path) as tree:
        assert list(tree) == sorted(tree.names)
        return {name: tree.read(name) for name in tree}


def inside(path: Path) -> bytearray:
    """The tar in the gzip, for tests that damage it."""
    return bytearray(gzip.decompress(path.read_bytes()))


def with_entry(target: Path, info: tarfile.TarInfo) -> Path:
    with tarfile.open(target, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(b"\0" * info.size))
    return target


def test_round_trip_without_clutter(tmp_path: Path) -> None:
    clutter = {"a/.hidden": b"", "._Z.txt": b"", "./d/x": b"kept"}
    assert contents(tarred(tmp_path / "x.tar.gz", FILES | clutter)) == FILES | {"d/x": b"kept"}


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "c:evil", "..\\e", "a\\b", "a/.."]
)
def test_unsafe_entries_are_named_and_refused(tmp_path: Path, name: str) -> None:
    packed = tarred(tmp_path / "x.tar.gz", {"ok": b"", name: b""})
    with pytest.raises(InputError) as caught:
        Tar(packed)
    assert repr(name) in str(caught.value)
    assert str(packed) in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a/link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(InputError, match="'a/link' is a link or a device"):
        Tar(with_entry(tmp_path / "x.tar.gz", info))


def test_entry_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="twice"):
        Tar(tarred(tmp_path / "x.tar.gz", {"a": b"1", "./a": b"2"}))


def test_what_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tarred(tmp_path / "x.tar.gz", FILES)
    with monkeypatch.context() as patch:
        patch.setattr(tarball, "MAX_FILE_BYTES", 2000)
        with pytest.raises(InputError, match=r"'a/1\.bin' of 2,100 bytes"):
            Tar(packed)
    monkeypatch.setattr(tarball, "MAX_TAR_BYTES", 4000)
    with pytest.raises(InputError, match="limit"):
        Tar(packed)
    monkeypatch.setattr(tarball, "MAX_TAR_BYTES", 2**20)
    behind = tmp_path / "y.tar.gz"
    behind.write_bytes(gzip.compress(inside(tarred(behind, FILES)) + bytes(2**21)))
    with pytest.raises(InputError, match="unpacks to more than"):
        Tar(behind)


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(long_name.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    with pytest.raises(InputError, match="claims"):
        Tar(packed)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.95])
def test_cut_off_is_damaged(tmp_path: Path, keep: float) -> None:
    packed = tarred(tmp_path / "x.tar.gz", FILES)
    data = packed.read_bytes()
    packed.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DamagedFileError, match=r"x\.tar\.gz"):
        contents(packed)


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 2**20), value=st.integers(0, 255), in_tar=st.booleans())
def test_an_altered_byte_is_refused_by_us_or_harmless(
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


def test_nothing_else_is_a_tar(tmp_path: Path) -> None:
    for name, data in {"text": b"hello", "gz": gzip.compress(b"hello" * 200)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedFileError, match=name):
            Tar(tmp_path / name)
    with Tar(tarred(tmp_path / "x.tar.gz", {"in.zip": b""})) as tree, pytest.raises(InputError):
        tree.open_zip("in.zip")
