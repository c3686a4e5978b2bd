"""Generators, and their anchor alone, as few-shot methods beside their peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ltdi.anchor import Anchor
from ltdi.backbone import Backbone
from ltdi.baselines import PEERS, Banks, Budget, Method, fitted, validation_episodes
from ltdi.engine import Runtime
from ltdi.evaluate import calibrate, negative_log_likelihood
from ltdi.generator import HeadGenerator
from ltdi.pipeline import HeadCollection, begin_zoo, make_anchor, train_generator
from ltdi.progress import Progress, Step
from ltdi.recipe import RECIPES, Recipe, named_recipe
from ltdi.tracks.world import GeneratorMethod, SharedWorld
from ltdi.weights import head_space, query_logits


@dataclass
class World(SharedWorld[HeadCollection, HeadGenerator]):
    """What the methods of one run share, for heads.

    Attributes:
        backbone: The frozen feature extractor.
    """

    backbone: Backbone

    def key(self, recipe: Recipe) -> Hashable:
        """See `SharedWorld.key`."""
        prepared = (recipe.tasks, recipe.prepare, recipe.anchor, recipe.refine, recipe.start)
        return (*prepared, recipe.meta.seed)

    def solve(self, place: Path, recipe: Recipe, progress: Progress | None) -> HeadCollection:
        """See `SharedWorld.solve`; the anchor is fitted first."""
        anchor = make_anchor(recipe, self.train, self.valid)
        collection = begin_zoo(place, self.train, anchor, recipe, self.backbone)
        return collection.fill(progress=progress)

    def meta_train(
        self, solved: HeadCollection, recipe: Recipe, progress: Progress | None
    ) -> HeadGenerator:
        """See `SharedWorld.meta_train`."""
        return train_generator(solved, self.backbone, recipe, runtime=Runtime(progress=progress))


class Generated(GeneratorMethod[HeadGenerator]):
    """A generator as a few-shot method.

    A U-Net is trained for the `way` of the test episodes alone, as it has no other.
    """

    note = "generated heads"

    def __init__(self, name: str, base: Recipe, world: World, way: int) -> None:
        recipe = named_recipe(name, base)
        if recipe.network.kind == "unet":
            recipe = replace(recipe, tasks=replace(recipe.tasks, ways=(way,)))
        super().__init__(name, recipe, world)

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        generator = fitted(self.generator, self)
        return query_logits(generator.weights(support), query)


class Ensemble(Method):
    """Samples of a generator, averaged in probability instead of in the weights.

    The generator is trained here if it was not.
    """

    name = "lt-di-16"
    kind = "ours"
    note = "lt-di with 16 samples averaged in probability"
    samples: ClassVar[int] = 16

    def __init__(self, single: Generated) -> None:
        self.single = single
        self.steps, self.temperature, self.sharpness = 1, 1.0, 1.0

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """See `Method.fit`; steps, temperature and sharpness have the lowest validation NLL."""
        if self.single.generator is None:
            self.single.fit(banks, budget, progress)
        self.prepare_s, self.train_s = self.single.prepare_s, self.single.train_s
        support, query = validation_episodes(banks.valid, budget)
        scores: dict[tuple[int, float, float], float] = {}
        total = self.single.recipe.diffusion.steps
        for steps in (s for s in (1, 5) if s <= total):
            for temperature in (0.5, 1.0):
                self.steps, self.temperature = steps, temperature
                logits = self._logits(support, query)
                sharpness = calibrate(logits)
                nll = negative_log_likelihood(sharpness * logits).mean()
                scores[steps, temperature, sharpness] = float(nll)
        self.steps, self.temperature, self.sharpness = min(scores, key=lambda key: scores[key])

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        return self.sharpness * self._logits(support, query)

    def _logits(self, support: Tensor, query: Tensor) -> Tensor:
        """[E, way, Q, way] logarithm of the mean over samples of the probability."""
        generator = fitted(self.single.generator, self)
        heads = generator.draws(
            support, samples=self.samples, temperature=self.temperature, steps=self.steps, end=1.0
        )
        each = torch.stack([query_logits(theta, query).log_softmax(-1) for theta in heads])
        return each.logsumexp(0) - math.log(len(each))


class AnchorOnly(Method):
    """The anchor of `lt-di` with nothing generated: what the cheap head does alone."""

    name = "anchor"
    kind = "control"
    note = "the anchor head of lt-di, without a generator"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.anchor: Anchor | None = None

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """See `Method.fit`."""
        train, valid = banks
        self.anchor = make_anchor(self.recipe, train, valid)

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        space = head_space(support.shape[-1], support.shape[1])
        theta = fitted(self.anchor, self)(support, torch.ones(support.shape[:3]), space)
        return query_logits(theta, query)


ALL_METHODS = ("lt-di", Ensemble.name, *RECIPES[1:], AnchorOnly.name, *PEERS)


def methods_of(names: Sequence[str], recipe: Recipe, world: World, way: int) -> dict[str, Method]:
    """The methods called `names`, unfitted, for test episodes of `way` classes."""
    single = Generated("lt-di", recipe, world, way)
    made: dict[str, Callable[[], Method]] = {
        **{n: partial(Generated, n, recipe, world, way) for n in RECIPES},
        "lt-di": lambda: single,
        Ensemble.name: lambda: Ensemble(single),
        AnchorOnly.name: lambda: AnchorOnly(recipe),
        **PEERS,
    }
    return {name: made[name]() for name in names}
