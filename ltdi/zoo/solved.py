"""Solved tasks as they are read: all of one setting, by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltdi.weights import WeightSpace
from ltdi.zoo.index import Entry

if TYPE_CHECKING:
    from ltdi.zoo.store import Zoo


class Group:
    """All tasks of a zoo that have one setting, read by number."""

    def __init__(self, zoo: Zoo, setting: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        self.zoo, self.setting, self.entries = zoo, dict(setting), list(entries)
        self.ends = torch.tensor([e["tasks"] for e in entries]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def space(self) -> WeightSpace:
        """Weight space of these tasks."""
        return self.zoo.space_of(self.setting)

    def read(
        self, pick: Tensor | None = None, columns: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Some tasks, in memory.

        Args:
            pick: [b] numbers of tasks, 0 <= number < len(self), repeated or not; all by default.
            columns: Names; all by default.

        Returns:
            Columns [b, ...]; integers are int64.

        Raises:
            DamagedFileError: If a shard is missing, truncated or altered.
        """
        pick = torch.arange(len(self)) if pick is None else pick
        shard = torch.searchsorted(self.ends, pick, right=True)
        found = shard.unique().tolist()
        out: dict[str, Tensor] = {}
        for number in found:
            entry = self.entries[number]
            first = int(self.ends[number]) - entry["tasks"]
            held = self.zoo.columns(entry)
            names = list(held) if columns is None else columns
            if len(found) == 1:
                out = {name: held[name][pick - first] for name in names}
                break
            where = (shard == number).nonzero().squeeze(1)
            for name in names:
                rows = held[name][pick[where] - first]
                if name not in out:
                    out[name] = rows.new_empty(len(pick), *rows.shape[1:])
                out[name][where] = rows
        self.zoo.maps.count(out)
        return {n: t.long() if t.dtype == torch.int32 else t for n, t in out.items()}
