"""Meta-training of any kind of weights, of a zoo that is full or is being filled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.diffusion import Draw, draw, make_schedule
from ltdi.diffusion.losses import loss_of
from ltdi.engine.arrivals import Arrivals
from ltdi.files import plain
from ltdi.meta import Batch, MetaTrainer, Params
from ltdi.meta.checkpoint import NAME as CHECKPOINT
from ltdi.meta.team import ALONE, Team
from ltdi.parts import Parts
from ltdi.progress import Log, Progress
from ltdi.recipe import Diffusion, Varied
from ltdi.zoo import Group, Zoo


@dataclass(frozen=True)
class Runtime:
    """Where a training keeps its checkpoint, whom it tells, and who computes.

    Attributes:
        out: Directory for the checkpoint; none is written without it.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        team: Device and processes.
        arrivals: Where the zoo is being filled: what is seen of it at which iteration.
    """

    out: Path | None = None
    progress: Progress | None = None
    log: Log | None = None
    team: Team = ALONE
    arrivals: Arrivals | None = None

    def groups(self, zoo: Zoo) -> list[Group]:
        """The tasks that training begins with; see `Zoo.groups` for the errors."""
        return (self.arrivals and self.arrivals.at(0)) or zoo.groups()


class Objective(ABC):
    """What meta-training minimises: solved tasks are drawn, noised, and a network is scored."""

    groups: Sequence[Any]

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion = diffusion
        self.schedule = make_schedule(diffusion.schedule, diffusion.steps)
        self.loss = loss_of(diffusion.loss, diffusion.plus_weight)

    def see(self, groups: Sequence[Group]) -> None:
        """Draw from these tasks from now on."""
        self.groups = groups

    @abstractmethod
    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets of random tasks, all of one group; every tensor [tasks, ...]."""

    @abstractmethod
    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner."""

    def pick(self, rng: torch.Generator, tasks: int) -> tuple[Group, Tensor]:
        """A random group, and numbers [tasks] of tasks in it."""
        group = self.groups[int(torch.randint(len(self.groups), (), generator=rng))]
        return group, torch.randint(len(group), (tasks,), generator=rng)

    def noised(self, trajectory: Tensor, rng: torch.Generator) -> Draw:
        """Normalised local targets [tasks, k, n], noised as the chain asks."""
        d = self.diffusion
        return draw(
            d.objective,
            trajectory,
            self.schedule,
            prediction=d.prediction,
            first=d.first,
            rng=rng,
        )


def meta_train(
    parts: Parts,
    objective: Objective,
    recipe: Varied,
    runtime: Runtime = Runtime(),
    **about: Any,
) -> Parts:
    """Meta-train a generator's parts, on the device and by the processes of a team.

    Args:
        parts: With an initialised network; afterwards it holds the average of its weights.
        objective: The training loss.
        recipe: Chain, network, meta-training.
        runtime: Checkpoint, progress, team, arrivals.
        **about: What a resumed run must share beside all that; JSON-able.

    Raises:
        DivergedError: If the loss leaves the finite numbers.
    """
    network = parts.network
    about |= {"space": parts.space.fingerprint, "backbone": parts.host.fingerprint}
    out, progress, arrivals = runtime.out, runtime.progress, runtime.arrivals
    network.to(runtime.team.device)
    run = {**asdict(recipe.diffusion), **asdict(recipe.network)}
    run |= arrivals.settings if arrivals else {}

    def look(step: int) -> None:
        """Before an iteration: draw from the tasks that are visible at it."""
        groups = arrivals.at(step) if arrivals else None
        if arrivals and groups is not None:
            objective.see(groups)
            if progress:
                progress("shards", arrivals.visible, len(arrivals.plan), "visible to training")
            if runtime.log:
                runtime.log({"event": "arrivals", "step": step, "shards": arrivals.visible})

    def finished(i: int, n: int, loss: float) -> None:
        if progress:
            progress("meta-training", i, n, f"loss {loss:.4f}")

    trainer = MetaTrainer(
        network,
        objective,
        objective.draw,
        recipe.meta,
        run=plain({**run, **about}),
        before=look,
        team=runtime.team,
    )
    trainer.fit(out / CHECKPOINT if out else None, progress=finished, log=runtime.log)
    network.to("cpu")
    if arrivals:
        arrivals.end()
    return parts
