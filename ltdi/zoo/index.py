"""The list of finished shards: JSON lines, each with a checksum, that grow at the end.

Finishing a shard costs one line, however many there are. A line that a kill cut short is no line:
its shard is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ltdi.errors import DamagedFileError
from ltdi.files import write_text

NAME = "shards.jsonl"
Entry = dict[str, Any]

_HEAD, _SUM = '{"sum": "', 16
_BODY = len(_HEAD) + _SUM + len('", ')


def write_line(entry: Entry) -> str:
    """An entry as a line; the checksum in front is of the text behind it."""
    body = json.dumps(entry, ensure_ascii=False)[1:]
    return f'{_HEAD}{_checksum(body.encode())}", {body}\n'


def body_of(line: bytes) -> bytes | None:
    """The entry of a line as JSON, or None if the line is not whole."""
    head = f'{_HEAD}{_checksum(line[_BODY:])}", '.encode()
    return b"{" + line[_BODY:] if line[:_BODY] == head else None


class Index:
    """The entries of a file that other processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []  # in the order in which they were appended
        self.read = 0  # bytes of whole lines that were read

    def refresh(self) -> bool:
        """Read what was appended since the last time.

        Returns:
            Whether there was anything.

        Raises:
            DamagedFileError: If a line was altered, or lines that were read are gone.
        """
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self.read:
            # It was compacted, or shards were taken out.
            self.entries, self.read = [], 0
        if size == self.read:
            return False
        with self.path.open("rb") as stream:
            stream.seek(self.read)
            data = stream.read()
        found: list[bytes] = []
        for line in data.splitlines(keepends=True):
            whole = line.endswith(b"\n")
            body = body_of(line[:-1] if whole else line)
            if body is None:
                # A kill can cut the last line short, never change it.
                if not whole and body_of(line[:-1]) is None:
                    break
                raise DamagedFileError(
                    f"line {len(self.entries) + len(found) + 1} of {NAME} does not match its "
                    "checksum",
                    where=str(self.path),
                    fix="restore the file from a copy, or delete that line and collect again: "
                    "only its shard is made anew",
                )
            found.append(body)
            self.read += len(line) if whole else len(line) + 1
        # One text is parsed faster than a hundred thousand.
        self.entries += json.loads(b"[" + b",".join(found) + b"]")
        return bool(found)

    def append(self, entry: Entry) -> None:
        """Add a line and flush it to disk; the caller holds the lock and has refreshed."""
        self.path.touch()
        with self.path.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            if size > self.read:  # what a kill left of a line
                stream.truncate(self.read)
            stream.seek(self.read)
            if size == self.read - 1:  # a whole line that lacks its end
                stream.seek(size)
                stream.write(b"\n")
            line = write_line(entry).encode()
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.entries.append(entry)
        self.read += len(line)

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace all lines at once; the caller holds the lock."""
        self.entries = list(entries)
        text = "".join(map(write_line, self.entries))
        write_text(self.path, text)
        self.read = len(text.encode())


def _checksum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:_SUM]
