"""`zoo.json`: what all tasks have in common, with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltdi.errors import DamagedFileError, MismatchError
from ltdi.files import read_json, write_json

SCHEMA = 3
HEADER = "zoo.json"
COPY = "restore the file from a copy, or collect into a new directory"


def read_header(path: Path) -> dict[str, Any]:
    """What `write_header` wrote.

    Raises:
        MismatchError: If the zoo has another schema.
        DamagedFileError: If the file is truncated or altered.
    """
    header = read_json(path)
    found = set(header) if isinstance(header, dict) else set()
    # The number of another schema is told before its keys are missed.
    if "schema" in found and "space" in found and header["schema"] != SCHEMA:
        raise MismatchError(
            f"the zoo has schema {header['schema']}, this version reads {SCHEMA}",
            where=str(path),
            fix="collect the zoo anew with this version",
        )
    missing = {"schema", "space", "about", "shared"} - found
    if missing:
        raise DamagedFileError(
            f"{HEADER} lacks {', '.join(sorted(missing))}", where=str(path), fix=COPY
        )
    if header.pop("digest", "") != _checksum(header):
        raise DamagedFileError(
            f"{HEADER} does not match its checksum: it was truncated or altered",
            where=str(path),
            fix=COPY,
        )
    return dict(header)


def write_header(path: Path, header: Mapping[str, Any]) -> None:
    """Write it with its checksum, atomically."""
    write_json(path, {**header, "digest": _checksum(header)})


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:32]
