"""Weight preparation: optimise hundreds of tasks at once and keep their trajectories.

All tasks of a batch take their steps together: the loss of one task is differentiated with
`torch.func.grad` and vectorised with `torch.func.vmap`, whatever the kind of weights. Functional
components live here, not in meta-training (paper, section 4.2): sharpness-aware minimisation
(SAM, Foret et al., 2021) and augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from ltdi.errors import InputError, unknown
from ltdi.weights import WeightSpace

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Preparation:
    """How trajectories are made.

    Attributes:
        optimiser: "adam", "adamw" or "sgd" (with momentum 0.9).
        lr: Step size.
        steps: M, optimisation steps per task.
        segments: k, local targets kept; they end segments of equal length.
        weight_decay: L2 penalty on the distance to theta_0 (decoupled for adamw).
        sam_rho: Radius of sharpness-aware minimisation; 0 switches it off.
        batch: Samples per task and step; 0 takes all of them.
        label_smoothing: Of the cross entropy.
    """

    optimiser: str = "adam"
    lr: float = 0.05
    steps: int = 60
    segments: int = 3
    weight_decay: float = 0.0
    sam_rho: float = 0.0
    batch: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise unknown("optimiser", self.optimiser, OPTIMISERS, where="prepare.optimiser")
        if self.segments < 1 or self.steps < 1 or self.steps % self.segments:
            raise InputError(
                f"M = {self.steps} optimiser steps cannot hold k = {self.segments} equal segments",
                where="prepare.steps and prepare.segments",
                fix="choose steps as a multiple of segments",
            )


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


@dataclass
class _State:
    """Moments of the batched optimiser, [E, n] each."""

    first: Tensor
    second: Tensor
    step: int = 0


def _adam(theta: Tensor, g: Tensor, state: _State, lr: float) -> Tensor:
    state.first = 0.9 * state.first + 0.1 * g
    state.second = 0.999 * state.second + 0.001 * g * g
    m = state.first / (1 - 0.9**state.step)
    v = state.second / (1 - 0.999**state.step)
    return theta - lr * m / (v.sqrt() + 1e-8)


def _sgd(theta: Tensor, g: Tensor, state: _State, lr: float) -> Tensor:
    state.first = 0.9 * state.first + g
    return theta - lr * state.first


OPTIMISERS = {"adam": _adam, "adamw": _adam, "sgd": _sgd}


def head_predictor(space: WeightSpace) -> Predict:
    """Logits of a linear head: (theta [n], features [P, D]) -> [P, way]."""

    def predict(theta: Tensor, features: Tensor) -> Tensor:
        head = space.unflatten(theta)
        return F.linear(features, head["weight"], head["bias"])

    return predict


def module_predictor(module: nn.Module, space: WeightSpace) -> Predict:
    """Logits of any module whose parameters in `space` are replaced by theta [n]."""

    def predict(theta: Tensor, inputs: Tensor) -> Tensor:
        out: Tensor = functional_call(module, space.unflatten(theta), (inputs,))
        return out

    return predict


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
    p = preparation
    labels = labels.expand(len(theta_0), -1) if labels.ndim == 1 else labels

    def loss_of(theta: Tensor, start: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(predict(theta, x), y, label_smoothing=p.label_smoothing)
        pull = 0.0 if p.optimiser == "adamw" else 0.5 * p.weight_decay
        return loss + pull * (theta - start).square().sum()

    gradient = vmap(grad_and_value(loss_of))
    update = OPTIMISERS[p.optimiser]
    theta, kept = theta_0, []
    state = _State(torch.zeros_like(theta), torch.zeros_like(theta))
    every = p.steps // p.segments
    for state.step in range(1, p.steps + 1):
        x, y = _minibatch(inputs, labels, p.batch, rng)
        g, _ = gradient(theta, theta_0, x, y)
        if p.sam_rho > 0:
            climb = p.sam_rho * g / g.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            g, _ = gradient(theta + climb, theta_0, x, y)
        if p.optimiser == "adamw":
            theta = theta - p.lr * p.weight_decay * (theta - theta_0)
        theta = update(theta, g, state, p.lr)
        if state.step % every == 0:
            kept.append(theta)
    path = torch.stack(kept, 1)
    logits = vmap(predict)(theta, inputs)
    loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
    accuracy = (logits.argmax(-1) == labels).float().mean(1)
    return Trajectories(path, loss, accuracy, path.isfinite().all(-1).all(-1) & loss.isfinite())


def _minibatch(
    inputs: Tensor, labels: Tensor, batch: int, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    if batch <= 0 or batch >= inputs.shape[1]:
        return inputs, labels
    pick = torch.rand(labels.shape, generator=rng).argsort(1)[:, :batch]
    rows = torch.arange(len(inputs))[:, None]
    return inputs[rows, pick], labels[rows, pick]
