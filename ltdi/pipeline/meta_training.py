"""Meta-training of any kind of weights, and the sampling that suits validation classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ltdi.anchor import Anchor
from ltdi.checkpoint import NAME as CHECKPOINT
from ltdi.choice import choose_sampling
from ltdi.engine import Arrivals
from ltdi.files import plain
from ltdi.generator import ImageGenerator
from ltdi.meta import Batch, MetaTrainer, Params
from ltdi.parts import Host, Parts
from ltdi.progress import Log, Progress
from ltdi.recipe import Recipe, Varied
from ltdi.tasks import FeatureBank
from ltdi.team import ALONE, Team
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Group


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
    host: str,
    space: WeightSpace,
    out: Path | None,
    progress: Progress | None,
    log: Log | None,
    arrivals: Arrivals | None = None,
    team: Team = ALONE,
) -> None:
    """Meta-train a network, with a checkpoint in `out` where there is one.

    Args:
        network: Initialised; afterwards it holds the average of its weights.
        objective: The training loss.
        recipe: Chain, network, meta-training.
        host: Fingerprint of what the weights live in; a resumed run must share it.
        space: Likewise.
        out: Directory for the checkpoint.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        arrivals: Where the zoo is being filled: what is seen of it at which iteration.
        team: Device and processes.
    """
    network.to(team.device)
    run = {**asdict(recipe.diffusion), **asdict(recipe.network)}
    run |= arrivals.settings if arrivals else {}
    trainer = MetaTrainer(
        network,
        objective,
        objective.draw,
        recipe.meta,
        run=plain({**run, "space": space.fingerprint, "backbone": host}),
        before=functools.partial(_see_arrivals, arrivals, objective, progress, log),
        team=team,
    )

    def finished(i: int, n: int, loss: float) -> None:
        if progress:
            progress("meta-training", i, n, f"loss {loss:.4f}")

    trainer.fit(out / CHECKPOINT if out else None, progress=finished, log=log)
    network.to("cpu")
    if arrivals:
        arrivals.end()


def train_parts(
    network: torch.nn.Module,
    objective: Objective,
    recipe: Varied,
    host: Host,
    anchor: Anchor,
    normaliser: Normaliser,
    space: WeightSpace,
    *,
    out: Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
    arrivals: Arrivals | None = None,
    team: Team = ALONE,
) -> Parts:
    """Meta-train a network, and put it together with what its generator is made of beside it.

    Args:
        network: Initialised.
        objective: The training loss.
        recipe: Chain, network, meta-training; kept in the card.
        host: What the weights live in.
        anchor: Where generation starts.
        normaliser: Of residuals to the anchor.
        space: Of the weights, at any way.
        out: Directory for the checkpoint; none is written without it.
        about: More for the card.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        arrivals: Where the zoo is being filled.
        team: Device and processes.

    Raises:
        DivergedError: If the loss leaves the finite numbers.
    """
    meta_train(
        network, objective, recipe, host.fingerprint, space, out, progress, log, arrivals, team
    )
    return Parts(
        space,
        network,
        anchor,
        normaliser,
        recipe.diffusion,
        recipe.network,
        recipe.sampling,
        host,
        plain({"recipe": asdict(recipe), **(about or {})}),
    )


def _see_arrivals(
    arrivals: Arrivals | None,
    objective: Objective,
    progress: Progress | None,
    log: Log | None,
    step: int,
) -> None:
    """Before an iteration: draw from the tasks that are visible at it."""
    groups = arrivals.at(step) if arrivals else None
    if arrivals and groups is not None:
        objective.see(groups)
        if progress:
            progress("shards", arrivals.visible, len(arrivals.plan), "visible to training")
        if log:
            log({"event": "arrivals", "step": step, "shards": arrivals.visible})


G = TypeVar("G", bound=ImageGenerator)


def tuned(
    generator: G,
    valid: FeatureBank,
    recipe: Recipe,
    judged: Sequence[tuple[int, int]] = (),
    log: Log | None = None,
) -> G:
    """The generator with the sampling that suits validation classes; see `choose_sampling`.

    A recipe that samples at a temperature above 0 keeps its own sampling.

    Args:
        generator: Trained.
        valid: Features, or images, of validation classes.
        recipe: Of its training.
        judged: Pairs of way and shot that the sampling is chosen for; those of the training tasks
            with the first way by default.
        log: Called with what was chosen, and the validation loss of every candidate.

    Raises:
        InputError: If validation classes have too few samples for the shots.
    """
    if recipe.sampling.temperature > 0:
        return generator
    sampling, scores = choose_sampling(generator, valid, recipe, judged)
    if log:
        log({"event": "sampling", "chosen": asdict(sampling), "validation NLL": scores})
    parts = generator.parts
    about = {**parts.about, "validation NLL": scores}
    return type(generator)(replace(parts, sampling=sampling, about=about))
