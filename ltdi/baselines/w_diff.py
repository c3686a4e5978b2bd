"""Residual diffusion of heads, after W-Diff (Xie et al., 2024, "Weight Diffusion for Future").

The chain generates what is to be added to a reference head, given that head and the prototypes of
the domain. There the domains follow each other in time, and the reference is the last one's head;
here they have no order, and the reference is the head of the source domains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.baselines.chain import centred
from ltdi.baselines.domains import DomainBank, DomainMethod, Sources
from ltdi.baselines.erm import SourceHead, leave_out
from ltdi.baselines.method import Banks, Budget, fitted
from ltdi.baselines.ocd import Ocd, Overfitter
from ltdi.baselines.scaling import Scaling
from ltdi.baselines.tuning import Batch
from ltdi.crossdomain import Domain
from ltdi.denoiser.condition import Condition
from ltdi.progress import Step
from ltdi.tasks import Episodes, FeatureBank

_HEATS = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class RowBank(DomainBank):
    """A bank whose supports end with the reference row of their class, in place of a sample.

    The rows are features without a class, behind all others: one for each class of the bank.
    """

    def episodes(self, *, way: int, shot: int, query: int, episodes: int, seed: int) -> Episodes:
        """See `FeatureBank.episodes`."""
        drawn = super().episodes(way=way, shot=shot, query=query, episodes=episodes, seed=seed)
        rows = int(self.offsets[-1]) + drawn.classes
        return Episodes(drawn.classes, torch.cat([drawn.support, rows[..., None]], 2), drawn.query)

    @classmethod
    def with_rows(cls, domains: list[Domain], heads: list[SourceHead]) -> RowBank:
        """The labelled features of some domains, with the rows of the heads that lack them."""
        bank = DomainBank.of(domains)
        rows = torch.cat([head.weight for head in heads])
        return cls(torch.cat([bank.features, rows]), bank.offsets, bank.classes)


class Residual(Overfitter):
    """Diffusion over what is to be added to a reference head, the support's last sample."""

    def base(self, support: Tensor) -> Tensor:
        """See `Overfitter.base`: the reference rows."""
        return centred(F.pad(self.strength * support[:, :, -1], (0, 1)))

    def solved_on(self, batch: Batch) -> Tensor:
        """See `Overfitter.solved_on`: the reference is no sample."""
        return torch.cat([batch.support[:, :, :-1], batch.query], 2)

    def context(self, support: Tensor) -> Condition:
        """See `Overfitter.context`: the samples, and the reference at their scale."""
        row = F.normalize(support[:, :, -1:], dim=-1)
        return super().context(torch.cat([support[:, :, :-1], row], 2))


class _Chain(Ocd):
    """The trained chain; `strength` is the temperature of the reference."""

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], Overfitter]]:
        """Reference heads at several temperatures."""
        scaling = Scaling(torch.zeros(train.width), 1.0, True)
        return [partial(Residual, scaling, heat, train, budget) for heat in _HEATS]


class WDiff(DomainMethod):
    """A reference head moved by a generated residual."""

    name = "w-diff"
    note = (
        "noise prediction of the residual between the head of the source domains and the head of "
        "a task, given the support's prototypes and the reference; domains without order, so no "
        "sequence of references; a transformer in place of the U-Net; temperature of the "
        "reference, share, steps and samples chosen on a source domain held out"
    )

    def __init__(self) -> None:
        self.chain = _Chain()
        self.head: SourceHead | None = None

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`."""
        heads, self.head = leave_out(sources, False, budget)
        train = [i for i in range(len(heads)) if i != sources.held]
        bank = RowBank.with_rows([sources.domains[i] for i in train], [heads[i] for i in train])
        valid = RowBank.with_rows([sources.valid], [heads[sources.held]])
        room = bank.queries_left(budget.shot, budget.query)
        self.chain.fit(Banks(bank, valid), replace(budget, query=room), progress)

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        rows = fitted(self.head, self).weight[names].unsqueeze(2)
        return self.chain.predict(torch.cat([support, rows], 2), query)
