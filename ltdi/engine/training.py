"""Meta-training of any kind of weights, of a zoo that is full or is being filled."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ltdi.engine.arrivals import Arrivals
from ltdi.files import plain
from ltdi.meta import Batch, MetaTrainer, Params
from ltdi.meta.checkpoint import NAME as CHECKPOINT
from ltdi.meta.team import ALONE, Team
from ltdi.progress import Log, Progress
from ltdi.recipe import Varied
from ltdi.zoo import Group


@dataclass(frozen=True)
class Runtime:
    """Where a training keeps its checkpoint, whom it tells, and who computes.

    Attributes:
        out: Directory for the checkpoint; none is written without it.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        team: Device and processes.
    """

    out: Path | None = None
    progress: Progress | None = None
    log: Log | None = None
    team: Team = ALONE


class Objective(Protocol):
    """What meta-training needs to know of a kind of weights: how batches are drawn and scored."""

    def see(self, groups: list[Group]) -> None:
        """Draw from these tasks from now on."""

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets; every tensor [tasks, ...]."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner."""


def meta_train(
    network: torch.nn.Module,
    objective: Objective,
    recipe: Varied,
    about: Mapping[str, Any],
    runtime: Runtime = Runtime(),
    arrivals: Arrivals | None = None,
) -> None:
    """Meta-train a network, on the device and by the processes of a team.

    Args:
        network: Initialised; afterwards it holds the average of its weights.
        objective: The training loss.
        recipe: Chain, network, meta-training.
        about: What else a resumed run must share, such as what the weights live in; JSON-able.
        runtime: Checkpoint, progress, team.
        arrivals: Where the zoo is being filled: what is seen of it at which iteration.

    Raises:
        DivergedError: If the loss leaves the finite numbers.
    """
    out, progress, team = runtime.out, runtime.progress, runtime.team
    network.to(team.device)
    run = {**asdict(recipe.diffusion), **asdict(recipe.network)}
    run |= arrivals.settings if arrivals else {}
    trainer = MetaTrainer(
        network,
        objective,
        objective.draw,
        recipe.meta,
        run=plain({**run, **about}),
        before=functools.partial(_see_arrivals, arrivals, objective, runtime),
        team=team,
    )

    def finished(i: int, n: int, loss: float) -> None:
        if progress:
            progress("meta-training", i, n, f"loss {loss:.4f}")

    trainer.fit(out / CHECKPOINT if out else None, progress=finished, log=runtime.log)
    network.to("cpu")
    if arrivals:
        arrivals.end()


def _see_arrivals(
    arrivals: Arrivals | None, objective: Objective, runtime: Runtime, step: int
) -> None:
    """Before an iteration: draw from the tasks that are visible at it."""
    groups = arrivals.at(step) if arrivals else None
    if arrivals and groups is not None:
        objective.see(groups)
        if runtime.progress:
            total = len(arrivals.plan)
            runtime.progress("shards", arrivals.visible, total, "visible to training")
        if runtime.log:
            runtime.log({"event": "arrivals", "step": step, "shards": arrivals.visible})
