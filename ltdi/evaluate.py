"""Scores of classifiers on episodes, with intervals over episodes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.errors import DivergedError, InputError
from ltdi.tasks import Episodes, FeatureBank

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Summary:
    """Mean over episodes with a 95 % interval.

    Attributes:
        mean: Mean.
        ci95: Half width of the interval, 1.96 standard errors.
        episodes: Number of episodes.
    """

    mean: float
    ci95: float
    episodes: int


def summarise(values: Tensor) -> Summary:
    """Mean and interval of values [E]."""
    half = 1.96 * float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Summary(float(values.double().mean()), half, len(values))


def paired(ours: Tensor, theirs: Tensor) -> Summary:
    """Mean and interval of the difference [E] - [E] on the same episodes.

    Raises:
        InputError: If they are not as many.
    """
    if ours.shape != theirs.shape:
        raise InputError(f"paired scores need the same episodes, got {len(ours)} and {len(theirs)}")
    return summarise(ours - theirs)


def across(scores: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean over independent sets, which count the same, and the interval of that mean.

    Each set has a mean and the half width of its interval.
    """
    mean = sum(mean for mean, _ in scores) / len(scores)
    return mean, math.sqrt(sum(half * half for _, half in scores)) / len(scores)


def accuracy(logits: Tensor) -> Tensor:
    """Accuracy [E] of logits [E, way, Q, way] whose labels are the index on the first way axis."""
    labels = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1)
    return (logits.argmax(-1) == labels).float().mean((1, 2))


def negative_log_likelihood(logits: Tensor) -> Tensor:
    """NLL [E] of logits [E, way, Q, way], the mean cross entropy of queries; see `accuracy`."""
    own = logits.diagonal(dim1=1, dim2=3).mT
    return (logits.logsumexp(-1) - own).mean((1, 2))


def calibration_error(logits: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017) over all queries of [E, way, Q, way]."""
    confidence, guess = logits.softmax(-1).max(-1)
    right = (guess == torch.arange(logits.shape[1]).view(1, -1, 1)).float()
    which = (confidence * bins).long().clamp(max=bins - 1).flatten()
    gap = (confidence - right).flatten().double()
    sums = torch.zeros(bins, dtype=torch.double).index_add(0, which, gap)
    return float(sums.abs().sum() / len(gap))


def calibrate(*logits: Tensor) -> float:
    """Inverse temperature s that minimises the likelihood loss of `s * logits`.

    The loss is convex in s, so its slope is bisected. The targets are smoothed by one
    pseudo-observation (Platt, 1999), which keeps s finite where every query is right.

    Args:
        *logits: [E, way, Q, way] on validation episodes; several kinds of episodes count the same.

    Raises:
        DivergedError: If a logit is not finite.
    """
    sets, aim = [], 0.0
    for given in logits:
        flat = given.double() - given.double().mean(-1, keepdim=True)
        if not bool(flat.isfinite().all()):
            raise DivergedError("logits on validation episodes are not finite", where="calibration")
        way, own = flat.shape[-1], flat.diagonal(dim1=1, dim2=3).mean()
        flat = flat.reshape(-1, way)
        # Centred logits have mean zero, so the uniform part of a smoothed target adds nothing.
        aim += float(own) * (1 - way / (len(flat) + way))
        sets.append(flat)
    low, high = math.log(1e-6), math.log(1e6)
    unit = max(max(float(flat.std()) for flat in sets), 1e-12)
    for _ in range(40):
        middle = (low + high) / 2
        s = math.exp(middle) / unit
        found = sum(float((F.softmax(s * flat, -1) * flat).sum(-1).mean()) for flat in sets)
        low, high = (middle, high) if found < aim else (low, middle)
    return math.exp((low + high) / 2) / unit


@dataclass(frozen=True)
class Scores:
    """Per-episode scores of one method.

    Attributes:
        accuracy: [E] fractions.
        nll: [E] nats.
        ece: Expected calibration error over all queries.
        seconds: Wall time of all episodes together.
        classes: [E, way] numbers of the episodes' classes.
    """

    accuracy: Tensor
    nll: Tensor
    ece: float
    seconds: float
    classes: Tensor


def class_ci95(difference: Tensor, classes: Tensor) -> float | None:
    """Half width of the 95 % interval of a mean had other classes been drawn as well.

    Episodes draw again and again from the same few classes, so the interval over episodes says
    nothing about others. To first order a class adds an effect, of variance v, to every episode it
    is in (Hoeffding, 1948), so two episodes covary by v times the classes they share: v is fitted
    to all pairs by least squares. The mean over C classes has variance way^2 v / C beside that of
    the episodes.

    `difference` are values [E] of episodes, whose classes are [E, way]. None where all episodes
    have the same classes, which tell nothing about others.
    """
    episodes, way = classes.shape
    found, number = classes.unique(return_inverse=True)
    if len(found) == way:
        return None
    total, rest = len(found), (difference - difference.double().mean()).double()
    within = torch.zeros(episodes, total, dtype=torch.double).scatter_(1, number, 1.0)
    # Sums over pairs of different episodes.
    pairs, of_each = max(1, episodes * (episodes - 1)), within.sum(0)
    shared = float(of_each.square().sum() - within.sum()) / pairs
    spread = float((within.T @ within).square().sum() - within.sum(1).square().sum())
    spread -= pairs * shared**2
    product = float((within.T @ rest).square().sum() - (way - shared) * rest.square().sum())
    v = max(0.0, product / spread) if spread > 1e-9 * pairs else 0.0
    sampled = float(rest.square().sum()) / pairs
    return float(1.96 * (way**2 * v / total + sampled) ** 0.5)


def on_bank(predict: Predict, bank: FeatureBank) -> Callable[[Episodes], Tensor]:
    """A few-shot method as a function of episodes that point into a bank."""
    return lambda part: predict(bank.features[part.support], bank.features[part.query])


@torch.no_grad()
def score(predict: Predict, bank: FeatureBank, episodes: Episodes, *, chunk: int = 100) -> Scores:
    """Run a method over episodes.

    Args:
        predict: (support [E, way, shot, D], query [E, way, Q, D]) -> logits [E, way, Q, way].
        bank: Features that the episodes point into.
        episodes: Tasks.
        chunk: Episodes at once.
    """
    return score_tasks(on_bank(predict, bank), episodes, chunk=chunk)


@torch.no_grad()
def score_tasks(
    predict: Callable[[Episodes], Tensor], episodes: Episodes, *, chunk: int = 100
) -> Scores:
    """The same for a method that needs more than features: it is told which tasks these are."""
    logits, start = [], time.perf_counter()
    for part in episodes.chunks(chunk):
        logits.append(predict(part))
    seconds = time.perf_counter() - start
    whole = torch.cat(logits)
    return Scores(
        accuracy(whole),
        negative_log_likelihood(whole),
        calibration_error(whole),
        seconds,
        episodes.classes,
    )


def latency_ms(predict: Callable[[Episodes], Tensor], episodes: Episodes) -> float:
    """Median wall time in milliseconds to adapt to one task and classify its queries.

    Looking the features up takes microseconds of it.
    """
    return median_ms(partial(predict, part) for part in episodes[:20].chunks(1))


def median_ms(calls: Iterable[Callable[[], object]]) -> float:
    """Median wall time of calls in milliseconds."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(torch.tensor(times).median())
