"""MetaDiff (Zhang et al., AAAI 2024, arXiv 2307.16424): gradient descent as denoising.

The weights of a classifier are denoised from Gaussian noise, and the denoiser is told the gradient
of the support loss at its current estimate, where MAML would follow that gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.chain import (
    DiffusedMethod,
    HeadDiffusion,
    centred,
    descended,
    row_logits,
    softmax_gradient,
)
from ltdi.baselines.method import Budget
from ltdi.baselines.outer import Recipe
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.baselines.tuning import Batch, draw
from ltdi.denoiser.transformer import time_features
from ltdi.tasks import FeatureBank

# Length of the prototypes that a target head is fitted from: the sharpness of its softmax.
_SHARPNESS = 5.0
_FIT_RATE, _FIT_STEPS = 7.5, 20
_HIDDEN, _TIME = 128, 32


class RowNet(nn.Module):
    """A bottleneck over one row and its gradient, modulated by time; it starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(_TIME, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, 3 * _HIDDEN)
        )
        self.read = nn.Linear(2 * width, _HIDDEN)
        self.inner = nn.ModuleList(nn.Linear(_HIDDEN, _HIDDEN) for _ in range(2))
        self.write = nn.Linear(_HIDDEN, width)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Tensor, gradient: Tensor, time: Tensor) -> Tensor:
        """[E, way, D] from rows and gradients [E, way, D] and time features [E, .]."""
        scale, shift, gate = self.time(time)[:, None].chunk(3, -1)
        h = F.silu(self.read(torch.cat([x, gradient], -1)) * (1 + scale) + shift)
        h = h + F.silu(self.inner[0](h) * (1 + gate))
        out: Tensor = self.write(h + F.silu(self.inner[1](h)))
        return out


class GradientDenoiser(HeadDiffusion[Tensor]):
    """Denoises each class's row from the row, its gradient and the time.

    Where the row network is still zero, F is a multiple of the gradient, and a chain is a gradient
    descent from the noise.
    """

    def __init__(self, scaling: Scaling, train: FeatureBank, budget: Budget) -> None:
        super().__init__(scaling, train.width, budget.seed)
        batch = draw(train, budget, episodes=64, seed=budget.seed)
        rows = self.fit(batch)
        first = softmax_gradient(self.context(batch.support), torch.zeros_like(rows))
        # Normalised by one number each: coordinates keep their relative size.
        self.size, self.reach = _rms(rows), _rms(first)
        # F is -x_0 at the noisy end: start from the multiple of the gradient nearest to that.
        slope = -(rows * first).mean() / (self.size * self.reach)
        self.gain = nn.Parameter(slope.expand(self.schedule.steps).clone())
        self.net = RowNet(train.width)

    def fit(self, batch: Batch) -> Tensor:
        """Target heads [E, way, D]: from prototypes on, fitted to all samples of each task."""
        samples = self.scaling(torch.cat(batch, 2))
        start = _SHARPNESS * F.normalize(centred(samples.mean(2)), dim=-1)
        return centred(descended(samples, start, _FIT_RATE, _FIT_STEPS))

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise."""
        return self.noise_error(self.fit(batch) / self.size, self.context(batch.support))

    def context(self, support: Tensor) -> Tensor:
        """The scaled support itself, from which gradients are taken."""
        return self.scaling(support)

    def output(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """See `HeadDiffusion.output`; the estimate is E[x_0 | x_t] for rows of unit variance."""
        estimate = self.alpha_bar(t).sqrt().to(x) * x * self.size
        gradient = softmax_gradient(context, estimate) / self.reach
        time = time_features(t, self.schedule.steps, _TIME).to(x)
        out: Tensor = self.gain[t][:, None, None] * gradient + self.net(x, gradient, time)
        return out

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Cosines [E, way, Q, way] of queries with the generated rows."""
        rows = F.normalize(self.generate(support), dim=-1)
        return row_logits(F.normalize(self.scaling(query), dim=-1), rows)


class MetaDiff(DiffusedMethod[GradientDenoiser]):
    """Conditional diffusion of classifier weights, guided by the support's gradient."""

    name = "metadiff"
    note = (
        "noise prediction for cosine heads from the support loss's closed-form gradient, with a "
        "bottleneck network for each row; T = 20, steps and temperature of the start chosen on "
        "validation; the paper's convolutional U-Net and its training of the backbone are left out"
    )
    recipes: ClassVar[tuple[Recipe, ...]] = (Recipe(rate=1e-3),)

    def starts(
        self, train: FeatureBank, budget: Budget
    ) -> Iterable[Callable[[], GradientDenoiser]]:
        """All scalings."""
        return [partial(GradientDenoiser, s, train, budget) for s in scalings(train.features)]


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean().sqrt()
