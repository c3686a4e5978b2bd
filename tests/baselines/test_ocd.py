"""OCD: a base head, and what overfitting adds to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ltdi.baselines import Batch, Ocd
from ltdi.baselines.inner import linear
from ltdi.baselines.linear_probe import logistic_head
from ltdi.baselines.ocd import Overfitter
from ltdi.baselines.outer import Recipe, meta_train
from ltdi.baselines.tuning import draw
from ltdi.evaluate import negative_log_likelihood


@pytest.fixture
def net(banks, budget) -> Overfitter:
    return next(iter(Ocd().candidates(banks[0], budget)))


def base_logits(net: Overfitter, batch: Batch) -> torch.Tensor:
    head = logistic_head(net.scaling(batch.support), net.strength)
    return linear(net.scaling(batch.query), head)


@torch.no_grad()
def test_without_a_difference_it_is_its_base(net, fresh):
    expected = base_logits(net, fresh).softmax(-1)
    # Untrained, the chain from zero noise generates zeros.
    torch.testing.assert_close(net.raw(*fresh).softmax(-1), expected, atol=2e-3, rtol=0)
    net.generate = lambda support: torch.randn(*support.shape[:2], net.width)
    moved = net.raw(*fresh).softmax(-1)
    assert not torch.allclose(moved, expected, atol=0.01)
    net.share = 0.0
    torch.testing.assert_close(net.raw(*fresh).softmax(-1), expected, atol=2e-3, rtol=0)


class Says(nn.Module):
    """Gives one answer to everything."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, support: torch.Tensor) -> torch.Tensor:
        return self.answer


@torch.no_grad()
def test_the_true_difference_overfits_the_task(net, banks, budget):
    batch = draw(banks[1], budget, episodes=30, seed=8)
    difference = net.difference(batch)
    size = difference.square().mean((1, 2)).sqrt()
    net.generate = lambda support: difference / size[:, None, None]
    net.log_size = Says(size.log())
    overfit, base = (
        negative_log_likelihood(logits) for logits in (net.raw(*batch), base_logits(net, batch))
    )
    assert (overfit < base).float().mean() > 0.95


def test_the_size_of_the_difference_is_learnt(net, banks, budget):
    # A start that is wrong by a factor of e^2.
    with torch.no_grad():
        net.log_size.write.bias.add_(2.0)
    batch = draw(banks[1], budget, episodes=100, seed=8)
    true = net.difference(batch).square().mean((1, 2)).sqrt().log()

    @torch.no_grad()
    def error() -> float:
        return float((net.log_size(net.scaling(batch.support)) - true).abs().mean())

    before = error()
    short = replace(budget, iterations=60)
    meta_train(net, net.loss, lambda: -error(), banks[0], short, Recipe(0.03, batch=8))
    assert error() < 0.2 * before
