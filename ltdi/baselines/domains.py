"""What methods for unseen domains offer, and few-shot methods among them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltdi.baselines.method import Banks, Budget, Contender, Method
from ltdi.crossdomain import Domain, together
from ltdi.progress import Step
from ltdi.tasks import Episodes, FeatureBank, sample_episodes


@dataclass(frozen=True)
class Sources:
    """The domains that may be learned from.

    Attributes:
        domains: All of them.
        held: Number of the one on which what is trained on the others is validated.
        shared: What methods work out from the domains alone, and share.
    """

    domains: tuple[Domain, ...]
    held: int
    shared: dict[Any, Any] = field(default_factory=dict, compare=False)

    @property
    def valid(self) -> Domain:
        """The domain held out."""
        return self.domains[self.held]

    @property
    def train(self) -> tuple[Domain, ...]:
        """The others."""
        return tuple(d for i, d in enumerate(self.domains) if i != self.held)


class DomainMethod(Contender):
    """A classifier for tasks of a domain that nothing was trained on."""

    @abstractmethod
    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """Learn from source domains, and make every choice on them."""

    @abstractmethod
    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """Classify the queries of E tasks of one domain.

        Args:
            support: [E, way, shot, D].
            query: [E, way, Q, D].
            names: [E, way] numbers of the tasks' classes.
            pool: [P, D] unlabelled features of the domain.

        Returns:
            Logits [E, way, Q, way].
        """


@dataclass(frozen=True)
class DomainBank(FeatureBank):
    """A bank of several domains, an episode of which stays in one."""

    def episodes(self, *, way: int, shot: int, query: int, episodes: int, seed: int) -> Episodes:
        """The same share of the episodes from each domain, the first ones taking what is left."""
        names = [c.partition("/")[0] for c in self.classes]
        domains = list(dict.fromkeys(names))
        parts = []
        for i, domain in enumerate(domains):
            # Of a single episode the seed chooses the domain.
            turn = (i + seed) % len(domains)
            many = len(range(turn, episodes, len(domains)))
            among = torch.tensor([c for c, name in enumerate(names) if name == domain])
            if not many:
                continue
            parts.append(
                sample_episodes(
                    self.offsets,
                    way=min(way, len(among)),
                    shot=shot,
                    query=query,
                    episodes=many,
                    seed=seed,
                    among=among,
                )
            )
        return Episodes(
            torch.cat([p.classes for p in parts]),
            torch.cat([p.support for p in parts]),
            torch.cat([p.query for p in parts]),
        )

    @classmethod
    def of(cls, domains: Sequence[Domain]) -> DomainBank:
        """The labelled features of some domains."""
        bank = together(domains)
        return cls(bank.features, bank.offsets, bank.classes)


def aligned(domain: Domain) -> Domain:
    """The domain seen from the mean of its own unlabelled samples."""
    mean = domain.pool.mean(0)
    bank = replace(domain.bank, features=domain.bank.features - mean)
    full = replace(domain.full, features=domain.full.features - mean)
    return Domain(domain.name, bank, domain.pool - mean, full)


class FewShot(DomainMethod):
    """A few-shot method; it knows neither names nor, unless it is aligned, the domain.

    It learns from all source domains but the one on which it is validated.

    Args:
        align: Whether features are centred on the mean of their domain's unlabelled samples.
    """

    def __init__(self, method: Method, align: bool = False) -> None:
        self.method, self.align = method, align
        self.name = method.name + ("-aligned" if align else "")
        self.note = method.note + (
            "; features centred on the mean of the domain's unlabelled samples" if align else ""
        )

    def fit(self, sources: Sources, budget: Budget, progress: Step | None = None) -> None:
        """See `DomainMethod.fit`."""
        train, valid = list(sources.train), [sources.valid]
        if self.align:
            train, valid = [aligned(d) for d in train], [aligned(d) for d in valid]
        bank = DomainBank.of(train)
        room = bank.queries_left(budget.shot, budget.query)
        banks = Banks(bank, DomainBank.of(valid))
        self.method.fit(banks, replace(budget, query=room), progress)

    def predict(self, support: Tensor, query: Tensor, names: Tensor, pool: Tensor) -> Tensor:
        """See `DomainMethod.predict`."""
        if self.align:
            support, query = support - pool.mean(0), query - pool.mean(0)
        return self.method.predict(support, query)
