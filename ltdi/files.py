"""Files that survive a crash: atomic writes, checksums, directories that are known to be ours."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ltdi.errors import DamagedFileError, InputError

MARKER = ".ltdi"
DIGEST = "ltdi.digest"


# There is no way to read it without setting it.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, flushed and renamed onto it when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # safetensors makes files for their owner alone
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made if need be; it ends with the process, however."""
    import fcntl

    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases it


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If it does not exist.
        DamagedFileError: If it is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.name} not found", where=str(path), fix="check the directory's path"
        ) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of pages
        raise DamagedFileError(
            f"{path.name} is not valid JSON: {error}",
            where=str(path),
            fix="restore the file from a copy, or make it anew",
        ) from None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically, with a digest of its content in the metadata.

    Returns:
        The digest.

    Raises:
        OSError: If it cannot be written; what was there before stays.
    """
    data = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    mark = digest(data, metadata)
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(data, temporary, {**(metadata or {}), DIGEST: mark})
        except safetensors.SafetensorError as error:
            # A full disk comes as text.
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from error
        _sort_metadata(temporary)
    return mark


def _sort_metadata(path: Path) -> None:
    """Put the metadata in order: the library writes them as they come, differently every time."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # the rest is padding
            stream.seek(8)
            stream.write(text.ljust(length))


def read_tensors(path: Path, *, expected: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file of ours and verify its digest.

    Args:
        path: The file.
        expected: The digest that another file says it has.

    Raises:
        InputError: If the file does not exist.
        DamagedFileError: If it is truncated or altered, in its metadata too.
    """
    metadata = read_metadata(path)
    mark = metadata.pop(DIGEST, "")
    try:
        data: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, f"is not a readable safetensors file: {error}") from None
    if not mark:
        raise _damaged(path, "carries no checksum: it was altered, or is not a file of ours")
    if {mark, expected or mark} != {digest(data, metadata)}:
        raise _damaged(path, "does not match its checksum: it was truncated or altered")
    return data


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; see `read_tensors` for the errors."""
    if not path.is_file():
        raise InputError(f"{path.name} not found", where=str(path), fix="check the path")
    try:
        with safetensors.safe_open(path, "pt") as stream:
            return dict(stream.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, f"is not a readable safetensors file: {error}") from None


def _damaged(path: Path, what: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path.name} {what}",
        where=str(path),
        fix="delete the file and make it anew, or restore it from a copy",
    )


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Short hash of named tensors, by value, and of metadata where there is any."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    for key, text in sorted((metadata or {}).items()):
        state.update(json.dumps([key, text]).encode())
    return state.hexdigest()[:32]


def own_directory(path: Path | str, kind: str) -> Path:
    """Make a directory for our output, or take one up that we made for the same kind of thing.

    Args:
        path: The directory.
        kind: What is kept in it, such as "zoo" or "generator".

    Raises:
        InputError: If the directory exists, holds files, and is not ours; nothing is touched.
    """
    path = Path(path)
    marker = path / MARKER
    if path.exists() and not path.is_dir():
        raise InputError(f"the output {path} is a file", where="--out", fix="give a directory")
    # A marker that a kill left half-written is no one else's file.
    if path.is_dir() and any(not p.match(f".{MARKER}.*.tmp") for p in path.iterdir()):
        found = marker.read_text(encoding="utf-8").strip() if marker.is_file() else ""
        if found != kind:
            what = f"holds a {found}" if found else "is not empty and was not made by ltdi"
            raise InputError(
                f"the output directory {path} {what}; it is left as it is",
                where="--out",
                fix=f"give a new directory for the {kind}, or empty this one yourself",
            )
        return path
    path.mkdir(parents=True, exist_ok=True)
    write_text(marker, kind + "\n")
    return path


def claim_file(path: Path | str, kind: str) -> Path:
    """Check, before any work is done, that an output file may be written.

    Args:
        path: The file; its directory is made.
        kind: "weights" (safetensors) or "result" (JSON).

    Raises:
        InputError: If it exists and is not a file of ours of that kind, or cannot be written.
    """
    path = Path(path)
    fix = "give another file name, or remove it yourself"
    if path.is_dir():
        raise InputError(f"the output {path} is a directory", where=str(path), fix=fix)
    if path.exists() and not _is_ours(path, kind):
        raise InputError(
            f"the output {path} exists and is not a {kind} file of ours; it is left as it is",
            where=str(path),
            fix=fix,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"cannot write to {path.parent}", where=str(path), fix=fix)
    return path


def _is_ours(path: Path, kind: str) -> bool:
    try:
        if kind == "weights":
            return read_metadata(path).get("ltdi") == kind
        value = read_json(path)
    except DamagedFileError:
        return False
    return isinstance(value, dict) and {"track", "rows"} <= set(value)


def plain(value: Any) -> Any:
    """What JSON would give back, so that settings compare equal after a round trip."""
    return json.loads(json.dumps(value))


def tuples(about: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a dataclass has them: JSON's lists are tuples again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}


_ROOT = re.compile(r"^(?:~|\.{1,2}|[A-Za-z]:|file:/)?[/\\]")
_INSIDE = re.compile(r"(?<![\w:/\\.~])(?:~|\.{1,2}|[A-Za-z]:|file:/)?[/\\][\w.~\\/-]*")


def shown(value: Any) -> str:
    """One line that is safe in Markdown and its tables, and shows no directory of the machine."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(k)}: {shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value)
    text = " ".join(str(value).split())
    text = _last(text) if _ROOT.match(text) else _INSIDE.sub(lambda m: _last(m[0]), text)
    # Neither HTML nor links nor code: names of data and classes are whatever someone wrote.
    return re.sub(r"([|<`\[])", r"\\\1", text)


def _last(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name
