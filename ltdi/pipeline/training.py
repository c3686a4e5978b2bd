"""A zoo becomes a generator of heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltdi.anchor import Anchor
from ltdi.backbone import Backbone
from ltdi.denoiser import EquivariantDenoiser
from ltdi.generator import HeadGenerator
from ltdi.parts import build_network, check_sampling
from ltdi.pipeline.meta_training import train_parts, tuned
from ltdi.pipeline.objective import HeadObjective, TrainingSet, fit_normaliser
from ltdi.progress import Log, Progress
from ltdi.recipe import Recipe
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank
from ltdi.team import ALONE, Team


def train_generator(
    data: TrainingSet,
    anchor: Anchor,
    backbone: Backbone,
    recipe: Recipe,
    *,
    out: Path | None = None,
    valid: FeatureBank | None = None,
    judged: Sequence[tuple[int, int]] = (),
    about: dict[str, Any] | None = None,
    objective: type[HeadObjective] = HeadObjective,
    progress: Progress | None = None,
    log: Log | None = None,
    team: Team = ALONE,
) -> HeadGenerator:
    """Meta-train a generator.

    Args:
        data: Solved tasks of a zoo.
        anchor: The anchor that the zoo was made with.
        backbone: The backbone that the features came from.
        recipe: Chain, network, meta-training.
        out: Directory for the checkpoint; none is written without it.
        valid: Features of validation classes, to choose the sampling on; without them the
            recipe's is kept.
        judged: Pairs of way and shot that it is chosen for; those of the training tasks with the
            first way by default.
        about: Data and settings for the model card.
        objective: What is minimised.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        team: Device and processes of meta-training.

    Raises:
        InputError: If the network or the sampling cannot be, or the zoo is empty.
        DivergedError: If the loss leaves the finite numbers.
    """
    d = recipe.diffusion
    check_sampling(recipe.sampling, d)
    with seeded(recipe.meta.seed):
        network = build_network(data.space, data.bank.width, recipe.network, d)
    network.standardise(data.frames[0].enter(data.bank.features))
    normaliser = fit_normaliser(data)
    if isinstance(network, EquivariantDenoiser):
        network.unit.copy_(normaliser.std)
    parts = train_parts(
        network,
        objective(data, network, normaliser, recipe),
        recipe,
        backbone,
        anchor,
        normaliser,
        data.space,
        out=out,
        about=about,
        progress=progress,
        log=log,
        arrivals=data.arrivals,
        team=team,
    )
    generator = HeadGenerator(parts)
    return generator if valid is None else tuned(generator, valid, recipe, judged, log)
