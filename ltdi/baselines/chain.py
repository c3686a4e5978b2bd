"""Heads out of a denoising chain: what the peers that diffuse weights share.

A head is a set of rows, one for each class; a bias is the row's product with a constant feature.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ltdi.baselines.outer import EpisodeNet, TrainedMethod
from ltdi.baselines.scaling import Scaling
from ltdi.baselines.tuning import Batch, choose, score
from ltdi.diffusion import draw, make_schedule, sample

_CHAIN = 20
_STEPS = (1, 2, 5, 10)
_TEMPERATURES = (0.0, 0.3, 1.0)
_SAMPLES = 4
Context = TypeVar("Context")


@dataclass(frozen=True)
class Plan:
    """How heads are sampled.

    Attributes:
        steps: Denoising steps, of T = 20.
        temperature: Scale of the Gaussian noise that the chain starts from.
        samples: Heads that are drawn and averaged.
    """

    steps: int = 5
    temperature: float = 0.0
    samples: int = 1


def row_logits(features: Tensor, rows: Tensor) -> Tensor:
    """Logits [E, way, N, classes] of features [E, way, N, R] under rows [E, classes, R]."""
    logits: Tensor = (features.flatten(1, 2) @ rows.mT).unflatten(1, features.shape[1:3])
    return logits


def softmax_gradient(features: Tensor, rows: Tensor) -> Tensor:
    """Gradient [E, way, R] of the mean cross entropy of a linear softmax head, in closed form.

    Args:
        features: [E, way, N, R]; a sample's label is its index on the way axis.
        rows: [E, way, R].
    """
    own = torch.eye(rows.shape[1]).to(rows)[:, None]
    wrong = row_logits(features, rows).softmax(-1) - own
    samples = wrong.shape[1] * wrong.shape[2]
    gradient: Tensor = wrong.flatten(1, 2).mT @ features.flatten(1, 2) / samples
    return gradient


def descended(features: Tensor, rows: Tensor, rate: float, steps: int) -> Tensor:
    """Rows [E, way, R] after gradient descent on features [E, way, N, R]."""
    for _ in range(steps):
        rows = rows - rate * softmax_gradient(features, rows)
    return rows


def centred(rows: Tensor) -> Tensor:
    """Rows [E, way, R] without their mean over classes, which softmax does not see."""
    return rows - rows.mean(1, keepdim=True)


class HeadDiffusion(EpisodeNet, Generic[Context]):
    """Diffusion over the rows of heads.

    The network's output F is read as noise by eps = sqrt(1 - abar) x_t + sqrt(abar) F. The first
    part is the expected noise where nothing is known of a row but its unit variance (Karras et
    al., 2022, 2206.00364, table 1), so no capacity is spent on copying x_t, and F = 0 at
    temperature 0 generates zeros.

    Args:
        width: R, numbers in a row.
    """

    def __init__(self, scaling: Scaling, width: int, seed: int) -> None:
        super().__init__()
        self.scaling, self.width, self.seed = scaling, width, seed
        self.schedule, self.plan = make_schedule("cosine", _CHAIN), Plan()
        self.rng = torch.Generator().manual_seed(seed)

    @abstractmethod
    def context(self, support: Tensor) -> Context:
        """What the network is told about tasks with support [E, way, shot, D]."""

    @abstractmethod
    def output(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """F [E, way, R] for noised rows x [E, way, R] at steps t [E]."""

    def noise(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """The predicted eps [E, way, R]."""
        a = self.alpha_bar(t).to(x)
        return (1 - a).sqrt() * x + a.sqrt() * self.output(x, t, context)

    def noise_error(self, rows: Tensor, context: Context) -> Tensor:
        """Mean squared error of eps (the vanilla objective) for clean rows of unit variance."""
        path = rows.flatten(1)[:, None]
        noised = draw("vanilla", path, self.schedule, prediction="eps", rng=self.rng)
        guess = self.noise(noised.x_t.view_as(rows), noised.t, context)
        return noised.residual(guess.flatten(1)).square().mean()

    def generate(self, support: Tensor) -> Tensor:
        """Rows [E, way, R], the mean of `plan.samples` heads."""
        context, plan = self.context(support), self.plan
        starts = plan.temperature * dealt(support, self.width, plan.samples, self.seed)
        return torch.stack([self._chain(start, context) for start in starts]).mean(0)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """abar_t [E, 1, 1] of steps t [E]."""
        return self.schedule.alpha_bar[t][:, None, None]

    def _chain(self, start: Tensor, context: Context) -> Tensor:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.noise(x.view_as(start), t, context).flatten(1)

        end = sample(denoise, start.flatten(1), self.schedule, steps=self.plan.steps)
        return end.view_as(start)


Diffusion = TypeVar("Diffusion", bound=HeadDiffusion[Any])


class DiffusedMethod(TrainedMethod[Diffusion]):
    """A trained chain, whose steps and temperature are chosen after training."""

    @torch.no_grad()
    def refine(self, net: Diffusion, episodes: Batch) -> None:
        """Choose steps and temperature; samples are averaged where they differ."""
        plans = [
            Plan(steps, temperature, _SAMPLES if temperature else 1)
            for steps, temperature in itertools.product(_STEPS, _TEMPERATURES)
        ]
        net.plan = choose(plans, lambda plan: _score(net, plan, episodes))


def dealt(support: Tensor, width: int, samples: int, seed: int) -> Tensor:
    """Standard normal rows [samples, E, way, width], dealt to classes in an order of their own.

    The order is read from the features, so relabelling the classes permutes the noise with them,
    and a task has the same noise in any batch.
    """
    rng = torch.Generator().manual_seed(seed)
    key = torch.randn(support.shape[-1], generator=rng).to(support)
    rows = torch.randn(samples, support.shape[1], width, generator=rng).to(support)
    rank = (support.mean(2) @ key).argsort(1).argsort(1)
    return rows[:, rank]


def _score(net: HeadDiffusion[Any], plan: Plan, episodes: Batch) -> float:
    net.plan = plan
    return score(net.raw(*episodes))
