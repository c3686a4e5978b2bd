"""A read-only view over a gzipped tar; as with zips, nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath, PureWindowsPath

from ltdi.data.archive import MAX_FILE_BYTES, FileTree
from ltdi.errors import DamagedFileError, InputError

SUFFIXES = (".tar.gz", ".tgz")
# A small tar can unpack to terabytes; no data set that is read from one comes near this.
MAX_TAR_BYTES = 4 * MAX_FILE_BYTES
_CHUNK = 2**20
_TAR_ERRORS = (tarfile.TarError, zlib.error, struct.error, EOFError, OSError, ValueError)


class Tar(FileTree):
    """The regular files of a `.tar.gz`, in any order.

    Reading backwards unpacks from the start again: meant for archives of a few large files.

    Args:
        path: The archive.

    Raises:
        InputError: For an entry that points outside the archive, is there twice, or makes it
            unpack to more than `MAX_TAR_BYTES`, or holds a file above `MAX_FILE_BYTES`.
        DamagedFileError: When it is not a readable tar.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = str(path)
        self._stream = _Bounded(path)
        try:
            with self._reading(self.where):
                self._tar = tarfile.TarFile(fileobj=self._stream)
                self._entries = self._list()
        except BaseException:
            self._stream.close()
            raise
        self.names = tuple(sorted(self._entries))

    def _list(self) -> dict[str, tarfile.TarInfo]:
        entries: dict[str, tarfile.TarInfo] = {}
        for info in self._tar:
            path = PurePosixPath(info.name)
            if _escapes(info.name):
                raise self._refusal(info, "leads out of the archive")
            if not (info.isfile() or info.isdir()):
                raise self._refusal(info, "is a link or a device, not a file")
            # Checked before the next entry is looked for, which unpacks this one.
            if info.size > MAX_FILE_BYTES or info.offset_data + info.size > MAX_TAR_BYTES:
                raise self._refusal(info, f"of {info.size:,} bytes goes beyond the limit")
            if info.isdir() or any(part.startswith(".") for part in path.parts):
                continue
            if str(path) in entries:
                raise self._refusal(info, "is there twice")
            entries[str(path)] = info
        self._stream.check()
        return entries

    def _refusal(self, info: tarfile.TarInfo, why: str) -> InputError:
        return InputError(
            f"entry {info.name!r} {why}",
            where=self.where,
            fix="fetch the archive from its source again, or give an unpacked folder",
        )

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except _TAR_ERRORS as error:
            raise DamagedFileError(
                f"not a readable .tar.gz ({error})",
                where=where,
                fix="the file may be cut off: fetch it again",
            ) from error

    def read(self, name: str) -> bytes:
        """The bytes of one of `names`."""
        with self._reading(self.label(name)):
            file = self._tar.extractfile(self._entries[name])
            assert file is not None  # only regular files are listed
            return file.read()

    def open_zip(self, name: str) -> FileTree:
        """No data set is packed like this.

        Raises:
            InputError: Always.
        """
        raise InputError("a zip inside a tar is not read", where=self.label(name), fix="unpack it")

    def close(self) -> None:
        """Release the archive."""
        self._tar.close()
        self._stream.close()


def _escapes(name: str) -> bool:
    """Whether a name leads elsewhere on any system: absolute, a drive, or upwards."""
    path = PureWindowsPath(name)  # takes both slashes as such
    return bool(path.anchor) or ".." in path.parts or "\\" in name


class _Bounded(gzip.GzipFile):
    """Refuses reads no honest tar needs: headers too may claim gigabytes."""

    def check(self) -> None:
        """Read on to the end, where the checksum of everything read so far is compared."""
        while self.read(_CHUNK):
            if self.tell() > MAX_TAR_BYTES:
                raise InputError(
                    f"unpacks to more than {MAX_TAR_BYTES:,} bytes",
                    where=str(self.name),
                    fix="unpack it yourself, and give the folder",
                )

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_TAR_BYTES:
            raise InputError(
                f"a header claims {size} bytes; the limit is {MAX_TAR_BYTES:,}",
                where=str(self.name),
                fix="fetch the archive again, or unpack it yourself and give the folder",
            )
        return super().read(size)
