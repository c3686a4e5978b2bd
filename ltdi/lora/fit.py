"""Weight preparation of adapters: one task is fitted, and its trajectory kept.

One adapter after the other: the frozen base's matrix products fill the processor, and several
adapters under `vmap` were no faster (and pad each other's texts).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.backbone import autocast
from ltdi.collect import Preparation
from ltdi.errors import InputError, MismatchError
from ltdi.lora.adapter import Adapter
from ltdi.lora.inputs import in_order, shuffled, trim

# The rate rises over this share of the steps, and then falls to zero.
_WARMUP = 0.06
_MAX_NORM = 1.0

_OPTIMISERS: dict[str, Callable[[Tensor, Preparation], torch.optim.Optimizer]] = {
    "adam": lambda w, p: torch.optim.Adam([w], lr=p.lr, weight_decay=p.weight_decay),
    "adamw": lambda w, p: torch.optim.AdamW([w], lr=p.lr, weight_decay=p.weight_decay),
    "sgd": lambda w, p: torch.optim.SGD([w], lr=p.lr, momentum=0.9, weight_decay=p.weight_decay),
}


@dataclass(frozen=True)
class Fitted:
    """A fitted adapter.

    Attributes:
        theta: [k, n] local targets theta_d, .., theta_M.
        loss: [k] mean training loss of each segment.
        finite: Whether every number is; others are to be dropped.
        seconds: Wall time.
    """

    theta: Tensor
    loss: Tensor
    finite: bool
    seconds: float


def fit_adapter(
    adapter: Adapter,
    inputs: Tensor,
    targets: Tensor,
    preparation: Preparation,
    rng: torch.Generator,
    *,
    start: Tensor | None = None,
    taken: int = 0,
    precision: str = "auto",
    progress: Callable[[int, int, float], None] | None = None,
) -> Fitted:
    """Fit one task, without dropout, with batches of texts of like length.

    The learning rate rises linearly over the first 6 % of the steps and falls linearly to zero;
    gradients longer than 1 are shortened to 1.

    Args:
        adapter: What is fitted.
        inputs: [P, channels, T] of `encode`, the rows of the task only.
        targets: [P] classes, or values of a regression (`TextSet.targets`).
        preparation: Optimiser, rate, steps, segments, batch (0: all), SAM, smoothing; decay is
            towards the start.
        rng: Source of batches.
        start: [n] weights to start from; theta_0 by default.
        taken: Steps that `start` has taken of this schedule, a multiple of a segment: the rate goes
            on from there, and only the local targets that are left are kept. So one long run
            branches cheaply into many, whose ends differ in rows and batches.
        precision: "auto" takes bfloat16 where the processor has it; "float32" never does.
        progress: Called as progress(step, steps, loss).

    Raises:
        InputError: For labels that do not fit the head, or a branch that no segment begins at.
        MismatchError: For a start of another weight space.
    """
    p, begin = preparation, time.perf_counter()
    _check_targets(adapter, inputs, targets)
    segment = p.steps // p.segments
    if not 0 <= taken < p.steps or taken % segment:
        raise InputError(
            f"a run of {p.steps} steps in segments of {segment} has no local target at {taken}",
            where="taken",
            fix=f"choose a multiple of {segment} below {p.steps}",
        )
    first = adapter.theta_0 if start is None else start
    if first.shape != adapter.theta_0.shape:
        raise MismatchError(
            f"the start has {list(first.shape)} numbers, the adapter {adapter.space.size}",
            where="start",
            fix="start from weights of the same base, rank, target modules and outputs",
        )
    loss_of = _loss(adapter, targets.is_floating_point(), p.label_smoothing, precision)
    # In the difference, decay towards zero is decay towards the start.
    delta = torch.zeros_like(first).requires_grad_()
    optimiser = _OPTIMISERS[p.optimiser](delta, p)
    batches = shuffled(inputs, p.batch or len(inputs), rng)
    kept, losses = [], []
    for step in range(taken, p.steps):
        rows = next(batches)
        x, y = trim(inputs[rows]), targets[rows]
        loss = loss_of(first + delta, x, y)
        (g,) = torch.autograd.grad(loss, delta)
        if p.sam_rho > 0:
            top = first + delta.detach() + p.sam_rho * F.normalize(g, dim=0)
            (g,) = torch.autograd.grad(loss_of(top.requires_grad_(), x, y), top)
        delta.grad = g * (_MAX_NORM / g.norm().clamp(min=_MAX_NORM))
        optimiser.param_groups[0]["lr"] = p.lr * _rate(step, p.steps)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % segment == 0:
            kept.append(first + delta.detach())
        if progress:
            progress(step + 1, p.steps, losses[-1])
    theta = torch.stack(kept)
    mean = torch.tensor(losses).unflatten(0, (-1, segment)).mean(1)
    finite = bool(theta.isfinite().all() and mean.isfinite().all())
    return Fitted(theta, mean, finite, time.perf_counter() - begin)


@torch.no_grad()
def adapter_logits(
    adapter: Adapter,
    theta: Tensor,
    inputs: Tensor,
    *,
    batch: int = 64,
    precision: str = "auto",
) -> Tensor:
    """Logits float32 [P, outputs] of weights theta [n] on inputs [P, channels, T]."""
    predict = adapter.predict
    out = torch.empty(len(inputs), adapter.outputs)
    for rows in in_order(inputs, batch):
        with autocast(precision):
            out[rows] = predict(theta, trim(inputs[rows]))
    return out


def _loss(
    adapter: Adapter, regression: bool, smoothing: float, precision: str
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    predict = adapter.predict

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with autocast(precision):
            logits = predict(theta, x)
        if regression:
            return F.mse_loss(logits[:, 0], y)
        return F.cross_entropy(logits, y, label_smoothing=smoothing)

    return loss


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate at a step from 0."""
    return min(1.0, (step + 1) / max(1.0, _WARMUP * steps)) * (1 - step / steps)


def _check_targets(adapter: Adapter, inputs: Tensor, targets: Tensor) -> None:
    if not len(inputs) or targets.shape != inputs.shape[:1]:
        raise InputError(
            f"{len(inputs)} texts and targets of shape {list(targets.shape)} do not make a task",
            where="targets",
            fix="give one target per text, and one text or more",
        )
    if targets.is_floating_point():
        fits, what = adapter.outputs == 1, "values"
    else:
        fits = int(targets.min()) >= 0 and int(targets.max()) < adapter.outputs > 1
        what = f"classes {int(targets.min())}..{int(targets.max())}"
    if not fits:
        raise InputError(
            f"targets are {what}, the head has {adapter.outputs} output(s)",
            where="targets",
            fix="make the adapter with TextSet.outputs",
        )
