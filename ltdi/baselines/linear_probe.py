"""Regularised logistic regression on the support (as in Tian et al., 2020, arXiv 2003.11539)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from ltdi.baselines.inner import Weights, linear
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.baselines.tuning import Chosen
from ltdi.tasks import FeatureBank

_MOST = 2000
_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


class LinearProbe(Chosen[tuple[Scaling, float]]):
    """Multinomial logistic regression to convergence; C and the scaling chosen on validation."""

    name = "linear-probe"
    note = (
        "L2-regularised multinomial logistic regression, C and feature scaling chosen on "
        "validation; no distillation of the backbone"
    )

    def candidates(self, train: FeatureBank) -> Iterable[tuple[Scaling, float]]:
        """All scalings, with several values of C."""
        return itertools.product(scalings(train.features), _STRENGTHS)

    def logits(self, choice: tuple[Scaling, float], support: Tensor, query: Tensor) -> Tensor:
        """See `Chosen.logits`."""
        scaling, strength = choice
        return linear(scaling(query), logistic_head(scaling(support), strength))


def logistic_head(support: Tensor, strength: float, *, tolerance: float = 1e-6) -> Weights:
    """Solve a batch of multinomial logistic regressions.

    Minimises sum of cross entropies + |weight|^2 / (2 C), the bias unpenalised, as scikit-learn
    does. The solution lies in the span of the support, so it is found in at most way * shot
    coordinates. Steps use the fixed bound on the Hessian, X'X / 2 (Boehning, 1992), with
    Nesterov's momentum restarted per episode (O'Donoghue & Candes, 2015).

    Args:
        support: [E, way, shot, D].
        strength: C, inverse strength of the penalty.
        tolerance: Largest entry of the gradient at which to stop. A weak penalty (C well above 100
            on features of unit length) may stop after 2,000 steps, short of it.

    Returns:
        `weight` [E, way, D] and `bias` [E, way].
    """
    _, way, shot, _ = support.shape
    basis, coordinates = torch.linalg.qr(support.flatten(1, 2).double().mT)
    design = torch.cat([coordinates.mT, torch.ones_like(coordinates[:, :1].mT)], -1)
    target = torch.eye(way, dtype=design.dtype, device=design.device).repeat_interleave(shot, 0)
    penalty = torch.full_like(design[0, 0], 1 / strength)
    penalty[-1] = 0.0
    factor = torch.linalg.cholesky(design.mT @ design / 2 + penalty.diag())
    solution = torch.zeros(*design.mT.shape[:2], way, dtype=design.dtype, device=design.device)
    ahead, age = solution, design.new_zeros(len(design), 1, 1)
    for _ in range(_MOST):
        wrong = (design @ ahead).softmax(-1) - target
        gradient = design.mT @ wrong + penalty[:, None] * ahead
        if float(gradient.abs().max()) < tolerance:
            break
        moved = ahead - torch.cholesky_solve(gradient, factor)
        uphill = (gradient * (moved - solution)).sum((1, 2), keepdim=True) > 0
        age = torch.where(uphill, 0.0, age + 1)
        solution, ahead = moved, moved + age / (age + 3) * (moved - solution)
    weight = (basis @ ahead[:, :-1]).mT
    return {"weight": weight.to(support.dtype), "bias": ahead[:, -1].to(support.dtype)}
