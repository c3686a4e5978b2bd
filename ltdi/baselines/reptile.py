"""Reptile (Nichol, Achiam & Schulman, 2018, arXiv 1803.02999) on a small network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltdi.baselines.inner import Descent, Weights, adapt, linear, trajectory, zero_head
from ltdi.baselines.method import Budget
from ltdi.baselines.outer import EpisodeNet, Recipe, TrainedMethod
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.baselines.tuning import Batch, choose, score
from ltdi.evaluate import negative_log_likelihood
from ltdi.tasks import FeatureBank

_TRAIN_STEPS = 10
# A fast head and a slow body: while the head is still unsure, the body's gradient mostly asks for
# larger logits, and a fast body follows it away from what serves new classes.
_HEAD_RATE, _BODY_RATE = 10.0, 0.03
_STEPS = (5, 10, 20, 50)
_STRETCH = (0.3, 1.0, 3.0)
_MOST_HIDDEN = 64


@dataclass(frozen=True)
class Plan:
    """Fine-tuning: the number of steps, and a factor on the step sizes."""

    steps: int
    stretch: float = 1.0

    def update(self) -> Descent:
        """The descent rule."""
        body = self.stretch * _BODY_RATE
        head = self.stretch * _HEAD_RATE
        return Descent({"down": body, "up": body, "weight": head, "bias": head})


_TRAINING = Plan(_TRAIN_STEPS)


class Initialisation(EpisodeNet):
    """The weights Reptile learns: a residual linear layer x + up(down(x)), the identity at first.

    The head above it is reset for every task to zero, the gauge of one row shared by all classes
    (see `zero_head`).
    """

    def __init__(self, scaling: Scaling, width: int) -> None:
        super().__init__()
        hidden, device = min(width, _MOST_HIDDEN), scaling.mean.device
        self.scaling, self.plan = scaling, _TRAINING
        self.down = nn.Parameter((torch.randn(width, hidden) / width**0.5).to(device))
        self.up = nn.Parameter(torch.zeros(hidden, width, device=device))

    def apply_to(self, features: Tensor, weights: Weights) -> Tensor:
        """Logits of scaled features [E, way, N, D] under each task's weights."""
        moved = features.flatten(1, 2) @ weights["down"] @ weights["up"]
        return linear(features + moved.view_as(features), weights)

    def walk(self, support: Tensor, plan: Plan) -> Iterator[Weights]:
        """All weights of the network after each step on scaled support [E, way, shot, D]."""
        return trajectory(
            lambda w, _: negative_log_likelihood(self.apply_to(support, w)),
            self._start(support),
            plan.update(),
            plan.steps,
        )

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Fine-tune on the support, then logits [E, way, Q, way]."""
        *_, weights = self.walk(self.scaling(support), self.plan)
        return self.apply_to(self.scaling(query), weights)

    def loss(self, batch: Batch) -> Tensor:
        """A number whose gradient is phi minus the mean of the tasks' adapted weights.

        As Reptile does, the inner steps see all samples of the task, a different part each.
        """
        data = self.scaling(torch.cat(batch, 2))
        parts = torch.chunk(data, _TRAINING.steps, 2)

        def inner(weights: Weights, step: int) -> Tensor:
            return negative_log_likelihood(self.apply_to(parts[step % len(parts)], weights))

        adapted = adapt(inner, self._start(data), _TRAINING.update(), _TRAINING.steps)
        body = {"down": self.down, "up": self.up}
        pulls = [(p * (p - adapted[n].mean(0)).detach()).sum() for n, p in body.items()]
        return torch.stack(pulls).sum()

    def _start(self, support: Tensor) -> Weights:
        body = {"down": self.down.detach(), "up": self.up.detach()}
        shared = {n: w.expand(len(support), *w.shape) for n, w in body.items()}
        return {**shared, **zero_head(support)}


class Reptile(TrainedMethod[Initialisation]):
    """First-order meta-learning of an initialisation; all of it is fine-tuned at test time."""

    name = "reptile"
    note = (
        "Reptile with gradient descent inside, on a residual linear layer and a head over the "
        "frozen backbone; meta-training of the convolutions is left out"
    )
    # Outer step 1: phi moves onto the mean of the adapted weights, less as the rate decays. The
    # paper also takes that move for a gradient of Adam's (section 2).
    recipes: ClassVar[tuple[Recipe, ...]] = (
        Recipe(rate=1.0, batch=8, optimiser=torch.optim.SGD),
        Recipe(rate=3e-4, batch=8),
    )

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], Initialisation]]:
        """All scalings."""
        return [partial(Initialisation, s, train.width) for s in scalings(train.features)]

    @torch.no_grad()
    def refine(self, net: Initialisation, episodes: Batch) -> None:
        """Choose steps and step sizes of the fine-tuning; one walk serves all numbers of steps."""
        support, query = map(net.scaling, episodes)
        scores = {}
        for stretch in _STRETCH:
            walk = net.walk(support, Plan(max(_STEPS), stretch))
            for step, weights in enumerate(walk, 1):
                if step in _STEPS:
                    scores[Plan(step, stretch)] = score(net.apply_to(query, weights))
        net.plan = choose(scores, scores.__getitem__)
