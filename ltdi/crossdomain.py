"""Generators for unseen domains: each source domain is held out from the anchor of its own tasks.

What `ltdi.crossfit` does with classes is done with domains here: the tasks of a domain start from
what the other domains tell about its classes, as those of the unseen domain will.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.backbone import Backbone
from ltdi.crossfit import Fold
from ltdi.denoiser import DomainGuide, Guide
from ltdi.domain import DomainAnchor, DomainView, Scene, level_of, source_head
from ltdi.engine import Collection, plan_of
from ltdi.evaluate import accuracy, negative_log_likelihood
from ltdi.generator import DomainHeadGenerator
from ltdi.meta import Batch
from ltdi.pipeline import (
    HeadCollection,
    HeadObjective,
    TrainingSet,
    start_zoo,
    train_generator,
)
from ltdi.progress import Progress
from ltdi.recipe import Recipe
from ltdi.tasks import Episodes, FeatureBank
from ltdi.weights import head_space, query_logits
from ltdi.zoo import Group, Zoo

RIDGES = (1.0, 3.0)
DRIFTS = (0.5, 1.0, 2.0, 4.0)
BLENDS = (0.0, 0.3, 1.0, 3.0)
_DECAY = 1e-5
TRUSTS = (0.0, 0.1, 0.3, 1.0)
HEATS = (0.1, 0.3, 1.0)
_SCALES = tuple(0.02 * 1.25**i for i in range(20))


@dataclass(frozen=True)
class Domain:
    """A domain as a benchmark, or a user, has it.

    Attributes:
        name: Of the domain.
        bank: Labelled features.
        pool: [P, D] features whose labels tasks do not use, none of them in the bank.
        full: Both, labelled: what is known of a source domain.
    """

    name: str
    bank: FeatureBank
    pool: Tensor
    full: FeatureBank

    def episodes(self, way: int, shot: int, query: int, episodes: int, seed: int) -> Episodes:
        """Episodes with as many queries as the smallest class leaves, at most `query`."""
        return self.bank.episodes(
            way=min(way, len(self.bank.classes)),
            shot=shot,
            query=self.bank.queries_left(shot, query),
            episodes=episodes,
            seed=seed,
        )


def split_domain(name: str, bank: FeatureBank, *, share: float, seed: int) -> Domain:
    """Set aside a share of every class as the unlabelled pool, rounded down.

    Args:
        name: Of the domain.
        bank: All its features.
        share: Of the images; below 1.
        seed: Of the draw.
    """
    rng = torch.Generator().manual_seed(seed)
    pool, kept, edges = [], [], [0]
    for start, end in itertools.pairwise(bank.offsets.tolist()):
        order = start + torch.randperm(end - start, generator=rng)
        aside = int(share * (end - start))
        pool.append(order[:aside])
        kept.append(order[aside:].sort().values)
        edges.append(edges[-1] + end - start - aside)
    features = bank.features
    rest = FeatureBank(features[torch.cat(kept)], torch.tensor(edges), bank.classes)
    mixed = torch.cat(pool)
    shuffled = mixed[torch.randperm(len(mixed), generator=rng)]
    return Domain(name, rest, features[shuffled], bank)


def together(domains: Sequence[Domain]) -> FeatureBank:
    """All labelled features in one bank, whose classes are named "<domain>/<class>"."""
    return FeatureBank.by_class(
        [group for d in domains for group in d.bank.groups()],
        [f"{d.name}/{c}" for d in domains for c in d.bank.classes],
    )


# ---- the anchor ----------------------------------------------------------------------------------


def fit_domain_anchor(
    domains: Sequence[Domain],
    *,
    shapes: Sequence[tuple[int, int]],
    seed: int,
    episodes: int = 60,
    named: bool = True,
    pooled: bool = False,
) -> tuple[DomainAnchor, list[DomainAnchor]]:
    """The anchor of all domains, and for each domain that of the others.

    Ridge, drift and blend, then trust and heat, have the highest mean accuracy on tasks of domains
    that are held out in turn; the inverse temperature has the lowest NLL there.

    Args:
        domains: Source domains.
        shapes: Ways and shots of the tasks.
        seed: Of the tasks.
        episodes: For each domain and shape.
        named: Whether the tasks' classes are told by name.
        pooled: Whether the anchor itself reads the pool, and not only the origin from it.
    """
    trials = [Trial.of(d, shapes, episodes, seed + i) for i, d in enumerate(domains)]
    rest = [[d for d in domains if d is not held] for held in domains]
    heads = [head_of(others) for others in rest]
    scored: list[tuple[float, int, float, float, float]] = []
    for ridge in RIDGES:
        left_out = [make_anchor(o, ridge, h) for o, h in zip(rest, heads, strict=True)]
        for factor, blend in itertools.product(DRIFTS, BLENDS):
            anchors = [a.changed(drift=factor * float(a.drift), blend=blend) for a in left_out]
            scored.append((_mean(trials, anchors, named), -len(scored), ridge, factor, blend))
    _, _, ridge, factor, blend = max(scored)
    left_out = [make_anchor(o, ridge, h) for o, h in zip(rest, heads, strict=True)]
    left_out = [a.changed(drift=factor * float(a.drift), blend=blend) for a in left_out]
    anchor = make_anchor(domains, ridge, head_of(domains))
    anchor = anchor.changed(drift=factor * float(anchor.drift), blend=blend)
    for level in (0, 1):
        # Where there are no tasks of this level the numbers are those of all tasks.
        same = [(w, s) for w, s in shapes if level_of(s) == level] or shapes
        some = [Trial.of(d, same, episodes, seed + i) for i, d in enumerate(domains)]
        found: list[tuple[float, int, float, float]] = []
        for trust, heat in itertools.product(TRUSTS if pooled else (0.0,), HEATS):
            if trust == 0 and named and heat != HEATS[0]:
                continue
            anchors = [a.changed(trust=trust, heat=heat) for a in left_out]
            found.append((_mean(some, anchors, named), -len(found), trust, heat))
        _, _, trust, heat = max(found)
        left_out = [a.changed(level, trust=trust, heat=heat) for a in left_out]
        anchor = anchor.changed(level, trust=trust, heat=heat)
    raw = [t.logits(a.changed(scale=1.0), named) for t, a in zip(trials, left_out, strict=True)]
    scale = min(
        _SCALES,
        key=lambda s: sum(
            float(negative_log_likelihood(s * x).mean()) for part in raw for x in part
        ),
    )
    return anchor.changed(scale=scale), [a.changed(scale=scale) for a in left_out]


def make_anchor(
    domains: Sequence[Domain], ridge: float, head: Tensor | None = None
) -> DomainAnchor:
    """An anchor that is fitted, not chosen."""
    bank = domains[0].bank
    return DomainAnchor(bank.width, bank.classes).fit([d.full for d in domains], ridge, head)


def head_of(domains: Sequence[Domain]) -> Tensor:
    """The softmax head of some source domains; see `source_head`."""
    return source_head([d.full for d in domains], [d.pool.mean(0) for d in domains], _DECAY)


@dataclass(frozen=True)
class Trial:
    """Tasks of a domain on which something is chosen."""

    domain: Domain
    tasks: list[Episodes]

    @classmethod
    def of(
        cls, domain: Domain, shapes: Sequence[tuple[int, int]], episodes: int, seed: int
    ) -> Trial:
        """Draw them."""
        return cls(domain, [domain.episodes(w, s, 15, episodes, seed) for w, s in shapes])

    def logits(self, anchor: DomainAnchor, named: bool) -> list[Tensor]:
        """Logits [E, way, Q, way] of an anchor's heads, shape by shape."""
        return [
            anchor_logits(
                anchor,
                self.domain.pool,
                self.domain.bank.features[t.support],
                self.domain.bank.features[t.query],
                t.classes if named else None,
            )
            for t in self.tasks
        ]


