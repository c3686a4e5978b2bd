"""Runs of many text tasks, kept in a zoo: one shard for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.condition import describe
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.runs import plan, solve
from ltdi.adapters.source import Source
from ltdi.adapters.support import shown
from ltdi.adapters.training import AdapterRecipe, Solved
from ltdi.errors import InputError
from ltdi.lora import Adapter, adapter_logits
from ltdi.metrics import measure
from ltdi.progress import Progress
from ltdi.zoo import Zoo

START = "start"


def open_zoo(
    path: Any,
    host: LanguageHost,
    sources: Sequence[Source],
    descriptions: Mapping[str, str],
    recipe: AdapterRecipe,
    *,
    seed: int = 0,
) -> Zoo:
    """Start a zoo of adapters, or take up one that was started with the same settings.

    How many runs a task is given is no setting: a zoo can grow.

    Raises:
        InputError: If the directory holds something else, or there is no task.
        MismatchError: If it is a zoo of another base model, or was collected in another way.
    """
    if not sources:
        raise InputError("there is no text task", where="tasks", fix="name one or more")
    outputs = sorted({s.outputs for s in sources})
    own = {s.name: asdict(recipe.own[s.name]) for s in sources if s.name in recipe.own}
    about = {
        "kind": "adapter",
        "base": host.describe(),
        "prepare": asdict(recipe.prepare),
        "own": own,
        "shared": recipe.runs.shared,
        "seed": seed,
        "names": [s.name for s in sources],
        "rows": [[len(s.fit), len(s.valid), len(s.unseen)] for s in sources],
        "descriptions": [descriptions.get(s.name, "") for s in sources],
        "outputs": {s.name: [s.outputs, list(s.train.label_names)] for s in sources},
    }
    if made := [s.name for s in sources if s.origin]:
        about["unlabelled"] = made
    zoo = Zoo.create(path, host.adapter(outputs[-1]).space, about)
    zoo.keep(START, {str(o): host.adapter(o).theta_0 for o in outputs})
    return zoo


def collect_runs(
    zoo: Zoo,
    host: LanguageHost,
    sources: Sequence[Source],
    recipe: AdapterRecipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Make the runs of all tasks that the zoo lacks, trunks first.

    A task without labels is given one trunk: nobody asks for its adapter itself.

    A shard has "theta", "features" and "targets" of rows that the run was fitted to, "seconds",
    and the final "loss" and validation "score".

    Args:
        zoo: Of `open_zoo`.
        host: The language model.
        sources: The tasks.
        recipe: How they are solved, and how often.
        seed: Of rows and batches.
        progress: Called as progress(stage, done, total, text).
    """
    one = replace(recipe.runs, trunks=min(1, recipe.runs.trunks))
    plans = [
        plan(host.adapter(s.outputs), s, one if s.origin else recipe.runs, seed=seed)
        for s in sources
    ]
    done, total = 0, sum(map(len, plans))
    for number in range(max(map(len, plans))):
        for task, (source, runs) in enumerate(zip(sources, plans, strict=True)):
            if number >= len(runs):
                continue
            run, name = runs[number], f"{source.name}-{runs[number].name}"
            if not zoo.has(name):
                adapter = host.adapter(source.outputs)
                trunk = None
                if run.branch:
                    trunk = zoo.columns(zoo.entry(f"{source.name}-trunk-{run.trunk}"))["theta"][0]
                prepare = recipe.preparation(source.name)
                found = solve(adapter, source, run, prepare, recipe.runs, trunk)
                record = {
                    "theta": found.theta,
                    **shown(host, source, run.rows, run.seed),
                    "seconds": torch.tensor(found.seconds),
                    "loss": found.loss[-1],
                    "score": torch.tensor(0.0),
                }
                if found.finite:
                    record["score"] = torch.tensor(validation(host, source, found.theta[-1]))
                append(zoo, name, record, task, source, found.finite)
            done += 1
            if progress:
                progress("fitting adapters", done, total, name)


def append(
    zoo: Zoo, name: str, record: Mapping[str, Tensor], task: int, source: Source, finite: bool
) -> None:
    """Store one run as a shard; one that diverged is counted and dropped."""
    zoo.append(
        name,
        {key: value.unsqueeze(0) for key, value in record.items()},
        torch.tensor([finite]),
        setting={"way": source.outputs, "task": task},
    )


def validation(
    host: LanguageHost, source: Source, theta: Tensor, model: Adapter | None = None
) -> float:
    """The task's metric on its validation rows; the host's kind of adapter by default."""
    if not len(source.valid):
        return 0.0
    labels = source.train.select(source.valid).labels
    assert labels is not None
    model = model or host.adapter(source.outputs)
    logits = adapter_logits(model, theta, source.inputs[source.valid])
    return measure(source.train.metric, logits, labels)


def read_runs(
    zoo: Zoo, host: LanguageHost, *, worse: float = 0.02, one_trunk: bool = True
) -> list[Solved]:
    """The zoo's runs by number of outputs, in memory.

    Args:
        zoo: A zoo of adapters.
        host: Embeds descriptions.
        worse: Runs are left out whose validation score is further than this below the best of
            their task: a fit that failed is nothing to learn from.
        one_trunk: Leave out all runs of a task but those that share their beginning with its best
            one. Runs that part early end in different places, and what is generated is between
            them, where a task is solved less well.

    Raises:
        InputError: If there are none.
        DamagedFileError: If a shard is missing, truncated or altered.
    """
    texts = torch.stack([describe(host.base, d) for d in zoo.about["descriptions"]])
    made = {zoo.about["names"].index(name) for name in zoo.about.get("unlabelled", ())}
    by_outputs: dict[int, list[Solved]] = {}
    for group in zoo.groups():
        score = group.read(columns=["score"])["score"]
        good = score >= score.max() - worse
        if one_trunk:
            first = group.read(columns=["theta"])["theta"][:, 0]
            good &= (first == first[score.argmax()]).all(1)
        pick = good.nonzero()[:, 0]
        data = group.read(pick, ["theta", "features", "targets"])
        number = int(group.setting["task"])
        task = torch.full((len(pick),), number)
        labelled = torch.full((len(pick),), number not in made)
        found = Solved(
            data["theta"], data["features"], data["targets"], texts[task], task, labelled
        )
        by_outputs.setdefault(int(group.setting["way"]), []).append(found)
    return [
        Solved(**{n: torch.cat([vars(p)[n] for p in parts]) for n in vars(parts[0])})
        for _, parts in sorted(by_outputs.items())
    ]
