"""Generators for unseen domains, and their anchor alone, as methods beside their peers."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ltdi.anchor.domain import DomainAnchor, DomainView
from ltdi.backbone import Backbone
from ltdi.baselines import Budget, fitted
from ltdi.baselines.domains import DomainMethod, Sources
from ltdi.crossdomain import (
    Domain,
    DomainCollection,
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
from ltdi.progress import Progress, Step, staged
from ltdi.recipe import Recipe
from ltdi.tasks import Episodes
from ltdi.tracks.world import Once, Workshop
from ltdi.weights import query_logits


@dataclass(frozen=True)
class Plan:
    """How a generator for unseen domains is made.

    Attributes:
        named: Whether the classes of tasks are told by name.
        pooled: Whether its anchor reads the pool.
        without: Number of a source domain that it does not learn from, if any.
    """

    recipe: Recipe
    named: bool = True
    pooled: bool = True
    without: int | None = None


@dataclass
class DomainWorld(Workshop[Plan, DomainCollection, DomainHeadGenerator]):
    """Everything that the methods of one held-out domain share; an `Arena`.

    Attributes:
        target: The domain held out: only measured on.
        shapes: Ways and shots of the tasks to come.
        choices: Tasks for each source domain and shape that the anchor's numbers are chosen on.
        seed: Of these tasks.
        anchors: That of all sources and those without each of them, by (named, pooled).
    """

    backbone: Backbone
    sources: Sources
    target: Domain
    shapes: tuple[tuple[int, int], ...]
    choices: int
    seed: int
    anchors: Once[tuple[DomainAnchor, list[DomainAnchor]]] = field(default_factory=Once)

    def fit(self, method: DomainMethod, budget: Budget, progress: Step) -> None:
        """See `Arena.fit`."""
        method.fit(self.sources, budget, progress)

    def tests(self, budget: Budget, episodes: int) -> Episodes:
        """See `Arena.tests`."""
        seed = budget.seed + 77_000
        return self.target.episodes(budget.way, budget.shot, budget.query, episodes, seed)

    def predict(self, method: DomainMethod, tasks: Episodes) -> Tensor:
        """See `Arena.predict`."""
        features, pool = self.target.bank.features, self.target.pool
        return method.predict(features[tasks.support], features[tasks.query], tasks.classes, pool)

    def fit_anchors(
        self, named: bool, pooled: bool
    ) -> tuple[tuple[DomainAnchor, list[DomainAnchor]], float]:
        """Of all sources and without each of them, and the seconds they took."""
        return self.anchors.once(
            (named, pooled),
            lambda: fit_domain_anchor(
                self.sources.domains,
                shapes=self.shapes,
                seed=self.seed,
                episodes=self.choices,
                named=named,
                pooled=pooled,
            ),
        )

    def key(self, plan: Plan) -> Hashable:
        """See `Workshop.key`."""
        r = plan.recipe
        return r.tasks, r.prepare, r.start, r.meta.seed, plan.named, plan.pooled, plan.without

    def prepare(self, plan: Plan, progress: Progress | None) -> tuple[DomainCollection, float]:
        """See `Workshop.prepare`; the anchors are part of it."""
        _, anchors_s = self.fit_anchors(plan.named, plan.pooled)
        solved, seconds = super().prepare(plan, progress)
        return solved, anchors_s + seconds

    def solve(self, place: Path, plan: Plan, progress: Progress | None) -> DomainCollection:
        """See `Workshop.solve`."""
        (_, left_out), _ = self.fit_anchors(plan.named, plan.pooled)
        pairs = zip(self.sources.domains, left_out, strict=True)
        domains, anchors = zip(
            *(pair for i, pair in enumerate(pairs) if i != plan.without), strict=True
        )
        folds = domain_folds(domains, anchors, plan.named)
        return prepare_domains(place, domains, folds, plan.recipe, self.backbone, progress=progress)

    def meta_train(
        self, solved: DomainCollection, plan: Plan, progress: Progress | None
    ) -> DomainHeadGenerator:
        """See `Workshop.meta_train`; the anchor lacks the domain that the generator lacks."""
        (whole, left_out), _ = self.fit_anchors(plan.named, plan.pooled)
        anchor = whole if plan.without is None else left_out[plan.without]
        return train_domain_generator(solved, anchor, self.backbone, plan.recipe, progress=progress)


class GeneratedForDomain(DomainMethod):
    """A generator as a method for unseen domains."""

    def __init__(self, plan: Plan, ours: bool, world: DomainWorld) -> None:
        self.plan, self.world = plan, world
        self.kind = "ours" if ours else "control"
        self.note = (
            "generated heads"
            + ("" if plan.named else "; class names are not told")
            + ("" if plan.pooled else "; only the generator reads the pool, its anchor does not")
        )
        self.generator: DomainHeadGenerator | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`; the sampling is chosen on the source domain held out."""
        told, recipe = staged(progress), self.plan.recipe
        # One for the domain to validate on, whose anchor lacks it as well; one for the unseen one.
        judged, *spent = self.world.train_once(replace(self.plan, without=sources.held), told)
        final, *more = self.world.train_once(self.plan, told)
        self.prepare_s, train_s = (a + b for a, b in zip(spent, more, strict=True))
        start = time.perf_counter()
        parts = final.parts
        if recipe.sampling.temperature == 0:
            found, scores = choose_among([self._trial(judged, sources, budget)], recipe)
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
            names=tasks.classes if self.plan.named else None,
        )
        return weights, partial(judged.query_logits, query=valid.bank.features[tasks.query])

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        generator = fitted(self.generator, self)
        told = names if self.plan.named else None
        return query_logits(generator.weights(support, pool=pool, names=told), query)


class DomainAnchorOnly(DomainMethod):
    """The anchor of a generator with nothing generated.

    Args:
        named: Whether the classes of tasks are told by name.
        pooled: Whether the anchor reads the pool itself, by expectation maximisation.
    """

    kind = "control"

    def __init__(self, world: DomainWorld, named: bool = True, pooled: bool = True) -> None:
        self.world, self.named, self.pooled = world, named, pooled
        self.note = "the anchor head of lt-di, without a generator" + (
            "" if pooled else "; the pool gives its origin alone"
        )
        self.anchor: DomainAnchor | None = None
        self.seen: tuple[Tensor, DomainView] | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`."""
        (self.anchor, _), self.train_s = self.world.fit_anchors(self.named, self.pooled)

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        anchor = fitted(self.anchor, self)
        if self.seen is None or self.seen[0] is not pool:
            self.seen = (pool, anchor.at(pool))
        return view_logits(self.seen[1].told(names if self.named else None), support, query)
