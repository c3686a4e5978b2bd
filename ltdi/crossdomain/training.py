"""A zoo whose folds are domains, and a generator that sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.anchor.crossfit import Fold
from ltdi.anchor.domain import DomainAnchor, Scene
from ltdi.backbone import Backbone
from ltdi.crossdomain.domains import Domain, together
from ltdi.denoiser import DomainGuide, Guide
from ltdi.engine import Collection, Runtime, plan_of
from ltdi.generator import DomainHeadGenerator
from ltdi.meta import Batch
from ltdi.pipeline import HeadCollection, HeadObjective, start_zoo, train_generator
from ltdi.progress import Progress
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank
from ltdi.zoo import Group, Zoo


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


class DomainCollection(HeadCollection):
    """A zoo of heads whose folds are domains."""

    def __init__(self, zoo: Zoo, recipe: Recipe, folds: Sequence[DomainFold]) -> None:
        Collection.__init__(self, zoo, plan_of(recipe.tasks, len(folds)))
        self.recipe, self.frames, self.bank = recipe, zoo.frames(), zoo.bank()
        self.folds, self.anchor = folds, folds[0].anchor

    def fold(self, number: int) -> Fold:
        """The tasks of a domain."""
        return self.folds[number]


class DomainObjective(HeadObjective):
    """The training loss of a head generator that sees a domain."""

    # Samples of the pool that a batch reads.
    most = 256

    def told(self, group: Group, items: Tensor, support: Tensor, rng: torch.Generator) -> Batch:
        """See `HeadObjective.told`: the scene of every task."""
        assert isinstance(self.data, DomainCollection)
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
) -> DomainCollection:
    """Solve tasks of every fold into a zoo; see `ltdi.pipeline.start_zoo` for the errors."""
    zoo = start_zoo(path, together(domains), recipe, backbone)
    zoo.keep_frames([fold.frame for fold in folds], [fold.classes.tolist() for fold in folds])
    return DomainCollection(zoo, recipe, folds).fill(progress=progress)


def train_domain_generator(
    data: DomainCollection,
    anchor: DomainAnchor,
    backbone: Backbone,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
) -> DomainHeadGenerator:
    """Meta-train on the folds of `data`; see `ltdi.pipeline.train_generator` for the errors.

    The anchor is the generator's own, which knows all domains.
    """
    generator = train_generator(
        data,
        backbone,
        recipe,
        anchor=anchor,
        about={"classes": list(anchor.classes)},
        objective=DomainObjective,
        runtime=Runtime(progress=progress),
    )
    return DomainHeadGenerator(generator.parts)
