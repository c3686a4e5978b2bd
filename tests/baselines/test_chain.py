"""Chains of heads: closed-form gradients, and networks whose samples are known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltdi.baselines.chain import (
    HeadDiffusion,
    Plan,
    centred,
    dealt,
    descended,
    row_logits,
    softmax_gradient,
)
from ltdi.baselines.scaling import Scaling
from ltdi.evaluate import negative_log_likelihood

from .conftest import WIDTH, drawn


class Known(HeadDiffusion[None]):
    """Knows the rows that it shall generate; None stands for a network that says nothing."""

    def __init__(self, rows: torch.Tensor | None) -> None:
        super().__init__(Scaling(torch.zeros(WIDTH), 1.0, sphere=False), WIDTH, seed=4)
        self.rows = rows

    def context(self, support):
        return None

    def output(self, x, t, context):
        if self.rows is None:
            return torch.zeros_like(x)
        a = self.alpha_bar(t).to(x)
        eps = (x - a.sqrt() * self.rows) / (1 - a).sqrt()
        return (eps - (1 - a).sqrt() * x) / a.sqrt()

    def raw(self, support, query):
        return row_logits(query, self.generate(support))


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 8), st.integers(0, 99))
def test_the_closed_form_gradient_equals_autograd(way, shot, width, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(3, way, shot, width, generator=rng, dtype=torch.double)
    rows = torch.randn(3, way, width, generator=rng, dtype=torch.double, requires_grad=True)
    (expected,) = torch.autograd.grad(negative_log_likelihood(row_logits(x, rows)).sum(), rows)
    torch.testing.assert_close(softmax_gradient(x, rows), expected)


def test_descent_lowers_the_loss_and_never_moves_the_mean_of_the_rows():
    x = drawn(5, 4, 3, 0, seed=1)[0].support - 5
    start = torch.randn(5, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    end = descended(x, start, 0.05, 20)
    assert (
        negative_log_likelihood(row_logits(x, end)) < negative_log_likelihood(row_logits(x, start))
    ).all()
    torch.testing.assert_close(end.mean(1), start.mean(1), atol=1e-5, rtol=0)
    assert descended(x, start, 0.05, 0) is start


def test_rows_shared_by_all_classes_change_no_prediction():
    x, rows = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4)
    there = row_logits(x, centred(rows)).softmax(-1)
    torch.testing.assert_close(there, row_logits(x, rows).softmax(-1))


@pytest.mark.parametrize("plan", [Plan(1, 0.0, 1), Plan(5, 1.0, 3), Plan(20, 0.3, 2)])
def test_a_network_that_knows_the_rows_generates_them(plan):
    support = drawn(4, 5, 2, 0, seed=3)[0].support
    rows = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(5))
    net = Known(rows)
    net.plan = plan
    torch.testing.assert_close(net.generate(support), rows, atol=2e-3, rtol=1e-3)
    assert float(net.noise_error(rows, None)) < 1e-6


def test_a_network_that_says_nothing_generates_zeros_from_zero_noise():
    support = drawn(4, 5, 2, 0, seed=3)[0].support
    assert not Known(None).generate(support).any()


def test_saying_nothing_is_right_for_rows_that_are_noise_themselves():
    """Then E[eps | x_t] = sqrt(1 - abar) x_t, and what is left of the error is abar."""
    net = Known(None)
    rows = torch.randn(4000, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    left = float(net.schedule.alpha_bar[:-1].mean())
    assert float(net.noise_error(rows, None)) == pytest.approx(left, rel=0.03)


def test_noise_follows_its_class_and_does_not_know_the_batch():
    support = drawn(50, 5, 3, 0, seed=6)[0].support
    noise = dealt(support, 40, 3, seed=0)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(dealt(support[:, order], 40, 3, seed=0), noise[:, :, order])
    assert torch.equal(dealt(support[7:9], 40, 3, seed=0), noise[:, 7:9])
    assert not torch.equal(dealt(support, 40, 3, seed=1), noise)
    own = noise[:, 0].flatten(0, 1)
    assert float(own.mean()) == pytest.approx(0, abs=0.15)
    assert float(own.std()) == pytest.approx(1, abs=0.1)
    assert float(torch.corrcoef(own).fill_diagonal_(0).abs().max()) < 0.6
