"""Rows that stand for a task."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.adapters.host import LanguageHost
from ltdi.adapters.source import TaskRows
from ltdi.errors import InputError

# Rows that stand for a run's task in meta-training.
SHOWN = 64


def support_rows(source: TaskRows, rows: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """`n` of the given rows at random: as many of each class as there are, for a regression any.

    Raises:
        InputError: If a class has no row.
    """
    order = rows[torch.randperm(len(rows), generator=rng)]
    if source.train.regression:
        return order[:n]
    targets, way = source.train.targets[order], source.outputs
    each = [order[targets == c][: -(-n // way)] for c in range(way)]
    if not all(map(len, each)):
        lacking = next(i for i, part in enumerate(each) if not len(part))
        raise InputError(
            f"no row of {source.name} has the class {source.train.label_names[lacking]!r}",
            where="support",
            fix="give at least one row of every class",
        )
    return torch.cat(each)


def shown(host: LanguageHost, source: TaskRows, rows: Tensor, seed: int) -> dict[str, Tensor]:
    """Row features [SHOWN, F] and targets [SHOWN] of rows that a run was fitted to.

    A small task shows some of its rows twice.
    """
    rng = torch.Generator().manual_seed(seed)
    some = support_rows(source, rows, SHOWN, rng)
    some = some[torch.arange(SHOWN) % len(some)]
    texts = [source.train.texts[i] for i in some.tolist()]
    return {"features": host.features(texts), "targets": source.train.targets[some]}
