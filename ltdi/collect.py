"""Weight preparation: optimise hundreds of tasks at once and keep their trajectories.

All tasks of a batch take their steps together: the loss of one task is differentiated with
`torch.func.grad` and vectorised with `torch.func.vmap`, whatever the kind of weights. Functional
components live here, not in meta-training (paper, section 4.2): sharpness-aware minimisation
(SAM, Foret et al., 2021) and augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

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


# Torch's own, each over the weights of all tasks as one tensor.
OPTIMISERS: dict[str, Callable[[Tensor, float], torch.optim.Optimizer]] = {
    "adam": lambda theta, lr: torch.optim.Adam([theta], lr, fused=True),
    # Its decay is towards theta_0, not towards zero, and not the optimiser's.
    "adamw": lambda theta, lr: torch.optim.Adam([theta], lr, fused=True),
    "sgd": lambda theta, lr: torch.optim.SGD([theta], lr, momentum=0.9),
}
# Bytes of samples that stay in a core's cache while their tasks are solved.
CACHE = 1 << 22


class HeadPredictor:
    """Logits of a linear head, and the gradient of its loss in closed form.

    Args:
        space: Weight space of the head.
    """

    def __init__(self, space: WeightSpace) -> None:
        self.space = space

    def __call__(self, theta: Tensor, features: Tensor) -> Tensor:
        """(theta [n], features [P, D]) -> [P, way]."""
        head = self.space.unflatten(theta)
        return F.linear(features, head["weight"], head["bias"])

    def gradient(self, theta: Tensor, features: Tensor, target: Tensor) -> Tensor:
        """Gradients [E, n] of the mean cross entropy of E tasks.

        Args:
            theta: [E, n]; a row of it is a class's weights and bias.
            features: [E, P, D + 1], the last one is 1.
            target: [E, way, P] probabilities.
        """
        rows = theta.view(len(theta), -1, features.shape[-1])
        # Classes first: the long side of the product is what the processor works along.
        wrong = (rows @ features.mT).softmax(1).sub_(target).div_(features.shape[1])
        return (wrong @ features).flatten(1)


def head_predictor(space: WeightSpace) -> HeadPredictor:
    """Logits of a linear head: (theta [n], features [P, D]) -> [P, way]."""
    return HeadPredictor(space)


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
    if isinstance(predict, HeadPredictor) and not 0 < p.batch < inputs.shape[1]:
        each = max(1, CACHE // max(1, inputs[0].nbytes))
        if len(theta_0) > each:
            chunks = zip(theta_0.split(each), inputs.split(each), labels.split(each), strict=True)
            return _joined([optimise(predict, *chunk, p) for chunk in chunks])
    gradient = _gradient(predict, p, inputs, labels)
    theta, kept = theta_0.detach().clone(memory_format=torch.contiguous_format), []
    optimiser = OPTIMISERS[p.optimiser](theta, p.lr)
    every = p.steps // p.segments
    for step in range(1, p.steps + 1):
        pick = _minibatch(labels, p.batch, rng)
        g = gradient(theta, theta_0, pick)
        if p.sam_rho > 0:
            climb = p.sam_rho * g / g.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            g = gradient(theta + climb, theta_0, pick)
        if p.optimiser == "adamw":
            theta.sub_(theta - theta_0, alpha=p.lr * p.weight_decay)
        theta.grad = g.contiguous()  # the fused optimisers read memory in order
        optimiser.step()
        if step % every == 0:
            kept.append(theta.clone())
    path = torch.stack(kept, 1)
    logits = vmap(predict)(theta, inputs)
    loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
    accuracy = (logits.argmax(-1) == labels).float().mean(1)
    return Trajectories(path, loss, accuracy, path.isfinite().all(-1).all(-1) & loss.isfinite())


Gradient = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _gradient(predict: Predict, p: Preparation, inputs: Tensor, labels: Tensor) -> Gradient:
    """Gradients `(theta [E, n], theta_0, picked samples [E, batch] or None) -> [E, n]`."""
    pull = 0.0 if p.optimiser == "adamw" else p.weight_decay
    rows = torch.arange(len(inputs))[:, None]
    if isinstance(predict, HeadPredictor):
        way = int(predict.space.params[0].units)
        ones = inputs.new_ones(*inputs.shape[:-1], 1)
        samples = torch.cat([inputs, ones], -1)
        hot = F.one_hot(labels, way).to(inputs.dtype)
        target = hot * (1 - p.label_smoothing) + p.label_smoothing / way

        def closed(theta: Tensor, start: Tensor, pick: Tensor | None) -> Tensor:
            x, y = (samples, target) if pick is None else (samples[rows, pick], target[rows, pick])
            g = predict.gradient(theta, x, y.mT)
            return g.add_(theta - start, alpha=pull) if pull else g

        return closed

    def loss_of(theta: Tensor, start: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(predict(theta, x), y, label_smoothing=p.label_smoothing)
        return loss + 0.5 * pull * (theta - start).square().sum() if pull else loss

    each = vmap(grad(loss_of))

    def general(theta: Tensor, start: Tensor, pick: Tensor | None) -> Tensor:
        x, y = (inputs, labels) if pick is None else (inputs[rows, pick], labels[rows, pick])
        out: Tensor = each(theta, start, x, y)
        return out

    return general


def _joined(parts: list[Trajectories]) -> Trajectories:
    names = [f.name for f in fields(Trajectories)]
    return Trajectories(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def _minibatch(labels: Tensor, batch: int, rng: torch.Generator | None) -> Tensor | None:
    """Samples [E, batch] of every task, or None for all of them."""
    if batch <= 0 or batch >= labels.shape[1]:
        return None
    return torch.rand(labels.shape, generator=rng).argsort(1)[:, :batch]
