"""Zoos behind a URL, for reading: files are fetched when they are first needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdi.errors import InputError
from ltdi.files import replacing
from ltdi.optional import optional


def is_url(path: Path | str) -> bool:
    """Whether a path is a URL."""
    return "://" in str(path)


@dataclass(frozen=True)
class Remote:
    """A directory that fsspec reads.

    Attributes:
        url: As it was given.
        system: fsspec's file system.
        root: The directory in it.
        cache: Local directory that fetched files are kept in.
    """

    url: str
    system: Any
    root: str
    cache: Path

    @classmethod
    def of(cls, path: Path | str, cache: Path | str | None) -> Remote | None:
        """The remote directory behind a URL, or None for a path of this machine.

        Raises:
            InputError: If nothing installed reads such a URL.
        """
        if not is_url(path):
            return None
        core = optional("fsspec.core", purpose="a zoo behind a URL", package="fsspec")
        try:
            system, root = core.url_to_fs(str(path))
        except (ImportError, ValueError) as error:
            raise InputError(
                f"cannot read {path}: {error}",
                where=str(path),
                fix="install fsspec's package for this kind of URL (s3fs for s3://, gcsfs for gs://)",
            ) from None
        mark = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        folder = Path(cache) if cache else Path.home() / ".cache" / "ltdi"
        return cls(str(path), system, root.rstrip("/"), folder / f"zoo-{mark}")

    def fetch(self, name: str, *, anew: bool = False) -> bool:
        """Bring a file, or the files of a folder, here.

        What may change, the header and the index, is always fetched; all else once.

        Returns:
            Whether anything was fetched.
        """
        target, source = self.cache / name, f"{self.root}/{name}"
        changes = name.endswith((".json", ".jsonl")) and "/" not in name
        if target.exists() and not changes and not anew:
            return False
        if not self.system.exists(source):
            return False
        if self.system.isdir(source):
            for inner in self.system.find(source):
                self.fetch(f"{name}/{inner[len(source) :].lstrip('/')}", anew=anew)
            return True
        with replacing(target) as temporary:
            self.system.get_file(source, str(temporary))
        return True