def anchor_logits(
    anchor: DomainAnchor, pool: Tensor, support: Tensor, query: Tensor, names: Tensor | None
) -> Tensor:
    """Logits [E, way, Q, way] of the anchor's heads."""
    return view_logits(anchor.at(pool, names), support, query)


def view_logits(seen: DomainView, support: Tensor, query: Tensor) -> Tensor:
    """The same in a domain that was looked at before."""
    frame, space = seen.frame(support.shape[-1]), head_space(support.shape[-1], support.shape[1])
    theta = seen.local(frame.enter(support), torch.ones(support.shape[:3]), space)
    return query_logits(theta, frame.enter(query))


def _mean(trials: Sequence[Trial], anchors: Sequence[DomainAnchor], named: bool) -> float:
    """Mean accuracy over domains and shapes."""
    values = [
        float(accuracy(x).mean())
        for trial, anchor in zip(trials, anchors, strict=True)
        for x in trial.logits(anchor, named)
    ]
    return sum(values) / len(values)


# ---- the zoo and the generator ------------------------------------------------------------------


@dataclass(frozen=True)
class DomainFold(Fold):
    """The tasks of one domain, against the anchor of the others.

    Attributes:
        whole: That anchor.
        pool: [P, D] of the domain.
        named: Whether the tasks' classes are told by name.
    """

    whole: DomainAnchor = field(kw_only=True)
    pool: Tensor = field(kw_only=True)
    named: bool = field(kw_only=True)

    def seen(self, classes: Tensor) -> Any:
        """See `Fold.seen`."""
        names = classes % len(self.whole.classes)
        return self.whole.at(self.pool, names if self.named else None)

    def queries(self, bank: FeatureBank, shot: int, wanted: int) -> int:
        """See `Fold.queries`: as many as the smallest class leaves."""
        return bank.queries_left(shot, wanted, self.classes)


