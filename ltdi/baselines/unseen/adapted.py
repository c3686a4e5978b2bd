"""A plain adaptation of any method to the unlabelled images: self-training with class means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.anchor.prior import shares
from ltdi.baselines.unseen.method import (
    Coordinates,
    NamedBanks,
    UnseenBudget,
    UnseenMethod,
    accuracy,
)
from ltdi.progress import Step
from ltdi.unseen.tasks import NamedBank, TaskBatch


@dataclass(frozen=True)
class Plan:
    """How a method is adapted.

    Attributes:
        iterations: Of expectation maximisation; 0 leaves the method as it is.
        whiten: Whether distances are measured in whitened coordinates.
        sharpness: Of the method's own logits, in units of their spread.
        hardness: Of the distances to class means.
        trust: Weight of the method's own logits beside the distances, from the first iteration.
        balance: How far classes are believed to have equally many images; see `ltdi.anchor.prior`.
    """

    iterations: int = 5
    whiten: bool = True
    sharpness: float = 2.0
    hardness: float = 0.3
    trust: float = 0.5
    balance: float = 0.0


class Adapted(UnseenMethod):
    """Soft pseudo-labels, class means from them, new pseudo-labels, and so on.

    Args:
        base: The method; fitted here where `own` is set.
        own: Whether it is to be fitted here.
    """

    note = (
        "the method's own soft labels of the unlabelled images give class means, which give new "
        "soft labels, and so on; every setting chosen on validation, no adaptation among them"
    )

    def __init__(self, base: UnseenMethod, own: bool = False) -> None:
        self.base, self.own = base, own
        self.name = f"{base.name}+em"
        self.kind = base.kind
        self.plan = Plan()
        self.spaces: dict[bool, Coordinates] = {}

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`; one setting after the other is chosen."""
        train, valid = banks
        if self.own:
            self.base.fit(banks, budget, progress)
        self.spaces = {w: Coordinates.fit(train, w) for w in (False, True)}
        own = [
            (self.base.logits(b, b.pool), self.base.logits(b, b.query.flatten(1, 2))) for b in valid
        ]

        def score(plan: Plan) -> float:
            found = [
                accuracy(self._adapt(plan, b, b.query.flatten(1, 2), *logits), b)
                for b, logits in zip(valid, own, strict=True)
            ]
            return sum(found) / len(found)

        best, plan = score(replace(self.plan, iterations=0)), replace(self.plan, iterations=0)
        start = Plan()
        rounds: list[dict[str, tuple[float, ...]]] = [
            {"whiten": (0, 1), "hardness": (0.1, 0.3, 0.5)},
            {"sharpness": (1.0, 2.0, 4.0)},
            {"trust": (0.0, 0.3, 0.6, 1.0)},
            {"balance": (0.0, 0.5, 1.0)},
            {"iterations": (2, 5, 12)},
        ]
        for choices in rounds:
            tries = [start]
            for field, values in choices.items():
                tries = [replace(p, **{field: v}) for p in tries for v in values]  # type: ignore[arg-type]
            scored = [(score(p), i) for i, p in enumerate(tries)]
            value, index = max(scored)
            start = tries[index]
            if value > best:
                best, plan = value, start
        self.plan = plan

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        self.base = self.base.again(source, budget)
        self.spaces = {w: Coordinates.fit(source, w) for w in (False, True)}

    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        at_pool, at_images = self.base.logits(batch, batch.pool), self.base.logits(batch, images)
        return self._adapt(self.plan, batch, images, at_pool, at_images)

    @torch.no_grad()
    def _adapt(
        self, plan: Plan, batch: TaskBatch, images: Tensor, at_pool: Tensor, at_images: Tensor
    ) -> Tensor:
        if not plan.iterations or not batch.pool.shape[1]:
            return at_images
        frame = self.spaces[bool(plan.whiten)].frame
        pool, real = frame.enter(batch.pool), batch.mask.unsqueeze(-1)
        centre = (at_pool * real).sum((1, 2), keepdim=True) / (
            real.sum((1, 2), keepdim=True) * batch.way
        )
        spread = ((at_pool - centre).square() * real).sum((1, 2), keepdim=True)
        spread = (spread / (real.sum((1, 2), keepdim=True) * batch.way)).sqrt() + 1e-9
        own = plan.sharpness * (at_pool - centre) / spread
        r = shares(own, batch.mask, plan.balance)
        mean = torch.zeros(0)
        for _ in range(plan.iterations):
            mean = (r.mT @ pool) / (r.sum(1).unsqueeze(-1) + 1e-6)
            near = plan.hardness * (2 * pool @ mean.mT - mean.square().sum(-1).unsqueeze(1))
            r = shares(plan.trust * own + near, batch.mask, plan.balance)
        z = frame.enter(images)
        near = plan.hardness * (2 * z @ mean.mT - mean.square().sum(-1).unsqueeze(1))
        out: Tensor = plan.trust * plan.sharpness * (at_images - centre) / spread + near
        return out
