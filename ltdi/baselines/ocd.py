"""OCD (Lutati & Wolf, 2022, arXiv 2210.00471): learning to overfit by conditional diffusion.

The chain generates the difference between a base model's weights and those overfitted to the task
at hand, from what the base model sees of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.chain import DiffusedMethod, HeadDiffusion, centred, descended, row_logits
from ltdi.baselines.linear_probe import logistic_head
from ltdi.baselines.method import Budget
from ltdi.baselines.outer import Recipe
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.baselines.tuning import Batch, choose, draw, score
from ltdi.denoiser import TokenTransformer
from ltdi.denoiser.condition import Condition, SetEncoder
from ltdi.tasks import FeatureBank
from ltdi.weights import head_space

_STRENGTHS = (1.0, 10.0, 100.0)
_SHARES = (1.0, 0.5, 0.25, 0.0)
_FIT_RATE, _FIT_STEPS = 3.0, 15
_HIDDEN, _SIZE_HIDDEN = 96, 32
_TINY = 1e-6


class SizeNet(nn.Module):
    """The logarithm of the size of a task's difference, from its support."""

    def __init__(self, features: Tensor, start: Tensor) -> None:
        super().__init__()
        self.encoder = _encoder(features, _SIZE_HIDDEN)
        self.write = nn.Linear(_SIZE_HIDDEN, 1)
        nn.init.zeros_(self.write.weight)
        nn.init.constant_(self.write.bias, float(start))

    def forward(self, support: Tensor) -> Tensor:
        """[E] for scaled support [E, way, shot, D]."""
        out: Tensor = self.write(self.encoder(support, _mask(support)).task)
        return out.squeeze(-1)


class Overfitter(HeadDiffusion[Condition]):
    """Diffusion over what overfitting adds to a base head, its size predicted apart.

    The base head is a logistic regression with C = `strength`.
    """

    def __init__(
        self, scaling: Scaling, strength: float, train: FeatureBank, budget: Budget
    ) -> None:
        super().__init__(scaling, train.width + 1, budget.seed)
        self.strength, self.share = strength, 1.0
        self.space = head_space(train.width, budget.way)
        features = scaling(train.features)
        self.encoder = _encoder(features, _HIDDEN)
        self.denoiser = TokenTransformer(
            self.space,
            condition_width=_HIDDEN,
            steps=self.schedule.steps,
            width=_HIDDEN,
            depth=2,
        )
        batch = draw(train, budget, episodes=64, seed=budget.seed)
        self.log_size = SizeNet(features, _rms(self.difference(batch)).log().mean())

    def base(self, support: Tensor) -> Tensor:
        """Rows [E, way, D + 1] of the base head, the bias last."""
        head = logistic_head(self.scaling(support), self.strength, tolerance=1e-3)
        return centred(torch.cat([head["weight"], head["bias"][..., None]], -1))

    def difference(self, batch: Batch) -> Tensor:
        """What descent on all samples of each task adds to the base head of its support."""
        base = self.base(batch.support)
        return descended(self._inputs(self.solved_on(batch)), base, _FIT_RATE, _FIT_STEPS) - base

    def solved_on(self, batch: Batch) -> Tensor:
        """The samples [E, way, N, D] that the whole task consists of."""
        return torch.cat(batch, 2)

    def loss(self, batch: Batch) -> Tensor:
        """Error of the noise, and of the size; no parameter has a part in both."""
        difference = self.difference(batch)
        size = _rms(difference)
        guess: Tensor = self.log_size(self.scaling(batch.support))
        error = self.noise_error(difference / size[:, None, None], self.context(batch.support))
        return error + (guess - size.log()).square().mean()

    def context(self, support: Tensor) -> Condition:
        """The embedded support."""
        scaled = self.scaling(support)
        embedded: Condition = self.encoder(scaled, _mask(scaled))
        return embedded

    def output(self, x: Tensor, t: Tensor, context: Condition) -> Tensor:
        """See `HeadDiffusion.output`."""
        space = self.space.with_way(x.shape[1])
        out: Tensor = self.denoiser(x.flatten(1), t, context, space)
        return out.view_as(x)

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way] of the base head and the share of the difference."""
        size = self.share * self.log_size(self.scaling(support)).exp()[:, None, None]
        rows = self.base(support) + size * self.generate(support)
        return row_logits(self._inputs(query), rows)

    def _inputs(self, samples: Tensor) -> Tensor:
        """Scaled features with a one for the bias."""
        return F.pad(self.scaling(samples), (0, 1), value=1.0)


class Ocd(DiffusedMethod[Overfitter]):
    """A base head moved by a generated difference, averaged over samples."""

    name = "ocd"
    note = (
        "noise prediction of the difference between a logistic-regression head of the support and "
        "its overfit to the whole task; conditioned on the support in place of one input, its "
        "activation and output; a transformer in place of the U-Net; the share of the difference "
        "that is added, steps and temperature are chosen on validation"
    )
    recipes: ClassVar[tuple[Recipe, ...]] = (Recipe(rate=1e-3, batch=16),)

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], Overfitter]]:
        """All scalings, with base heads of several strengths."""
        pairs = itertools.product(scalings(train.features), _STRENGTHS)
        return [partial(Overfitter, *pair, train, budget) for pair in pairs]

    @torch.no_grad()
    def refine(self, net: Overfitter, episodes: Batch) -> None:
        """Choose steps and temperature, then the share of the difference."""
        super().refine(net, episodes)
        scores = {}
        for net.share in _SHARES:
            scores[net.share] = score(net.raw(*episodes))
        net.share = choose(scores, scores.__getitem__)


def _encoder(features: Tensor, width: int) -> SetEncoder:
    encoder = SetEncoder(features.shape[-1], width)
    encoder.standardise(features)
    return encoder


def _mask(support: Tensor) -> Tensor:
    return torch.ones_like(support[..., 0])


def _rms(rows: Tensor) -> Tensor:
    """[E] root mean square of rows [E, way, R], of which none may be zero."""
    return rows.square().mean((1, 2)).sqrt().clamp(min=_TINY)
