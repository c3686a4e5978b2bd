"""Rows of shards through memory maps: what is not asked for is not read."""

from __future__ import annotations

import json
import math
import mmap
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ltdi.errors import DamagedFileError
from ltdi.files import DIGEST, digest

# Names of types in a safetensors header.
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


_HEADER_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    RecursionError,
    OverflowError,
)


@dataclass(frozen=True)
class Shard:
    """A safetensors file, mapped: its columns are views of the file.

    Attributes:
        columns: By name; [E, ...] each.
        metadata: The file's own.
        map: The mapping that the columns live in.
    """

    columns: dict[str, Tensor]
    metadata: dict[str, str]
    map: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Map a file; only its header is read.

        Raises:
            DamagedFileError: If the header is not that of a whole safetensors file.
        """
        with path.open("rb") as stream:
            try:
                # A private map may be written to, which torch insists on; the file stays as it is.
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
                length = int.from_bytes(mapped[:8], "little")
                header = json.loads(mapped[8 : 8 + length])
                metadata = header.pop("__metadata__", {})
                columns = {n: _view(mapped, 8 + length, e) for n, e in header.items()}
            except _HEADER_ERRORS as error:
                raise DamagedFileError(
                    f"{path.name} is not a readable safetensors file: {error}", where=str(path)
                ) from None
        return cls(columns, metadata, mapped)

    def check(self, path: Path, expected: str) -> None:
        """Verify the whole content.

        Raises:
            DamagedFileError: If the digest is not the expected one.
        """
        metadata = {k: v for k, v in self.metadata.items() if k != DIGEST}
        mark = digest(self.columns, metadata)
        self.forget()
        if {mark, self.metadata.get(DIGEST)} != {expected}:
            raise DamagedFileError(
                f"{path.name} does not match its checksum: it was truncated or altered",
                where=str(path),
            )

    def forget(self) -> None:
        """Give the memory of the pages read so far back; they are read again when needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


class Shards:
    """Open shards, the least recently used ones closed: neither files nor memory pile up.

    Args:
        most: Shards that are kept open.
        touched: Bytes that may stay in memory; where all open shards fit, they do.
    """

    def __init__(self, most: int = 512, touched: int = 1 << 28) -> None:
        self.most, self.touched = most, touched
        self.open: OrderedDict[Path, Shard] = OrderedDict()
        self.mapped = self.read = 0

    def get(self, path: Path, expected: str | None) -> Shard:
        """A shard, opened if it is not.

        Args:
            path: The file.
            expected: Its digest, to verify the content; None where that has been done.
        """
        shard = self.open.get(path)
        if shard is None:
            shard = self.open[path] = Shard.open(path)
            self.mapped += len(shard.map)
        if expected is not None:
            try:
                shard.check(path, expected)
            except DamagedFileError:
                self.close(path)
                raise
        self.open.move_to_end(path)
        if len(self.open) > self.most:
            self.close(next(iter(self.open)))
        return shard

    def close(self, path: Path) -> None:
        """Forget a shard whose file was replaced."""
        if path in self.open:
            self.mapped -= len(self.open.pop(path).map)

    def count(self, data: Mapping[str, Tensor]) -> None:
        """Tell what was read; once it adds up, the pages behind it are given back."""
        if self.mapped <= self.touched:
            return
        # A page fault brings the pages around it, as many as the system holds together.
        self.read += sum(t.nbytes + len(t) * (1 << 19) for t in data.values())
        if self.read > self.touched:
            self.read = 0
            for shard in self.open.values():
                shard.forget()


def _view(mapped: mmap.mmap, start: int, entry: Mapping[str, object]) -> Tensor:
    dtype, shape = TYPES[str(entry["dtype"])], entry["shape"]
    offsets = entry["data_offsets"]
    assert isinstance(shape, list) and isinstance(offsets, list)
    count = math.prod(shape)
    if count * dtype.itemsize != offsets[1] - offsets[0]:
        raise ValueError(f"a tensor of shape {shape} has {offsets[1] - offsets[0]} bytes")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start + int(offsets[0]))
    return flat.view(shape)
