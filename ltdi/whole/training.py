"""A zoo of whole networks becomes a generator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.denoiser import RowDenoiser
from ltdi.diffusion.losses import check_net_loss
from ltdi.engine import Runtime, meta_train
from ltdi.generator import NetGenerator
from ltdi.generator.nets import NetTask, build_rows
from ltdi.parts import Parts, check_sampling
from ltdi.pipeline import tuned
from ltdi.recipe import Recipe
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank
from ltdi.weights import Normaliser, WeightSpace
from ltdi.whole.collecting import NetCollection
from ltdi.whole.objective import NetObjective
from ltdi.zoo import Group

# Tasks of each way and shot that the doubt is fitted to, and images that go through at once.
_FITTED, _IMAGES = 64, 1024
_DOUBTS = (*(2.0**i for i in range(-3, 8)), math.inf)


def train_net_generator(
    data: NetCollection,
    recipe: Recipe,
    *,
    valid: FeatureBank | None = None,
    about: Mapping[str, Any] | None = None,
    runtime: Runtime = Runtime(),
) -> NetGenerator:
    """Meta-train a generator of whole networks; see `ltdi.pipeline.train_generator`."""
    d, space = recipe.diffusion, data.zoo.space
    check_sampling(recipe.sampling, d)
    check_net_loss(d.loss)
    groups = runtime.groups(data.zoo)
    with seeded(recipe.meta.seed):
        network = build_rows(space, recipe.network, d)
    normaliser = fit_normaliser(data, groups[0])
    standardise(network, data, groups, normaliser)
    parts = meta_train(
        Parts.of(recipe, space, network, data.anchor, normaliser, data.host, about),
        NetObjective(data, network, normaliser, d, groups),
        recipe,
        runtime,
    )
    return tuned(NetGenerator(parts), valid, recipe, log=runtime.log)


def fit_normaliser(data: NetCollection, group: Group) -> Normaliser:
    """Statistics of the residuals of solved nets to their initialisation."""
    some = torch.arange(min(len(group), 512))
    theta = group.read(some, ("theta",))["theta"]
    anchor = data.anchor.local(some, some, group.space)
    return Normaliser.fit(theta - anchor.unsqueeze(1), group.space, centre=False)


@torch.no_grad()
def standardise(
    network: RowDenoiser, data: NetCollection, groups: Sequence[Group], normaliser: Normaliser
) -> None:
    """Give a network the size of gradients, and the initialisation's own step size.

    Layers below the head have a gradient from the second step on. Its size is measured after a
    tenth of the first step, where the support is not solved yet: after a whole one little is left
    of it. Their first step size is a tenth.
    """
    group, initial = groups[0], data.initial
    space = group.space
    some = torch.arange(min(16, len(group)))
    grid = data.bank.features[group.read(some, ("support",))["support"]]
    anchor = data.anchor.local(some, some, space)
    task = NetTask(
        data.host, normaliser.scale(space), space, anchor, grid, torch.ones(grid.shape[:3])
    )
    scale = normaliser.scale(space)
    first = task.gradient()
    task.estimate = -0.1 * initial.rate * first / scale.square()
    second = task.gradient()
    count = len(space.layers)
    sizes, rates = torch.zeros(count), torch.zeros(count)
    for i, layer in enumerate(space.layers):
        inside = space.layer_of == i
        gradient = first if layer.per_class else second
        sizes[i] = gradient[:, inside].square().mean(1).sqrt().median()
        share = 1.0 if layer.per_class else 0.1
        rates[i] = share * initial.rate / scale[inside].square().median()
    network.standardise(sizes, rates)
    network.doubt.fill_(fit_doubt(data, groups))


@torch.no_grad()
def fit_doubt(data: NetCollection, groups: Sequence[Group]) -> float:
    """The doubt whose heads, one step from the initialisation, fit the solved tasks' samples best.

    theta_0 has not seen their classes.
    """
    loss = torch.zeros(len(_DOUBTS))
    for group in groups:
        space, some = group.space, torch.arange(min(_FITTED, len(group)))
        held = group.read(some, ("support", "query"))
        theta_0 = data.anchor.local(some[:1], some[:1], space)[0]

        def features(items: Tensor, theta: Tensor = theta_0, space: WeightSpace = space) -> Tensor:
            parts = data.bank.features[items.flatten()].split(_IMAGES)
            whole = torch.cat([data.host.features(theta, part, space) for part in parts])
            return whole.view(*items.shape, -1)

        own, query = features(held["support"]).mean(2), features(held["query"])
        mean = own.mean(1, keepdim=True)
        weight = data.initial.rate * (own - mean)
        logits = query.flatten(1, 2) @ weight.mT
        half = (weight * (own + mean) / 2).sum(-1).unsqueeze(1)
        shot, way, asked = held["support"].shape[2], *query.shape[1:3]
        label = torch.arange(way).repeat_interleave(asked).repeat(len(some))
        for i, doubt in enumerate(_DOUBTS):
            share = shot / (shot + doubt)
            loss[i] += F.cross_entropy((logits - share * half).flatten(0, 1), label)
    return _DOUBTS[int(loss.argmin())]
