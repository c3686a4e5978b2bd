"""Careful choices for every peer: all of them on validation episodes, never on train or test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.baselines.method import Budget
from ltdi.errors import DivergedError
from ltdi.tasks import Episodes, FeatureBank

T = TypeVar("T")


class Batch(NamedTuple):
    """Features of E episodes: support [E, way, shot, D] and query [E, way, Q, D]."""

    support: Tensor
    query: Tensor


def features_of(bank: FeatureBank, episodes: Episodes) -> Batch:
    """Look up the features behind an episode list."""
    return Batch(bank.features[episodes.support], bank.features[episodes.query])


def draw(bank: FeatureBank, budget: Budget, *, episodes: int, seed: int) -> Batch:
    """Draw episodes of the budget's shape, as near to it as the bank's size allows.

    A bank with fewer classes than `way`, or fewer items than `shot + query`, gives smaller
    episodes rather than none: every peer serves any way and any number of queries.

    Raises:
        InputError: If a class has no item left for the query.
    """
    counts = bank.offsets.diff()
    room = int(counts.min()) - budget.shot
    drawn = bank.episodes(
        way=min(budget.way, len(counts)),
        shot=budget.shot,
        query=max(1, min(budget.query, room)),
        episodes=episodes,
        seed=seed,
    )
    return features_of(bank, drawn)


def validation_episodes(valid: FeatureBank, budget: Budget) -> Batch:
    """The episodes of validation classes on which a method makes its choices."""
    return draw(valid, budget, episodes=budget.valid_episodes, seed=budget.seed)


def accuracy(logits: Tensor) -> Tensor:
    """Share of correct queries of each episode: [E, way, Q, way] -> [E]."""
    right = logits.argmax(-1) == _labels(logits)
    return right.float().mean((1, 2))


def cross_entropy(logits: Tensor) -> Tensor:
    """Mean negative log-likelihood of each episode: [E, way, N, way] -> [E]."""
    own = logits.diagonal(dim1=1, dim2=3).mT
    return (logits.logsumexp(-1) - own).mean((1, 2))


def score(logits: Tensor) -> float:
    """Mean accuracy over episodes, by which candidates are compared."""
    return float(accuracy(logits).mean())


def choose(candidates: Iterable[T], score: Callable[[T], float]) -> T:
    """The candidate with the highest finite score; the earliest among equals.

    Raises:
        DivergedError: If no candidate has a finite score.
    """
    best: tuple[T, float] | None = None
    for candidate in candidates:
        value = score(candidate)
        if math.isfinite(value) and (best is None or value > best[1]):
            best = (candidate, value)
    if best is None:
        raise DivergedError("no candidate has a finite score", where="choice on validation")
    return best[0]


def calibrate(logits: Tensor) -> float:
    """Inverse temperature s that minimises the likelihood loss of `s * logits`.

    The loss is convex in s, so its slope is bisected. The targets are smoothed by one
    pseudo-observation (Platt, 1999), which keeps s finite where every query is right.

    Args:
        logits: [E, way, Q, way] on validation episodes.

    Raises:
        DivergedError: If a logit is not finite.
    """
    way = logits.shape[-1]
    flat = logits.double() - logits.double().mean(-1, keepdim=True)
    if not bool(flat.isfinite().all()):
        raise DivergedError("logits on validation episodes are not finite", where="calibration")
    own = flat.gather(-1, _labels(flat).expand(flat.shape[:-1])[..., None])
    flat, aim = flat.reshape(-1, way), float(own.mean())
    # Centred logits have mean zero, so the uniform part of a smoothed target adds nothing.
    aim *= 1 - way / (len(flat) + way)
    low, high = math.log(1e-6), math.log(1e6)
    unit = max(float(flat.std()), 1e-12)
    for _ in range(40):
        middle = (low + high) / 2
        given = (F.softmax(math.exp(middle) / unit * flat, -1) * flat).sum(-1).mean()
        low, high = (middle, high) if float(given) < aim else (low, middle)
    return math.exp((low + high) / 2) / unit


def _labels(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device)[None, :, None]
