"""The anchor of source domains, and for each of them that of the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.anchor.domain import DomainAnchor, DomainView, level_of, source_head
from ltdi.crossdomain.domains import Domain
from ltdi.evaluate import accuracy, negative_log_likelihood
from ltdi.tasks import Episodes
from ltdi.weights import head_space, query_logits

RIDGES = (1.0, 3.0)
DRIFTS = (0.5, 1.0, 2.0, 4.0)
BLENDS = (0.0, 0.3, 1.0, 3.0)
_DECAY = 1e-5
TRUSTS = (0.0, 0.1, 0.3, 1.0)
HEATS = (0.1, 0.3, 1.0)
_SCALES = tuple(0.02 * 1.25**i for i in range(20))


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
        bank, pool = self.domain.bank, self.domain.pool
        return [
            view_logits(
                anchor.at(pool, t.classes if named else None),
                bank.features[t.support],
                bank.features[t.query],
            )
            for t in self.tasks
        ]


def view_logits(seen: DomainView, support: Tensor, query: Tensor) -> Tensor:
    """Logits [E, way, Q, way] of an anchor's heads in a domain.

    Args:
        seen: The anchor there, told the names of these tasks' classes or none.
        support: [E, way, shot, D].
        query: [E, way, Q, D].
    """
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
