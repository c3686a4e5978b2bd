"""Inner optimisation of many tasks at once: weights carry a leading episode axis.

Episodes do not interact, so one gradient of the summed loss is every episode's own gradient.
Fine-tuning, MAML and Reptile all walk with `trajectory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Loss = Callable[[Weights, int], Tensor]
Update = Callable[[Weights, Weights, int], Weights]


def trajectory(
    loss: Loss, start: Weights, update: Update, steps: int, *, differentiable: bool = False
) -> Iterator[Weights]:
    """Walk down the loss and yield the weights after each step.

    Args:
        loss: (weights, step) -> [E] losses.
        start: Weights [E, ...] to begin from.
        update: (weights, gradients, step) -> next weights.
        steps: Number of steps, at least 1.
        differentiable: Keep the graph, so that an outer loss can differentiate through the walk
            (second order).
    """
    weights = start
    for step in range(steps):
        with torch.enable_grad():
            if not differentiable:
                weights = {name: w.detach() for name, w in weights.items()}
            weights = {n: w if w.requires_grad else w.requires_grad_() for n, w in weights.items()}
            total = loss(weights, step).sum()
            found = torch.autograd.grad(total, list(weights.values()), create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            weights = update(weights, dict(zip(weights, found, strict=True)), step)
        yield weights


def adapt(
    loss: Loss, start: Weights, update: Update, steps: int, *, differentiable: bool = False
) -> Weights:
    """The weights at the end of `trajectory`."""
    *_, last = trajectory(loss, start, update, steps, differentiable=differentiable)
    return last


def linear(features: Tensor, head: Weights) -> Tensor:
    """Apply each episode's head: [E, way, N, D] -> logits [E, way, N, classes].

    A head is `weight` [E, classes, D] and `bias` [E, classes].
    """
    logits = features.flatten(1, 2) @ head["weight"].mT + head["bias"][:, None]
    return logits.reshape(*features.shape[:3], -1)


def zero_head(support: Tensor) -> Weights:
    """The start of a head that knows no class: `weight` [E, way, D] and `bias` [E, way] of zeros.

    A meta-learnt row shared by all classes would change nothing. It adds the same number to every
    class's logit, which softmax, and so every gradient, does not see.
    """
    episodes, way, _, width = support.shape
    return {
        "weight": support.new_zeros(episodes, way, width),
        "bias": support.new_zeros(episodes, way),
    }


@dataclass(frozen=True)
class Descent:
    """Plain gradient descent.

    Attributes:
        rates: Name of a weight -> its step size: [steps], or one number for all steps.
    """

    rates: dict[str, float | Tensor]

    def __call__(self, weights: Weights, gradients: Weights, step: int) -> Weights:
        """One step."""
        return {name: w - self._rate(name, step) * gradients[name] for name, w in weights.items()}

    def _rate(self, name: str, step: int) -> float | Tensor:
        rate = self.rates[name]
        return rate[step] if isinstance(rate, Tensor) else rate


@dataclass
class Adam:
    """Adam with decoupled weight decay (Kingma & Ba, 2015; Loshchilov & Hutter, 2019).

    An instance holds the moments of one walk.
    """

    rate: float
    decay: float = 0.0
    _first: Weights = field(default_factory=dict, repr=False)
    _second: Weights = field(default_factory=dict, repr=False)

    def __call__(self, weights: Weights, gradients: Weights, step: int) -> Weights:
        """One step."""
        return {name: self._move(name, w, gradients[name], step) for name, w in weights.items()}

    def _move(self, name: str, weight: Tensor, gradient: Tensor, step: int) -> Tensor:
        b1, b2 = 0.9, 0.999
        first = b1 * self._first.get(name, torch.zeros_like(weight)) + (1 - b1) * gradient
        second = b2 * self._second.get(name, torch.zeros_like(weight)) + (1 - b2) * gradient**2
        self._first[name], self._second[name] = first, second
        size = (second / (1 - b2 ** (step + 1))).sqrt() + 1e-8
        move = first / (1 - b1 ** (step + 1)) / size
        return weight - self.rate * (move + self.decay * weight)
