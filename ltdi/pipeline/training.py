"""A zoo becomes a generator of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltdi.anchor import Anchor
from ltdi.backbone import Backbone
from ltdi.denoiser import EquivariantDenoiser
from ltdi.engine import Runtime
from ltdi.generator import HeadGenerator
from ltdi.parts import Parts, build_network, check_sampling
from ltdi.pipeline.meta_training import train_parts, tuned
from ltdi.pipeline.objective import HeadObjective, TrainingSet, fit_normaliser
from ltdi.recipe import Recipe
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank


def train_generator(
    data: TrainingSet,
    anchor: Anchor,
    backbone: Backbone,
    recipe: Recipe,
    *,
    valid: FeatureBank | None = None,
    judged: Sequence[tuple[int, int]] = (),
    about: dict[str, Any] | None = None,
    objective: type[HeadObjective] = HeadObjective,
    runtime: Runtime = Runtime(),
) -> HeadGenerator:
    """Meta-train a generator.

    Args:
        data: Solved tasks of a zoo.
        anchor: The anchor that the zoo was made with.
        backbone: The backbone that the features came from.
        recipe: Chain, network, meta-training.
        valid: Features of validation classes, to choose the sampling on; without them the
            recipe's is kept.
        judged: Pairs of way and shot that it is chosen for; those of the training tasks with the
            first way by default.
        about: Data and settings for the model card.
        objective: What is minimised.
        runtime: Checkpoint, progress, device and processes.

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
        Parts.of(recipe, data.space, network, anchor, normaliser, backbone, about),
        objective(data, network, normaliser, recipe),
        recipe,
        runtime,
        data.arrivals,
    )
    generator = HeadGenerator(parts)
    return generator if valid is None else tuned(generator, valid, recipe, judged, runtime.log)
