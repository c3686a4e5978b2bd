"""MAML as published (Finn, Abbeel & Levine, 2017, arXiv 1703.03400): all weights are adapted.

A gradient of a linear map lies in the span of the samples it was taken on: d loss / d body = X'G
with inputs X [N, D] and G = d loss / d (X body). One step therefore moves the embedding of any
input x by -rate (x X') G, and the walk needs the Gram matrix of the samples instead of a map
[D, D] for every task. Nothing is approximated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltdi.baselines.anil import STEPS, Learner
from ltdi.baselines.inner import Descent, Weights, adapt, linear, zero_head
from ltdi.baselines.method import Budget
from ltdi.baselines.outer import Recipe, TrainedMethod
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.evaluate import negative_log_likelihood
from ltdi.tasks import FeatureBank

_FIRST_RATES = (3.0, 10.0, 30.0)
_FIRST_BODY_RATES = (0.003, 0.03)


@dataclass(frozen=True, eq=False)
class MapDescent:
    """Gradient descent on a head and on the linear map below it.

    Attributes:
        gram: [E, N, S] inner products, before the map, of all N samples with the support's S.
        rates: Step sizes [steps] of `body`, `offset`, `weight` and `bias`.
        shot: Samples of a class that are support; they come first.
    """

    gram: Tensor
    rates: dict[str, Tensor]
    shot: int

    def __call__(self, weights: Weights, gradients: Weights, step: int) -> Weights:
        """One step; `embedded` [E, way, n, D] are the N = way * n samples after the map."""
        pull = gradients["embedded"][:, :, : self.shot].flatten(1, 2)
        moved = self.rates["body"][step] * (self.gram @ pull)
        moved = moved + self.rates["offset"][step] * pull.sum(1, keepdim=True)
        along = {**gradients, "embedded": moved.view_as(gradients["embedded"])}
        return Descent({**self.rates, "embedded": 1.0})(weights, along, step)


class FullLearner(Learner):
    """What MAML meta-learns: start and step sizes of a linear feature adapter, and of the head.

    The adapter starts as the identity. The head starts at zero (see `zero_head`), so the adapter
    moves from the second step on.
    """

    def __init__(self, scaling: Scaling, width: int, rate: float, body_rate: float) -> None:
        super().__init__(scaling, width, rate)
        self.offset = nn.Parameter(torch.zeros_like(scaling.mean))
        rates = torch.full((STEPS,), body_rate, device=scaling.mean.device).log()
        self.log_rates.update({"body": rates.clone(), "offset": rates.clone()})

    def embed(self, features: Tensor) -> Tensor:
        """Adapter's features [..., D] before any adaptation."""
        return super().embed(features) + self.offset

    def adapted(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Weights]:
        """Embedded support and query, and the head, after the inner steps on the support.

        The walk carries the queries along; they have no part in its loss.
        """
        shot, samples = support.shape[2], torch.cat([support, query], 2)
        scaled = self.scaling(samples)
        gram = scaled.flatten(1, 2) @ scaled[:, :, :shot].flatten(1, 2).mT
        update = MapDescent(gram, {n: r.exp() for n, r in self.log_rates.items()}, shot)
        end = adapt(
            lambda w, _: negative_log_likelihood(linear(w["embedded"][:, :, :shot], w)),
            {"embedded": self.embed(samples), **zero_head(support)},
            update,
            STEPS,
            differentiable=torch.is_grad_enabled(),
        )
        return end["embedded"][:, :, :shot], end["embedded"][:, :, shot:], end

    def head(self, support: Tensor) -> Weights:
        """The adapted head; it belongs on adapted features."""
        return self.adapted(support, support[:, :, :0])[2]

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way] of the adapted head on the adapted features."""
        _, embedded, head = self.adapted(support, query)
        return linear(embedded, head)


class MamlFull(TrainedMethod[FullLearner]):
    """Inner gradient steps on adapter and head, differentiated through (second order)."""

    name = "maml-full"
    note = (
        "second-order MAML with learnt step sizes in which a linear feature adapter and the head "
        "are adapted; the convolutions below it stay frozen"
    )
    recipes: ClassVar[tuple[Recipe, ...]] = (Recipe(1e-3, batch=16), Recipe(3e-4, batch=16))

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], FullLearner]]:
        """All scalings, with several first step sizes of head and adapter."""
        grid = itertools.product(scalings(train.features), _FIRST_RATES, _FIRST_BODY_RATES)
        return [partial(FullLearner, scaling, train.width, *rates) for scaling, *rates in grid]
