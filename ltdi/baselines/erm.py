"""Empirical risk minimisation over source domains (Gulrajani & Lopez-Paz, 2021, 2007.01434).

A head for all classes, trained on the union of the source domains: a task takes the rows of its
classes. Every choice is the mean over source domains that are held out in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.anchor.domain import softmax_head
from ltdi.baselines.domains import DomainMethod, Sources, aligned
from ltdi.baselines.inner import Adam, Weights, linear, trajectory
from ltdi.baselines.method import Budget, fitted
from ltdi.baselines.tuning import choose, score
from ltdi.crossdomain import Domain
from ltdi.evaluate import calibrate, negative_log_likelihood
from ltdi.progress import Step
from ltdi.tasks import Episodes

_DECAYS = (1e-6, 1e-5, 1e-4)
_RATES = (0.01, 0.1, 0.5)
_PULLS = (0.0, 0.01, 0.1)
_STEPS = (1, 5, 20, 50)
_HEATS = (0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class SourceHead:
    """A softmax head over all classes of the source domains, on features of unit length.

    Attributes:
        weight: [C, D].
        bias: [C].
        align: Whether features are first centred on their domain's unlabelled mean.
    """

    weight: Tensor
    bias: Tensor
    align: bool

    @classmethod
    def fit(cls, domains: Sequence[Domain], decay: float, align: bool) -> SourceHead:
        """See `ltdi.anchor.domain.softmax_head`, on features of length one."""
        domains = [aligned(d) for d in domains] if align else list(domains)
        x = torch.cat([F.normalize(d.full.features, dim=-1) for d in domains])
        found = softmax_head([d.full for d in domains], x, decay, 100)
        return cls(found[:, :-1], found[:, -1], align)

    def enter(self, features: Tensor, pool: Tensor) -> Tensor:
        """Features [..., D] as the head sees them."""
        return F.normalize(features - pool.mean(0) if self.align else features, dim=-1)

    def rows(self, names: Tensor, heat: float = 1.0) -> Weights:
        """The head of tasks with classes names [E, way]."""
        return {"weight": heat * self.weight[names], "bias": heat * self.bias[names]}


class Erm(DomainMethod):
    """The rows of the task's classes; the support is not looked at."""

    def __init__(self, align: bool = False) -> None:
        self.align, self.scale = align, 1.0
        self.name = "erm-aligned" if align else "erm"
        self.note = (
            "softmax head of all classes on the union of the source domains, on frozen features; "
            "decay chosen on source domains held out in turn"
            + ("; features centred on their domain's unlabelled mean" if align else "")
        )
        self.head: SourceHead | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`."""
        heads, self.head = leave_out(sources, self.align, budget)
        pairs = zip(heads, sources.domains, strict=True)
        self.scale = calibrate(torch.cat([source_logits(*pair, budget) for pair in pairs]))

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        head = fitted(self.head, self)
        return self.scale * linear(head.enter(query, pool), head.rows(names))


@dataclass(frozen=True)
class Tune:
    """How a source head is fine-tuned on a support.

    Attributes:
        heat: Factor of the source head before.
        rate: Adam's step size.
        pull: Weight of the squared distance to the start, for each sample of the support.
    """

    heat: float
    rate: float
    pull: float

    def heads(self, start: Weights, support: Tensor, steps: int) -> Iterator[Weights]:
        """The heads after 1 .. `steps` steps."""
        fixed = {n: w.detach().clone() for n, w in start.items()}

        def loss(head: Weights, step: int) -> Tensor:
            apart = (head["weight"] - fixed["weight"]).square().sum((1, 2))
            return negative_log_likelihood(linear(support, head)) + self.pull * apart

        return trajectory(loss, start, Adam(self.rate), steps)


class ErmFineTune(DomainMethod):
    """The source head's rows, fine-tuned on the support: what a user would do first.

    Whether features are aligned, heat, step size, pull to the start and steps are chosen on tasks
    of source domains that are held out in turn.
    """

    name = "erm-finetune"
    note = (
        "Adam on the support from the rows of the source head; alignment, temperature, step size, "
        "pull to the start and steps chosen on tasks of source domains held out in turn"
    )

    def __init__(self) -> None:
        self.scale = 1.0
        self.choice: tuple[SourceHead, Tune, int] | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`."""
        scores: dict[tuple[bool, Tune, int], float] = {}
        left: dict[bool, list[SourceHead]] = {}
        whole: dict[bool, SourceHead] = {}
        grid = [Tune(*values) for values in itertools.product(_HEATS, _RATES, _PULLS)]
        for align in (False, True):
            left[align], whole[align] = leave_out(sources, align, budget)
            for number, tune in enumerate(grid):
                for head, domain in zip(left[align], sources.domains, strict=True):
                    for steps, logits in self._walk(head, tune, domain, budget):
                        key = (align, tune, steps)
                        scores[key] = scores.get(key, 0.0) + score(logits)
                if progress:
                    progress(number + 1, len(grid), "fine-tuning")
        align, tune, steps = choose(scores, scores.__getitem__)
        kept = [
            dict(self._walk(head, tune, domain, budget))[steps]
            for head, domain in zip(left[align], sources.domains, strict=True)
        ]
        self.scale = calibrate(torch.cat([x[:, :, :1] for x in kept]))
        self.choice = (whole[align], tune, steps)

    def _walk(
        self, head: SourceHead, tune: Tune, domain: Domain, budget: Budget
    ) -> Iterator[tuple[int, Tensor]]:
        tasks = trial(domain, budget)
        support = head.enter(domain.bank.features[tasks.support], domain.pool)
        query = head.enter(domain.bank.features[tasks.query], domain.pool)
        heads = tune.heads(head.rows(tasks.classes, tune.heat), support, max(_STEPS))
        for step, found in enumerate(heads, 1):
            if step in _STEPS:
                yield step, linear(query, found)

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        head, tune, steps = fitted(self.choice, self)
        start = head.rows(names, tune.heat)
        *_, found = tune.heads(start, head.enter(support, pool), steps)
        return self.scale * linear(head.enter(query, pool), found)


def leave_out(sources: Sources, align: bool, budget: Budget) -> tuple[list[SourceHead], SourceHead]:
    """The heads without each of the domains, and that of all domains.

    Their decay is the one that is best for domains held out in turn.
    """
    key = ("source heads", align)
    if key not in sources.shared:
        domains = sources.domains
        found = {
            decay: [
                SourceHead.fit([d for d in domains if d is not held], decay, align)
                for held in domains
            ]
            for decay in _DECAYS
        }

        def mean(decay: float) -> float:
            pairs = zip(found[decay], domains, strict=True)
            return sum(score(source_logits(head, domain, budget)) for head, domain in pairs)

        best = choose(_DECAYS, mean)
        sources.shared[key] = (found[best], SourceHead.fit(domains, best, align))
    kept: tuple[list[SourceHead], SourceHead] = sources.shared[key]
    return kept


def source_logits(head: SourceHead, domain: Domain, budget: Budget) -> Tensor:
    """Logits of a source head on tasks of a domain, one query a class."""
    tasks = trial(domain, budget)
    query = domain.bank.features[tasks.query[:, :, :1]]
    return linear(head.enter(query, domain.pool), head.rows(tasks.classes))


def trial(domain: Domain, budget: Budget) -> Episodes:
    """The tasks of a domain that choices are made on."""
    return domain.episodes(
        budget.way, budget.shot, budget.query, budget.valid_episodes, budget.seed
    )
