"""One read-only view over a directory or a zip; nothing is ever extracted to disk."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType

from ltdi.errors import DamagedFileError, InputError

# A small zip can claim gigabytes; no file of a data set read here comes near this.
MAX_FILE_BYTES = 256 * 2**20
_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_DRIVE = re.compile(r"[A-Za-z]:")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # zipfile's way of asking for a password
    NotImplementedError,  # an unknown compression method
)


class FileTree(ABC):
    """Files by relative POSIX name, sorted by code point; a context manager.

    Hidden files and what file managers leave behind (`__MACOSX`, `Thumbs.db`) are left out.

    Attributes:
        where: The directory or archive, for messages.
        names: Every file's name, sorted.
        folders: The folders that it lists, empty ones too, where it can tell.
    """

    where: str
    names: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one of `names`.

        Raises:
            DamagedFileError: When the file cannot be read back intact.
            InputError: When it is larger than `MAX_FILE_BYTES`.
        """

    @abstractmethod
    def open_zip(self, name: str) -> FileTree:
        """The tree inside a zip that is itself one of `names`."""

    @abstractmethod
    def close(self) -> None:
        """Release the archive; `read` no longer works afterwards."""

    def label(self, name: str) -> str:
        """How messages name a file of this tree."""
        return f"{self.where}: {name}"

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.names)

    def __enter__(self) -> FileTree:
        """The tree itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the archive."""
        self.close()


def open_tree(path: str | os.PathLike[str]) -> FileTree:
    """Open a directory or a zip.

    Raises:
        InputError: When the path is missing, or holds an entry that points outside it.
        DamagedFileError: When a file is not a readable zip.
    """
    root = Path(path)
    if root.is_dir():
        return _Directory(root)
    if root.is_file():
        return _Zip(root, str(root))
    raise InputError(
        "no such directory or zip file",
        where=str(root),
        fix="check the path; give a folder or .zip",
    )


class _Directory(FileTree):
    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root = root.resolve()
        self._folders: list[str] = []
        self.names = tuple(sorted(self._walk()))
        self.folders = tuple(sorted(self._folders))

    def _walk(self) -> Iterator[str]:
        # Linked directories inside the tree are not entered: their files are listed once already.
        for folder, subfolders, files in os.walk(self._root):
            inside = Path(folder)
            subfolders[:] = [s for s in subfolders if not _is_clutter(s)]
            for entry in (*subfolders, *files):
                if (inside / entry).is_symlink() and not _is_clutter(entry):
                    self._check_link(inside / entry)
            self._folders += [(inside / s).relative_to(self._root).as_posix() for s in subfolders]
            for file in files:
                if not _is_clutter(file):
                    yield (inside / file).relative_to(self._root).as_posix()

    def _check_link(self, link: Path) -> None:
        if not link.resolve().is_relative_to(self._root):
            raise InputError(
                f"{link.relative_to(self._root).as_posix()!r} is a link that leaves the directory",
                where=self.where,
                fix="copy the files there, or load the link's target by its own path",
            )

    def read(self, name: str) -> bytes:
        file = self._root / name
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):
                # A pipe would be waited for without end.
                raise InputError(
                    "is a pipe or a device, not a file", where=self.label(name), fix="remove it"
                )
            _check_size(found.st_size, self.label(name))
            return file.read_bytes()
        except OSError as error:
            raise DamagedFileError(
                f"cannot be read ({error.strerror})",
                where=self.label(name),
                fix="check its permissions and the disk",
            ) from error

    def open_zip(self, name: str) -> FileTree:
        return _Zip(self._root / name, self.label(name))

    def close(self) -> None:
        pass


class _Zip(FileTree):
    def __init__(self, source: Path | io.BytesIO, where: str) -> None:
        self.where = where
        try:
            self._zip = zipfile.ZipFile(source)
        except _ZIP_ERRORS as error:
            raise DamagedFileError(
                f"not a readable zip ({error})",
                where=where,
                fix="the file may be cut off or not a zip: fetch or pack it again",
            ) from error
        self._folders: list[str] = []
        try:
            self._entries = self._list()
        except BaseException:
            self._zip.close()
            raise
        self.names, self.folders = tuple(sorted(self._entries)), tuple(sorted(self._folders))

    def _list(self) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            self._check_entry(info)
            path = PurePosixPath(info.filename)
            if any(_is_clutter(part) for part in path.parts):
                continue
            if info.is_dir():
                self._folders.append(str(path))
                continue
            if str(path) in entries:
                raise self._refusal(info, "is there twice")
            entries[str(path)] = info
        return entries

    def _check_entry(self, info: zipfile.ZipInfo) -> None:
        raw = info.orig_filename  # as stored: zipfile cleans `filename`
        kind = stat.S_IFMT(info.external_attr >> 16)
        if "\\" in raw or "\0" in raw:
            raise self._refusal(info, "has a backslash or a null in its name")
        if raw.startswith("/") or _DRIVE.match(raw):
            raise self._refusal(info, "is an absolute path")
        if ".." in raw.split("/"):
            raise self._refusal(info, "leads out of the archive with '..'")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks a block of bzip2 at once: four kilobytes may be gigabytes.
            raise self._refusal(info, "is packed by another method than deflate")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise self._refusal(info, "is a link or a device, not a file")

    def _refusal(self, info: zipfile.ZipInfo, why: str) -> InputError:
        return InputError(
            f"entry {info.orig_filename!r} {why}",
            where=self.where,
            fix="pack the files again under plain relative names, or give an unpacked folder",
        )

    def read(self, name: str) -> bytes:
        info = self._entries[name]
        _check_size(info.file_size, self.label(name))
        if info.flag_bits & 1:
            raise DamagedFileError(
                "entry is encrypted", where=self.label(name), fix="unpack it and give the folder"
            )
        try:
            return self._zip.read(info)
        except _ZIP_ERRORS as error:
            raise DamagedFileError(
                f"damaged zip entry ({error})", where=self.label(name), fix="fetch or pack it again"
            ) from error

    def open_zip(self, name: str) -> FileTree:
        return _Zip(io.BytesIO(self.read(name)), self.label(name))

    def close(self) -> None:
        self._zip.close()


def _is_clutter(part: str) -> bool:
    return part.startswith(".") or part in _CLUTTER


def _check_size(size: int, where: str) -> None:
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"file of {size:,} bytes is larger than the limit of {MAX_FILE_BYTES:,}",
            where=where,
            fix="make it smaller, or leave it out",
        )
