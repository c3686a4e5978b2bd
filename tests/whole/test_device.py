"""The tensors of a step are on the network's device, for whole networks too."""

from __future__ import annotations

import torch

from ltdi.generator.nets import build_rows
from ltdi.recipe import Recipe
from ltdi.whole import NetCollection, NetObjective, fit_normaliser
from ltdi.zoo import Zoo


def test_everything_is_on_the_device_of_the_network(net_zoo: Zoo, net_recipe: Recipe) -> None:
    """On a device that holds shapes only, after 0, 1 and 2 steps of its own."""
    data, d = NetCollection(net_zoo), net_recipe.diffusion
    network = build_rows(net_zoo.space, net_recipe.network, d)
    objective = NetObjective(data, network, fit_normaliser(data, net_zoo.groups()[0]), d)
    batch = objective.draw(torch.Generator().manual_seed(0), 4)
    network.to("meta")
    there = {k: v.to("meta") for k, v in batch.items()}
    for turns in range(3):
        given = {**there, "turns": torch.zeros(4, turns, device="meta")}
        out = objective(dict(network.named_parameters()), given)
        assert out.device.type == "meta" and out.shape == ()
