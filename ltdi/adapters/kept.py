"""Finished pieces of a long computation, kept so that it goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.errors import MismatchError
from ltdi.files import (
    own_directory,
    read_json,
    read_metadata,
    read_tensors,
    write_json,
    write_tensors,
)
from ltdi.memory import peak_mb

ABOUT = "about.json"


class Kept:
    """A directory of named pieces, each made once.

    Args:
        path: Directory of its own; None keeps pieces for this process alone.
        about: What all pieces depend on; JSON-able.

    Attributes:
        seconds: What each piece took.
        peak_mb: Most memory of a process that made one of the pieces that were asked for.

    Raises:
        MismatchError: If the directory's pieces depend on something else.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path = None if path is None else own_directory(path, "work")
        self.seconds: dict[str, float] = {}
        self.peak_mb = 0.0
        self._here: dict[str, dict[str, Tensor]] = {}
        if self.path is None:
            return
        file = self.path / ABOUT
        if not file.is_file():
            write_json(file, dict(about))
        known = read_json(file)
        for key, value in about.items():
            if known.get(key) != value:
                raise MismatchError(
                    f"its pieces were made with {key} = {known.get(key)!r}, now {value!r}",
                    where=str(self.path),
                    fix="use the same settings, or another directory",
                )

    def __call__(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The piece called `name`, made if it is not there; `seconds` says what it took.

        Raises:
            DamagedFileError: If its file is truncated or altered.
        """
        if name in self._here:
            return self._here[name]
        file = None if self.path is None else self.path / f"{name}.safetensors"
        if file is not None and file.is_file():
            about = read_metadata(file)
            self.seconds[name] = float(about["seconds"])
            self.peak_mb = max(self.peak_mb, float(about.get("peak_mb", 0)))
            return read_tensors(file)
        start = time.perf_counter()
        piece = make()
        self.seconds[name], peak = time.perf_counter() - start, peak_mb()
        self.peak_mb = max(self.peak_mb, peak)
        if file is None:
            self._here[name] = piece
        else:
            about = {"seconds": f"{self.seconds[name]:.4f}", "peak_mb": f"{peak:.0f}"}
            write_tensors(file, piece, about)
        return piece
