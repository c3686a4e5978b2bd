"""One read-only view over a directory, a zip or a `.tar.gz`; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from ltdi.errors import DamagedFileError, InputError

# A small archive can claim gigabytes; no file of a data set read here comes near this.
MAX_FILE_BYTES = 256 * 2**20
# Nor does what a tar unpacks to, which is held in memory.
MAX_TAR_BYTES = 4 * MAX_FILE_BYTES
# What a tar lists is held too.
MAX_TAR_ENTRIES = 200_000
TARS = (".tar.gz", ".tgz")
ARCHIVES = (".zip", *TARS)
_CHUNK = 2**20
_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # zipfile's way of asking for a password
    NotImplementedError,  # an unknown compression method
)
_NO_FILE = "is a link or a device, not a file"


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

    def open_zip(self, name: str) -> FileTree:
        """The tree inside a zip that is itself one of `names`."""
        return _zip(io.BytesIO(self.read(name)), self.label(name))

    def close(self) -> None:  # noqa: B027 (a directory holds nothing open)
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

    def __exit__(self, *error: object) -> None:
        """Close the archive."""
        self.close()


def open_tree(path: str | os.PathLike[str]) -> FileTree:
    """Open a directory, a `.tar.gz` or a zip.

    Raises:
        InputError: When the path is missing, or holds an entry that points outside it.
        DamagedFileError: When a file is not a readable archive.
    """
    root = Path(path)
    if root.is_dir():
        return _Directory(root)
    if root.is_file():
        return _tar(root) if root.name.lower().endswith(TARS) else _zip(root, str(root))
    raise InputError(
        "no such directory, zip or tar.gz",
        where=str(root),
        fix="check the path; give a folder, a .zip, .tar.gz or .tgz",
    )


def is_archive(name: str) -> bool:
    """Whether a file name ends as those of archives do, in any case."""
    return name.lower().endswith(ARCHIVES)


def stem_of(name: str) -> str:
    """A file name without the suffix of an archive."""
    end = next((end for end in ARCHIVES if name.lower().endswith(end)), "")
    return name[: len(name) - len(end)]


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


class _Entry(NamedTuple):
    """An entry of an archive: its name and claimed size, what is wrong with it, what reads it."""

    name: str
    folder: bool
    wrong: str
    size: int
    read: Callable[[], bytes]


class _Packed(FileTree):
    """The files of an archive, listed once and checked."""

    def __init__(
        self,
        kind: str,
        where: str,
        entries: Iterable[_Entry],
        file: zipfile.ZipFile | None = None,
    ) -> None:
        self.kind, self.where, self._file = kind, where, file
        self._entries: dict[str, _Entry] = {}
        found: list[str] = []
        try:
            with _intact(kind, where):
                for entry in entries:
                    path = PurePosixPath(entry.name)
                    wrong = _unsafe(entry.name) or entry.wrong
                    if wrong or str(path) in self._entries:
                        raise self._refusal(entry, wrong or "is there twice")
                    if any(map(_is_clutter, path.parts)):
                        continue
                    if entry.folder:
                        found.append(str(path))
                    else:
                        self._entries[str(path)] = entry
        except BaseException:
            self.close()
            raise
        self.names, self.folders = tuple(sorted(self._entries)), tuple(sorted(found))

    def read(self, name: str) -> bytes:
        entry = self._entries[name]
        _check_size(entry.size, self.label(name))
        with _intact(self.kind, self.label(name)):
            return entry.read()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _refusal(self, entry: _Entry, why: str) -> InputError:
        return InputError(
            f"entry {entry.name!r} {why}",
            where=self.where,
            fix="pack the files again under plain relative names, or give an unpacked folder",
        )


def _zip(source: Path | io.BytesIO, where: str) -> FileTree:
    with _intact("zip", where):
        file = zipfile.ZipFile(source)

    def wrong(info: zipfile.ZipInfo) -> str:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks a block of bzip2 at once: four kilobytes may be gigabytes.
            return "is packed by another method than deflate"
        kind = stat.S_IFMT(info.external_attr >> 16)
        return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else _NO_FILE

    # Names as stored: zipfile cleans `filename`.
    entries = (
        _Entry(i.orig_filename, i.is_dir(), wrong(i), i.file_size, partial(file.read, i))
        for i in file.infolist()
    )
    return _Packed("zip", where, entries, file)


def _tar(path: Path) -> FileTree:
    """A gzipped tar, unpacked in memory: no header of it can claim more than there is."""
    where = str(path)
    with _intact("tar.gz", where):
        held = io.BytesIO()
        with gzip.open(path) as stream:
            # To the end, where the checksum is compared; in one piece all of the limit is reserved.
            while chunk := stream.read(_CHUNK):
                if held.tell() + len(chunk) > MAX_TAR_BYTES:
                    raise _too_large(f"unpacks to more than {MAX_TAR_BYTES:,} bytes", where)
                held.write(chunk)
        held.seek(0)
        tar = tarfile.TarFile(fileobj=held)

    def members() -> Iterator[tarfile.TarInfo]:
        number = 0
        for number, info in enumerate(tar, 1):
            # A negative size leads back to a header that was read already, for ever.
            if info.size < 0 or tar.offset < info.offset_data:
                raise tarfile.ReadError(f"entry {info.name!r} has a negative size")
            if number > MAX_TAR_ENTRIES:
                raise _too_large(f"has more than {MAX_TAR_ENTRIES:,} entries", where)
            yield info
        # `tarfile` takes a header that it cannot read for the end.
        held.seek(tar.offset)
        if any(chunk.strip(b"\0") for chunk in iter(partial(held.read, _CHUNK), b"")):
            raise tarfile.ReadError(f"what follows entry {number} is no header")
        if not number:
            raise tarfile.ReadError("it has no entry")

    def read(info: tarfile.TarInfo) -> bytes:
        file = tar.extractfile(info)
        assert file is not None  # only regular files are listed
        return file.read()

    entries = (
        _Entry(
            i.name, i.isdir(), "" if i.isfile() or i.isdir() else _NO_FILE, i.size, partial(read, i)
        )
        for i in members()
    )
    return _Packed("tar.gz", where, entries)


@contextmanager
def _intact(kind: str, where: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise _too_large("does not fit into the memory", where) from None
    except _ERRORS as error:
        raise DamagedFileError(
            f"not a readable {kind} ({error})",
            where=where,
            fix=f"the file may be cut off or no {kind}: fetch or pack it again",
        ) from error


def _too_large(what: str, where: str) -> InputError:
    return InputError(what, where=where, fix="unpack it yourself, and give the folder")


def _unsafe(name: str) -> str:
    """Why a name would lead elsewhere on some system; nothing for others."""
    if "\\" in name or "\0" in name:
        return "has a backslash or a null in its name"
    if PureWindowsPath(name).anchor:
        return "is an absolute path"
    return "leads out of the archive with '..'" if ".." in name.split("/") else ""


def _is_clutter(part: str) -> bool:
    return part.startswith(".") or part in _CLUTTER


def _check_size(size: int, where: str) -> None:
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"file of {size:,} bytes is larger than the limit of {MAX_FILE_BYTES:,}",
            where=where,
            fix="make it smaller, or leave it out",
        )
