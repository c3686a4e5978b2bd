"""Generators for unseen domains, and their anchor alone, as methods beside their peers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.anchor.domain import DomainAnchor, DomainView
from ltdi.backbone import Backbone
from ltdi.baselines import Budget, fitted
from ltdi.baselines.domains import DomainMethod, Sources
from ltdi.crossdomain import (
    DomainSet,
    Trial,
    domain_folds,
    fit_domain_anchor,
    prepare_domains,
    train_domain_generator,
    view_logits,
)
from ltdi.generator import DomainHeadGenerator
from ltdi.pipeline.choice import Trial as Judged
from ltdi.pipeline.choice import choose_among
from ltdi.progress import Step, staged
from ltdi.recipe import Recipe, named_recipe
from ltdi.tracks.world import Once
from ltdi.weights import query_logits


@dataclass
class DomainWorld:
    """Everything that the methods of one held-out domain share.

    Attributes:
        backbone: The frozen feature extractor.
        sources: The other domains.
        shapes: Ways and shots of the tasks to come.
        directory: Where zoos are kept during the run.
        choices: Tasks for each source domain and shape that the anchor's numbers are chosen on.
    """

    backbone: Backbone
    sources: Sources
    shapes: tuple[tuple[int, int], ...]
    directory: Path
    choices: int
    anchors: Once[tuple[DomainAnchor, list[DomainAnchor]]] = field(default_factory=Once)
    zoos: Once[DomainSet] = field(default_factory=Once)
    trained: Once[DomainHeadGenerator] = field(default_factory=Once)

    def anchor(
        self, named: bool, seed: int, pooled: bool
    ) -> tuple[DomainAnchor, list[DomainAnchor], float]:
        """The anchor of all sources, those without each of them, and the seconds they took."""
        (whole, left_out), seconds = self.anchors.once(
            (named, pooled),
            lambda: fit_domain_anchor(
                self.sources.domains,
                shapes=self.shapes,
                seed=seed,
                episodes=self.choices,
                named=named,
                pooled=pooled,
            ),
        )
        return whole, left_out, seconds

    def zoo(
        self,
        recipe: Recipe,
        named: bool,
        pooled: bool,
        which: Sequence[int],
        progress: Any | None,
    ) -> tuple[DomainSet, float]:
        """Solved tasks of source domains number `which`; recipes that agree share them."""
        _, left_out, anchor_s = self.anchor(named, recipe.meta.seed, pooled)
        place = self.directory / f"zoo-{len(self.zoos)}"

        def solve() -> DomainSet:
            domains = [self.sources.domains[i] for i in which]
            folds = domain_folds(domains, [left_out[i] for i in which], named)
            return prepare_domains(place, domains, folds, recipe, self.backbone, progress=progress)

        solved = (recipe.tasks, recipe.prepare, recipe.start, recipe.meta.seed)
        data, seconds = self.zoos.once((*solved, named, pooled, tuple(which)), solve)
        return data, anchor_s + seconds

    def generator(
        self,
        recipe: Recipe,
        named: bool,
        pooled: bool,
        which: Sequence[int],
        anchor: DomainAnchor,
        progress: Any | None,
    ) -> tuple[DomainHeadGenerator, float, float]:
        """A generator of domains number `which`, and the seconds of preparation and training."""
        data, prepare_s = self.zoo(recipe, named, pooled, which, progress)
        generator, train_s = self.trained.once(
            (recipe, named, pooled, tuple(which)),
            lambda: train_domain_generator(data, anchor, self.backbone, recipe, progress=progress),
        )
        return generator, prepare_s, train_s


class GeneratedForDomain(DomainMethod):
    """A generator as a method for unseen domains.

    Args:
        name: In tables.
        recipe: A key of `RECIPES`.
        base: The recipe that it varies.
        world: What the run shares.
        named: Whether the classes of tasks are told by name.
        pooled: Whether its anchor reads the pool.
    """

    def __init__(
        self,
        name: str,
        recipe: str,
        base: Recipe,
        world: DomainWorld,
        named: bool = True,
        pooled: bool = True,
    ) -> None:
        self.name, self.world, self.named, self.pooled = name, world, named, pooled
        self.recipe = named_recipe(recipe, base)
        self.kind = "ours" if recipe == "lt-di" and pooled else "control"
        self.note = (
            "generated heads"
            + ("" if named else "; class names are not told")
            + ("" if pooled else "; only the generator reads the pool, its anchor does not")
        )
        self.generator: DomainHeadGenerator | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`; the sampling is chosen on the source domain held out."""
        world, told = self.world, staged(progress)
        every = range(len(sources.domains))
        part = [i for i in every if i != sources.held]
        whole, left_out, _ = world.anchor(self.named, self.recipe.meta.seed, self.pooled)
        how = (self.recipe, self.named, self.pooled)
        # One beside the anchor that lacks the domain to validate on, one for the unseen one.
        judged, prepare_s, train_s = world.generator(*how, part, left_out[sources.held], told)
        final, *seconds = world.generator(*how, every, whole, told)
        self.prepare_s, train_s = prepare_s + seconds[0], train_s + seconds[1]
        start = time.perf_counter()
        parts = final.parts
        if self.recipe.sampling.temperature == 0:
            trial = self._trial(judged, sources, budget)
            found, scores = choose_among([trial], self.recipe)
            about = {**parts.about, "validation NLL": scores}
            parts = replace(parts, sampling=found, about=about)
        self.generator = DomainHeadGenerator(parts)
        self.train_s = train_s + time.perf_counter() - start

    def _trial(self, judged: DomainHeadGenerator, sources: Sources, budget: Budget) -> Judged:
        """Tasks of the domain to validate on."""
        valid = sources.valid
        trial = Trial.of(valid, [(budget.way, budget.shot)], budget.valid_episodes, 12_345)
        tasks = trial.tasks[0]
        weights = partial(
            judged.weights,
            valid.bank.features[tasks.support],
            pool=valid.pool,
            names=tasks.classes if self.named else None,
        )
        return weights, partial(judged.query_logits, query=valid.bank.features[tasks.query])

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        generator = fitted(self.generator, self)
        told = names if self.named else None
        return query_logits(generator.weights(support, pool=pool, names=told), query)


class DomainAnchorOnly(DomainMethod):
    """The anchor of a generator with nothing generated.

    Args:
        world: What the run shares.
        seed: Of the tasks that its numbers are chosen on.
        named: Whether the classes of tasks are told by name.
        pooled: Whether the anchor reads the pool itself, by expectation maximisation.
    """

    kind = "control"

    def __init__(
        self, world: DomainWorld, seed: int, named: bool = True, pooled: bool = True
    ) -> None:
        self.world, self.seed, self.named, self.pooled = world, seed, named, pooled
        self.name = "anchor" + ("" if pooled else "-no-em") + ("" if named else "-unnamed")
        self.note = "the anchor head of lt-di, without a generator" + (
            "" if pooled else "; the pool gives its origin alone"
        )
        self.anchor: DomainAnchor | None = None
        self.seen: tuple[Tensor, DomainView] | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`."""
        self.anchor, _, self.train_s = self.world.anchor(self.named, self.seed, self.pooled)

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        anchor = fitted(self.anchor, self)
        if self.seen is None or self.seen[0] is not pool:
            self.seen = (pool, anchor.at(pool))
        return view_logits(self.seen[1].told(names if self.named else None), support, query)
