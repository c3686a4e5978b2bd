"""A zoo becomes a generator of heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltdi.anchor import Anchor
from ltdi.backbone import Backbone
from ltdi.denoiser import EquivariantDenoiser
from ltdi.engine import Runtime, meta_train
from ltdi.files import digest
from ltdi.generator import HeadGenerator
from ltdi.parts import Parts, build_network, check_sampling
from ltdi.pipeline.choice import tuned
from ltdi.pipeline.collecting import HeadCollection
from ltdi.pipeline.objective import HeadObjective, fit_normaliser
from ltdi.recipe import Recipe
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank


def train_generator(
    data: HeadCollection,
    backbone: Backbone,
    recipe: Recipe,
    *,
    anchor: Anchor | None = None,
    valid: FeatureBank | None = None,
    about: Mapping[str, Any] | None = None,
    objective: type[HeadObjective] = HeadObjective,
    runtime: Runtime = Runtime(),
) -> HeadGenerator:
    """Meta-train a generator.

    Args:
        data: Solved tasks.
        backbone: The backbone that the features came from.
        recipe: Chain, network, meta-training.
        anchor: Where generation starts; the anchor of the zoo by default.
        valid: Features of validation classes, to choose the sampling on; without them the
            recipe's is kept.
        about: Data and settings for the model card.
        objective: What is minimised.
        runtime: Checkpoint, progress, device and processes, arrivals.

    Raises:
        InputError: If the network or the sampling cannot be, or the zoo is empty.
        DivergedError: If the loss leaves the finite numbers.
    """
    d, zoo = recipe.diffusion, data.zoo
    check_sampling(recipe.sampling, d)
    groups = runtime.groups(zoo)
    with seeded(recipe.meta.seed):
        network = build_network(zoo.space, data.bank.width, recipe.network, d)
    network.standardise(data.frames[0].enter(data.bank.features))
    normaliser = fit_normaliser(groups[0])
    if isinstance(network, EquivariantDenoiser):
        network.unit.copy_(normaliser.std)
    anchor = anchor or data.anchor
    parts = meta_train(
        Parts.of(recipe, zoo.space, network, anchor, normaliser, backbone, about),
        objective(data, network, normaliser, d, groups),
        recipe,
        runtime,
        anchor=digest(anchor.state_dict()),
        own_mean=anchor.own_mean,
    )
    return tuned(HeadGenerator(parts), valid, recipe, log=runtime.log)
