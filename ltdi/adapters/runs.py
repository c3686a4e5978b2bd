"""Weight preparation of adapters: few long runs, and many short ones that branch from them.

A long run of a task (a trunk) costs minutes on a CPU. Its last segment costs seconds, and is run
again with other rows, slices and batches: each branch is a trajectory of its own that shares the
trunk's first local targets. All start at one theta_0, so that their factors are comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.adapters.source import TaskRows, word_features
from ltdi.collect import Preparation
from ltdi.data.text import KINDS, subtasks
from ltdi.errors import InputError
from ltdi.lora import Adapter, Fitted, fit_adapter

# Slices of a task that branches are fitted to.
SLICES = 3


@dataclass(frozen=True)
class Runs:
    """Which runs a task is given.

    Attributes:
        trunks: Long runs on all rows, which differ in their batches.
        branches: Runs of the last segments only, on samples of the rows, and on slices by length
            and by topic; they branch from the trunks in turn.
        shared: Share of a branch's steps that its trunk has taken.
        rows: Most rows of a branch.
    """

    trunks: int = 3
    branches: int = 16
    shared: float = 0.75
    rows: int = 2048


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a task.

    Attributes:
        name: Unique in its task.
        trunk: Number of the trunk that it is or branches from.
        kind: "trunk" or a kind of sub-task.
        rows: Rows of the source that it is fitted to.
        seed: Of its batches.
    """

    name: str
    trunk: int
    kind: str
    rows: Tensor
    seed: int

    @property
    def branch(self) -> bool:
        """Whether it begins in the middle of another run."""
        return self.kind != "trunk"


def run_name(runs: Runs, index: int) -> str:
    """Of the run of a number in its task's plan."""
    j = index - runs.trunks
    return f"trunk-{index}" if j < 0 else f"branch-{j:03d}"


def plan(adapter: Adapter, source: TaskRows, runs: Runs, *, seed: int = 0) -> list[Run]:
    """All runs of a task, trunks first; the same for the same arguments.

    Raises:
        InputError: If the task is too small.
    """
    out = [
        Run(run_name(runs, i), i, "trunk", source.fit, 1_000_003 * (seed + 1) + i)
        for i in range(runs.trunks)
    ]
    drawn = {kind: _sub_tasks(adapter, source, runs, kind, seed) for kind in KINDS}
    for j in range(runs.branches):
        # Every trunk meets every kind.
        shift = j // runs.trunks if runs.trunks % len(KINDS) == 0 else 0
        kind = KINDS[(j + shift) % len(KINDS)]
        rows = source.fit[next(drawn[kind])]
        number = 2_000_003 * (seed + 1) + j
        name = run_name(runs, runs.trunks + j)
        out.append(Run(name, j % runs.trunks, kind, rows, number))
    return out


def solve(
    adapter: Adapter,
    source: TaskRows,
    run: Run,
    preparation: Preparation,
    runs: Runs,
    trunk: Tensor | None = None,
) -> Fitted:
    """Fit one run; a branch begins at the local targets [k, n] of its trunk.

    Returns:
        All k local targets; a branch has its first ones from its trunk, and no loss for them.
    """
    rng = torch.Generator().manual_seed(run.seed)
    inputs, targets = source.inputs[run.rows], source.train.targets[run.rows]
    if trunk is None:
        return fit_adapter(adapter, inputs, targets, preparation, rng)
    k = preparation.segments
    kept = branch_point(runs, k)
    found = fit_adapter(
        adapter,
        inputs,
        targets,
        preparation,
        rng,
        start=trunk[kept - 1],
        taken=kept * (preparation.steps // k),
    )
    theta = torch.cat([trunk[:kept], found.theta])
    return replace(found, theta=theta, finite=found.finite and bool(theta.isfinite().all()))


def branch_point(runs: Runs, segments: int) -> int:
    """Local targets that a branch shares with its trunk: at least one, and not all."""
    return max(1, min(segments - 1, round(runs.shared * segments)))


def _sub_tasks(
    adapter: Adapter, source: TaskRows, runs: Runs, kind: str, seed: int
) -> Iterator[Tensor]:
    texts, n = source.train.select(source.fit), max(1, runs.branches)
    size = len(texts) // (2 if kind == "rows" else 2 * SLICES)
    words = word_features(adapter.base, source.inputs[source.fit]) if kind == "topic" else None
    rng = torch.Generator().manual_seed(3_000_017 * (seed + 1))
    size = max(texts.outputs, min(size, runs.rows))
    try:
        return iter(subtasks(texts, rng, n, size, kind=kind, slices=SLICES, embeddings=words))
    except InputError:
        if kind == "rows":
            raise
        # A small task may have no slice with every class.
        return iter(subtasks(texts, rng, n, size))
