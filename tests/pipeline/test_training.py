"""`ltdi.pipeline.training`: every objective, prediction and network trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi.errors import MismatchError
from ltdi.parts import build_network
from ltdi.pipeline import (
    HeadCollection,
    HeadObjective,
    collecting,
    meta_training,
    objective,
    shared,
    training,
)
from ltdi.recipe import Network, Recipe
from ltdi.zoo import Zoo
from tests.pipeline.made import WIDTH, Train


def test_training_lowers_its_loss(run: Train, recipe: Recipe, zoo: Zoo):
    longer = replace(recipe, meta=replace(recipe.meta, iterations=60, meta_lr=3e-3))
    parts = run(changed=longer).parts
    network = build_network(zoo.space, WIDTH, parts.shape, parts.diffusion)
    network.load_state_dict({**network.state_dict(), "unit": parts.normaliser.std})
    losses = []
    for net in (network, parts.network):
        objective = HeadObjective(HeadCollection(zoo), net, parts.normaliser, longer.diffusion)
        rng = torch.Generator().manual_seed(5)
        params = {name: p.detach() for name, p in net.named_parameters()}
        losses.append(sum(float(objective(params, objective.draw(rng, 8))) for _ in range(60)))
    assert losses[1] < 0.9 * losses[0]


def test_every_objective_prediction_and_network_trains(run: Train, recipe: Recipe, train):
    short = replace(recipe, meta=replace(recipe.meta, iterations=2))
    changes = [
        ("equivariant", {"objective": "vanilla"}),
        ("equivariant", {"objective": "naive", "loss": "weight"}),
        ("transformer", {"objective": "trajectory"}),
        ("transformer", {"objective": "naive", "prediction": "v", "loss": "function"}),
        ("transformer", {"objective": "matched", "prediction": "eps", "loss": "weight"}),
    ]
    for kind, change in changes:
        diffusion = replace(short.diffusion, **change)
        network = replace(short.network, kind=kind)
        made = run(changed=replace(short, diffusion=diffusion, network=network))
        support = train.features[:24].view(1, 3, 8, WIDTH)[:, :, :2]
        assert made.weights(support).isfinite().all()


def test_a_unet_serves_one_way_and_says_so(run: Train, recipe: Recipe):
    with pytest.raises(MismatchError, match="3-way weights, the task has 4 classes"):
        run(changed=replace(recipe, network=Network("unet", 16, 1)))


def test_pipeline_has_no_state_of_its_own():
    """Nothing is remembered between runs but on disk."""
    for module in (collecting, meta_training, objective, shared, training):
        held = {k for k, v in vars(module).items() if isinstance(v, (list, dict, set))}
        assert held <= {"__builtins__", "__annotations__"} | {"LOSSES"}
