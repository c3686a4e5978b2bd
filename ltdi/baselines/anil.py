"""MAML (Finn et al., 2017, 1703.03400) in its ANIL form (Raghu et al., 2020, 1909.09157)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from ltdi.baselines.inner import Descent, Weights, adapt, linear, zero_head
from ltdi.baselines.method import Budget
from ltdi.baselines.outer import EpisodeNet, TrainedMethod
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.evaluate import negative_log_likelihood
from ltdi.tasks import FeatureBank

STEPS = 5
_FIRST_RATES = (1.0, 3.0, 10.0, 30.0)


class Learner(EpisodeNet):
    """What MAML meta-learns: the body, and the step sizes with which the head is adapted.

    The body is a linear map that starts as the identity. A step size per layer part (weight,
    bias) and step is learnt as its logarithm (Meta-SGD, Li et al., 2017, by layer as in Antoniou
    et al., 2019). The head starts at zero: in any way of task its start is one row shared by all
    classes, which softmax cannot see (see `zero_head`; Kao et al., 2022, zero it too).
    """

    def __init__(self, scaling: Scaling, width: int, rate: float) -> None:
        super().__init__()
        self.scaling = scaling
        self.body = nn.Parameter(torch.eye(width, device=scaling.mean.device))
        rates = torch.full((STEPS,), rate, device=scaling.mean.device).log()
        self.log_rates = nn.ParameterDict({"weight": rates.clone(), "bias": rates.clone()})

    def embed(self, features: Tensor) -> Tensor:
        """Body features [..., D]."""
        return self.scaling(features) @ self.body

    def head(self, support: Tensor) -> Weights:
        """The adapted head for support [E, way, shot, D].

        Where gradients are enabled, they reach the body and the rates through every step.
        """
        embedded = self.embed(support)
        rates: dict[str, float | Tensor] = {n: r.exp() for n, r in self.log_rates.items()}
        return adapt(
            lambda head, _: negative_log_likelihood(linear(embedded, head)),
            zero_head(embedded),
            Descent(rates),
            STEPS,
            differentiable=torch.is_grad_enabled(),
        )

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way] of the adapted head."""
        return linear(self.embed(query), self.head(support))


class Maml(TrainedMethod[Learner]):
    """Inner gradient steps on the head, differentiated through (second order)."""

    name = "maml"
    note = (
        "second-order ANIL with learnt step sizes on a linear body over the frozen backbone; "
        "adaptation and training of the convolutions are left out"
    )

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], Learner]]:
        """All scalings, with several first step sizes."""
        pairs = itertools.product(scalings(train.features), _FIRST_RATES)
        return [partial(Learner, scaling, train.width, rate) for scaling, rate in pairs]
