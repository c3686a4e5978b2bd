"""Trajectories of many tasks, which take their steps together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from ltdi.collect.predictors import Closed, Predict
from ltdi.collect.preparation import OPTIMISERS, Preparation
from ltdi.memory import keep_freed
from ltdi.products import MANY, fast_products


@dataclass(frozen=True)
class Trajectories:
    """Solved tasks.

    Attributes:
        theta: [E, k, n] local targets theta_d, theta_2d, .., theta_M.
        loss: [E] training loss at theta_M.
        accuracy: [E] training accuracy at theta_M, a fraction.
        finite: [E] whether every number is finite; the others are to be dropped.
    """

    theta: Tensor
    loss: Tensor
    accuracy: Tensor
    finite: Tensor


def optimise(
    predict: Predict,
    theta_0: Tensor,
    inputs: Tensor,
    labels: Tensor,
    preparation: Preparation,
    *,
    rng: torch.Generator | None = None,
) -> Trajectories:
    """Solve E classification tasks at once.

    Args:
        predict: Logits of one task, `(theta [n], inputs [P, ...]) -> [P, way]`.
        theta_0: [E, n] start of every task.
        inputs: [E, P, ...] samples of every task.
        labels: [E, P] or [P] labels, 0 <= label < way.
        preparation: Optimiser, steps, segments, SAM.
        rng: Source of minibatches; needed when `preparation.batch` > 0.
    """
    keep_freed()
    p = preparation
    labels = labels.expand(len(theta_0), -1) if labels.ndim == 1 else labels
    picks = [_minibatch(labels, p.batch, rng) for _ in range(p.steps)]
    closed = predict if isinstance(predict, Closed) else None
    large = closed.products if closed else len(theta_0) >= MANY
    each = closed.together(inputs, p.batch) if closed else max(1, len(theta_0))
    found = []
    with fast_products() if large else nullcontext():
        for at in range(0, max(1, len(theta_0)), each):
            some = slice(at, at + each)
            of = [None if pick is None else pick[some] for pick in picks]
            found.append(_solved(predict, theta_0[some], inputs[some], labels[some], of, p))
    return found[0] if len(found) == 1 else _joined(found)


def _solved(
    predict: Predict,
    theta_0: Tensor,
    inputs: Tensor,
    labels: Tensor,
    picks: list[Tensor | None],
    p: Preparation,
) -> Trajectories:
    """`optimise` for tasks that share every operation, on picked samples of each step."""
    closed = predict if isinstance(predict, Closed) else None
    gradient = _gradient(predict, p, inputs, labels)
    start, kept = [theta_0.detach()], []
    if closed:
        start = closed.parts(start[0])
    parts = [x.clone(memory_format=torch.contiguous_format) for x in start]
    optimiser = OPTIMISERS[p.optimiser](parts, p.lr)
    every = p.steps // p.segments
    # Nothing of a closed form is recorded: 3 % of a head.
    with torch.inference_mode() if closed else nullcontext():
        for step, pick in enumerate(picks, 1):
            g = gradient(parts, start, pick)
            if p.sam_rho > 0:
                g = gradient(_climbed(parts, g, p.sam_rho), start, pick)
            if p.optimiser == "adamw":
                for x, x_0 in zip(parts, start, strict=True):
                    x.sub_(x - x_0, alpha=p.lr * p.weight_decay)
            optimiser.step(g)
            if step % every == 0:
                kept.append(closed.whole(parts) if closed else parts[0].clone())
    path = torch.stack(kept, 1)
    theta = path[:, -1]
    whole = closed.logits if closed else vmap(predict)
    logits = whole(theta, inputs).mT
    loss = F.cross_entropy(logits, labels, reduction="none").mean(1)
    # Over a dimension that is not the last one, max is 25 times as fast as argmax.
    accuracy = (logits.max(1).indices == labels).float().mean(1)
    # Both are NaN where there is one.
    finite = path.amax((1, 2)).isfinite() & path.amin((1, 2)).isfinite() & loss.isfinite()
    return Trajectories(path, loss, accuracy, finite)


def _climbed(parts: list[Tensor], gradients: list[Tensor], rho: float) -> list[Tensor]:
    """Weights of every task moved by a distance of rho along its gradient."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    size = rho / norm.clamp(min=1e-12)
    return [
        x + size.view(-1, *[1] * (x.ndim - 1)) * g for x, g in zip(parts, gradients, strict=True)
    ]


Gradient = Callable[[list[Tensor], list[Tensor], Tensor | None], list[Tensor]]


def _gradient(predict: Predict, p: Preparation, inputs: Tensor, labels: Tensor) -> Gradient:
    """Gradients `(theta, theta_0, picked samples [E, batch] or None)`, in parts of theta."""
    pull = 0.0 if p.optimiser == "adamw" else p.weight_decay
    if isinstance(predict, Closed):
        slope = predict.slope(inputs, labels, p.label_smoothing)

        def closed(parts: list[Tensor], start: list[Tensor], pick: Tensor | None) -> list[Tensor]:
            g = slope(parts, pick)
            if pull:
                for part, now, then in zip(g, parts, start, strict=True):
                    part.add_(now - then, alpha=pull)
            return g

        return closed

    rows = torch.arange(len(inputs))[:, None]

    def loss_of(theta: Tensor, start: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(predict(theta, x), y, label_smoothing=p.label_smoothing)
        return loss + 0.5 * pull * (theta - start).square().sum() if pull else loss

    each = vmap(grad(loss_of))

    def general(parts: list[Tensor], start: list[Tensor], pick: Tensor | None) -> list[Tensor]:
        x, y = (inputs, labels) if pick is None else (inputs[rows, pick], labels[rows, pick])
        out: Tensor = each(parts[0], start[0], x, y)
        return [out.contiguous()]  # the fused optimiser reads memory in order

    return general


def _joined(parts: list[Trajectories]) -> Trajectories:
    names = [f.name for f in fields(Trajectories)]
    return Trajectories(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def _minibatch(labels: Tensor, batch: int, rng: torch.Generator | None) -> Tensor | None:
    """Samples [E, batch] of every task, or None for all of them."""
    if batch <= 0 or batch >= labels.shape[1]:
        return None
    return torch.rand(labels.shape, generator=rng).argsort(1)[:, :batch].clone()
