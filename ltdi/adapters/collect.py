"""Runs of many text tasks, kept in a zoo: one shard for each run."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ltdi.adapters.condition import describe
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.runs import Run, Runs, plan, run_name, solve
from ltdi.adapters.source import TaskRows
from ltdi.adapters.support import shown
from ltdi.adapters.training import AdapterRecipe, Read, Solved
from ltdi.collect import Preparation
from ltdi.data.text.metrics import measure
from ltdi.engine import Collection
from ltdi.errors import InputError
from ltdi.files import locked, plain
from ltdi.lora import Adapter, adapter_logits
from ltdi.zoo import Group, Zoo

START = "start"


@dataclass(frozen=True)
class RunShard:
    """A run, as a shard of its own.

    Attributes:
        name: Of the shard.
        task: Number of the text task.
        index: Of the run in its task's plan.
        tasks: How many runs it has.
    """

    name: str
    task: int
    index: int
    tasks: int = 1


class RunCollection(Collection[RunShard]):
    """A zoo of adapters that has been started; the trunks of all tasks are first.

    A task without labels is given one trunk: nobody asks for its adapter itself.

    A shard has "theta", "features" and "targets" of rows that the run was fitted to, the final
    "loss" and the validation "score"; the index has its "seconds".

    Args:
        zoo: Started by `begin_runs`.
        host: The language model, where it is loaded already.
        branches: Of each task, in the plan. A run has its number whatever they are, so that a zoo
            can grow.
        plans: Of each task, where they are made already.
    """

    def __init__(
        self,
        zoo: Zoo,
        host: LanguageHost | None = None,
        branches: int = 0,
        plans: Sequence[list[Run]] = (),
    ) -> None:
        about = zoo.about
        self.host = host or LanguageHost.from_config(about["base"])
        self.names: list[str] = about["names"]
        runs, made = Runs(branches=branches, **about["runs"]), about.get("unlabelled", ())
        self.runs = [runs_of(runs, name in made) for name in self.names]
        self.trunks = [
            (task, index)
            for index in range(runs.trunks)
            for task, own in enumerate(self.runs)
            if index < own.trunks
        ]
        self.least = len(self.trunks)
        self.rows = functools.cache(functools.partial(TaskRows.kept, zoo))
        self._plans = dict(enumerate(plans))
        count = self.least + branches * len(self.names)
        super().__init__(zoo, [self.shard(number) for number in range(count)])

    @classmethod
    def open(cls, zoo: Zoo) -> RunCollection:
        """See `Collection.open`."""
        return RunCollection(zoo)

    def shard(self, number: int) -> RunShard:
        """The run of a number: the trunks, then the first branch of every task, the second, .."""
        if number < self.least:
            task, index = self.trunks[number]
        else:
            branch, task = divmod(number - self.least, len(self.names))
            index = self.runs[task].trunks + branch
        return RunShard(f"{self.names[task]}-{run_name(self.runs[task], index)}", task, index)

    def run(self, task: int, index: int) -> Run:
        """A run of a task.

        Raises:
            InputError: If the task is too small.
        """
        if index >= len(self._plans.get(task, ())):
            rows, seed = self.rows(task), int(self.zoo.about["seed"])
            runs = self.runs[task]
            enough = replace(runs, branches=max(runs.branches, 2 * index))
            self._plans[task] = plan(self.host.adapter(rows.outputs), rows, enough, seed=seed)
        return self._plans[task][index]

    def make(self, number: int) -> None:
        """Fit one run; a branch waits for whoever makes its trunk, or makes it."""
        piece = self.shard(number)
        run = self.run(piece.task, piece.index)
        if run.branch:
            trunk = self.trunks.index((piece.task, run.trunk))
            self.make(trunk)
            self._fit(piece, run, self.zoo.columns(self.zoo.entry(self.shard(trunk).name)))
            return
        with locked(self.zoo.path / f".{piece.name}.lock"):
            self.zoo.refresh()
            if not self.zoo.has(piece.name):
                self._fit(piece, run)

    def _fit(self, piece: RunShard, run: Run, trunk: Mapping[str, Tensor] | None = None) -> None:
        about, host, rows = self.zoo.about, self.host, self.rows(piece.task)
        prepare = Preparation(**about["own"].get(rows.name, about["prepare"]))
        adapter = host.adapter(rows.outputs)
        start = None
        if trunk is not None:  # one that diverged was dropped, and so will be what it leads to
            lost = torch.full((1, prepare.segments, adapter.space.size), torch.nan)
            start = torch.cat([trunk["theta"], lost])[0]
        found = solve(adapter, rows, run, prepare, self.runs[piece.task], start)
        score = validation(host, rows, found.theta[-1]) if found.finite else 0.0
        columns = {
            "theta": found.theta,
            **shown(host, rows, run.rows, run.seed),
            "loss": found.loss[-1],
            "score": torch.tensor(score),
        }
        self.zoo.append(
            piece.name,
            {name: value.unsqueeze(0) for name, value in columns.items()},
            torch.tensor([found.finite]),
            setting={"way": rows.outputs, "task": piece.task},
            beside={"seconds": round(found.seconds, 3)},
        )


def runs_of(runs: Runs, unlabelled: bool) -> Runs:
    """Those that a task is given."""
    return replace(runs, trunks=1) if unlabelled else runs


def begin_runs(
    path: Path | str,
    host: LanguageHost,
    tasks: Sequence[TaskRows],
    descriptions: Mapping[str, str],
    recipe: AdapterRecipe,
    *,
    seed: int = 0,
) -> RunCollection:
    """Start a zoo of adapters, or take up the one there: all but the runs.

    How many branches a task is given is no setting: a zoo can grow.

    Args:
        path: Directory of the zoo: new, empty, or that of such a zoo.
        host: The language model.
        tasks: The text tasks; their rows are kept in the zoo, where workers read them.
        descriptions: Of tasks, by name.
        recipe: How they are solved, and how often.
        seed: Of rows and batches.

    Raises:
        InputError: If the directory holds something else, there is no task, two have one name, or
            one is too small.
        MismatchError: If it is a zoo of another base model or other texts, or was collected in
            another way.
    """
    names, runs = [t.name for t in tasks], recipe.runs
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"text tasks need names of their own, got {', '.join(names) or 'none'}",
            where="tasks",
            fix="name one or more, no two alike",
        )
    if runs.trunks < 1 or runs.branches < 0:
        raise InputError(
            f"{runs.trunks} trunks and {runs.branches} branches are not possible",
            where="runs",
            fix="give one trunk or more: branches begin in the middle of one",
        )
    outputs = sorted({t.outputs for t in tasks})
    plans = [  # a task that is too small is refused before anything is written
        plan(host.adapter(t.outputs), t, runs_of(runs, bool(t.origin)), seed=seed) for t in tasks
    ]
    about = {
        "kind": "adapter",
        "base": host.describe(),
        "prepare": asdict(recipe.prepare),
        "own": {t.name: asdict(recipe.own[t.name]) for t in tasks if t.name in recipe.own},
        "runs": {name: value for name, value in asdict(runs).items() if name != "branches"},
        "seed": seed,
        "names": names,
        "descriptions": [descriptions.get(name, "") for name in names],
        "outputs": {t.name: [t.outputs, list(t.train.label_names)] for t in tasks},
    }
    if made := [t.name for t in tasks if t.origin]:
        about["unlabelled"] = made
    zoo = Zoo.create(path, host.adapter(outputs[-1]).space, plain(about))
    zoo.keep(START, {str(o): host.adapter(o).theta_0 for o in outputs})
    for number, task in enumerate(tasks):
        task.keep(zoo, number)
    return RunCollection(zoo, host, runs.branches, plans)


def collected(zoo: Zoo, recipe: AdapterRecipe, planned: int | None = None) -> AdapterRecipe:
    """A recipe with how the runs of a zoo are made, and how many branches each task has.

    Args:
        zoo: A zoo of adapters.
        recipe: The rest.
        planned: Runs it will have once it is full, by default those that are there. While it is
            being filled, these depend on the moment, and the same training would differ by it.
    """
    about = zoo.about
    runs = Runs(**about.get("runs", {}))  # zoos of earlier versions do not say
    own = [runs_of(runs, name in about.get("unlabelled", ())) for name in about["names"]]
    branches = (planned or len(zoo.shards)) - sum(of.trunks for of in own)
    return replace(
        recipe,
        runs=replace(runs, branches=max(0, math.ceil(branches / len(own)))),
        prepare=Preparation(**about["prepare"]),
        own={name: Preparation(**p) for name, p in about.get("own", {}).items()},
    )


def validation(
    host: LanguageHost, source: TaskRows, theta: Tensor, model: Adapter | None = None
) -> float:
    """The task's metric on its validation rows; the host's kind of adapter by default."""
    if not len(source.valid):
        return 0.0
    labels = source.train.select(source.valid).labels
    assert labels is not None
    model = model or host.adapter(source.outputs)
    logits = adapter_logits(model, theta, source.inputs[source.valid])
    return measure(source.train.metric, logits, labels)


def reader(zoo: Zoo, host: LanguageHost, *, worse: float = 0.02) -> Read:
    """Reads the runs of a zoo's groups into memory, by number of outputs.

    A look reads what has come since the one before: groups grow at their ends. All runs of a task
    are left out but those that share their beginning with its best one: runs that part early end in
    different places, and what is generated is between them, where a task is solved less well. The
    beginning of the first look is kept: to it a basis is fitted, which knows nothing of another.

    Args:
        zoo: A zoo of adapters.
        host: Embeds descriptions.
        worse: Runs are left out whose validation score is further than this below the best of
            their task: a fit that failed is nothing to learn from.
    """
    begun: dict[int, Tensor] = {}
    seen: Counter[int] = Counter()
    held: dict[int, dict[str, Tensor]] = {}
    texts = torch.stack([describe(host.base, d) for d in zoo.about["descriptions"]])
    made = {zoo.about["names"].index(name) for name in zoo.about.get("unlabelled", ())}

    def read(groups: Sequence[Group]) -> list[Solved]:
        by_outputs: dict[int, list[Solved]] = {}
        for group in groups:
            number = int(group.setting["task"])
            if new := range(seen[number], len(group)):
                data = group.read(torch.tensor(new), ["score", "theta", "features", "targets"])
                first, score = data["theta"][:, 0], data["score"]
                own = (first == begun.setdefault(number, first[score.argmax()])).all(1)
                data = {name: column[own] for name, column in data.items()}
                if number in held:
                    data = {n: torch.cat([x, data[n]]) for n, x in held[number].items()}
                good = data["score"] >= data["score"].max() - worse
                held[number] = {name: column[good] for name, column in data.items()}
                seen[number] = len(group)
            runs = {n: x for n, x in held[number].items() if n != "score"}
            task = torch.full((len(runs["theta"]),), number)
            labelled = torch.full_like(task, number not in made, dtype=torch.bool)
            found = Solved(**runs, text=texts[task], task=task, labelled=labelled)
            by_outputs.setdefault(int(group.setting["way"]), []).append(found)
        return [
            Solved(**{n: torch.cat([vars(p)[n] for p in parts]) for n in vars(parts[0])})
            for _, parts in sorted(by_outputs.items())
        ]

    return read
