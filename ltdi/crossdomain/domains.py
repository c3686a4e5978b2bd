"""A domain as features: some with labels for tasks, some set aside as a pool without."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.tasks import Episodes, FeatureBank


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
    """Set aside a share of every class as the unlabelled pool, rounded down."""
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