def domain_folds(
    domains: Sequence[Domain], anchors: Sequence[DomainAnchor], named: bool
) -> list[DomainFold]:
    """One fold for each domain, its classes being those of `together(domains)`."""
    out = []
    for number, (domain, anchor) in enumerate(zip(domains, anchors, strict=True)):
        view = anchor.at(domain.pool)
        many = len(anchor.classes)
        classes = torch.arange(many) + number * many
        frame = view.frame(domain.bank.width)
        out.append(DomainFold(frame, view, classes, whole=anchor, pool=domain.pool, named=named))
    return out


@dataclass(frozen=True)
class DomainSet(TrainingSet):
    """A training set with the folds that its tasks came from."""

    folds: list[DomainFold] = field(default_factory=list)


class DomainObjective(HeadObjective):
    """The training loss of a head generator that sees a domain."""

    # Samples of the pool that a batch reads.
    most = 256

    def told(self, group: Group, items: Tensor, support: Tensor, rng: torch.Generator) -> Batch:
        """See `HeadObjective.told`: the scene of every task."""
        assert isinstance(self.data, DomainSet)
        fold = self.data.folds[int(group.setting["frame"])]
        pool = fold.pool[torch.randperm(len(fold.pool), generator=rng)[: self.most]]
        classes = (
            torch.bucketize(items[..., 0].contiguous(), self.data.bank.offsets, right=True) - 1
        )
        view = replace(fold, pool=pool).seen(classes)
        # The frame is that of the whole pool.
        view.origin = fold.frame.mean
        view.pool = fold.frame.enter(pool)
        space = self.spaces[support.shape[1]]
        _, scene = view.look(support, torch.ones(support.shape[:3]), space)
        return {f"scene.{name}": value for name, value in vars(scene).items()}

    def guide(self, batch: Batch) -> Guide:
        """See `HeadObjective.guide`."""
        scene = {k.removeprefix("scene."): v for k, v in batch.items() if k.startswith("scene.")}
        return DomainGuide(**vars(super().guide(batch)), scene=Scene(**scene))


def prepare_domains(
    path: Path,
    domains: Sequence[Domain],
    folds: Sequence[DomainFold],
    recipe: Recipe,
    backbone: Backbone,
    *,
    progress: Progress | None = None,
) -> DomainSet:
    """Solve tasks of every fold into a zoo at `path`."""
    zoo = start_zoo(path, together(domains), recipe, backbone)
    zoo.keep_frames([fold.frame for fold in folds], [fold.classes.tolist() for fold in folds])
    DomainCollection(zoo, recipe, folds).fill(progress=progress)
    data = TrainingSet.of(zoo)
    return DomainSet(
        data.bank, data.groups, data.space, data.frames, data.arrivals, folds=list(folds)
    )


class DomainCollection(HeadCollection):
    """A zoo of heads whose folds are domains.

    Args:
        zoo: Started, with its frames.
        recipe: It was started with.
        folds: One for each frame.
    """

    def __init__(self, zoo: Zoo, recipe: Recipe, folds: Sequence[DomainFold]) -> None:
        Collection.__init__(self, zoo, plan_of(recipe.tasks, len(folds)))
        self.recipe, self.bank = recipe, zoo.bank()
        self.folds = folds

    def fold(self, number: int) -> Fold:
        """The tasks of a domain."""
        return self.folds[number]


def train_domain_generator(
    data: DomainSet,
    anchor: DomainAnchor,
    backbone: Backbone,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
) -> DomainHeadGenerator:
    """Meta-train on the folds of `data`; the generator gets `anchor`, which knows all domains."""
    generator = train_generator(
        data,
        anchor,
        backbone,
        recipe,
        about={"classes": list(anchor.classes)},
        objective=DomainObjective,
        progress=progress,
    )
    return DomainHeadGenerator(generator.parts)
