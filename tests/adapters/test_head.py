from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltdi.adapters.head import fit_heads, head_losses, held_out_losses
from ltdi.errors import InputError


def problem(rows: int = 60, width: int = 5, way: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(way, width, generator=rng)
    x = torch.randn(rows, width, generator=rng)
    labels = (x @ w.T + torch.randn(rows, way, generator=rng)).argmax(1)
    return x, labels, torch.sigmoid(x @ w[0])


@pytest.mark.parametrize("regression", [False, True])
def test_no_head_has_a_higher_posterior(regression: bool) -> None:
    """The gradient of the posterior vanishes, and at no other number of rows or precision."""
    x, labels, values = problem()
    y = values if regression else labels
    prior = 0.3 * torch.randn(1 if regression else 3, 6, generator=torch.Generator().manual_seed(1))
    used = torch.ones(2, 60)
    used[1, 40:] = 0
    precision = torch.tensor([0.5, 3.0])
    heads = fit_heads(prior.expand(2, -1, -1), x, y, precision, used).requires_grad_()
    loss = (head_losses(heads, x, y) * used).sum(1) / used.sum(1)
    pull = 0.5 * precision * (heads - prior)[..., :-1].square().sum((1, 2))
    (g,) = torch.autograd.grad((loss + pull).sum(), heads)
    assert g.abs().max() < 2e-3
    assert (heads - prior).abs().max() > 0.1


def test_an_infinite_precision_keeps_the_prior_and_a_high_one_stays_near() -> None:
    x, labels, _ = problem()
    prior = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(1))
    every = torch.ones(1, 60)
    kept = fit_heads(prior, x, labels, torch.tensor([float("inf")]), every)
    assert torch.equal(kept, prior)
    near = fit_heads(prior, x, labels, torch.tensor([1e4]), every)
    assert (near - prior)[..., :-1].abs().max() < 1e-3


def test_a_true_head_is_kept_and_a_wrong_one_is_not() -> None:
    """Cross-validation prefers a prior that knows the answer, and leaves one that does not."""
    x, labels, _ = problem(rows=40)
    many, known, _ = problem(rows=2000)
    nothing, weak = torch.zeros(1, 3, 6), torch.tensor([1e-3])
    true = fit_heads(nothing, many, known, weak, torch.ones(1, 2000))[0]
    priors = torch.stack([true, -true, torch.zeros(3, 6)])
    losses = held_out_losses(priors, x, labels).mean(-1)
    assert losses[0].min() < losses[2].min()
    assert losses[1].argmin() < losses.shape[1] - 1
    assert losses[1, -1] > losses[1].min()


def test_a_support_smaller_than_the_folds_is_refused() -> None:
    x, labels, _ = problem(rows=3)
    with pytest.raises(InputError, match="3 rows cannot be split into 4 parts"):
        held_out_losses(torch.zeros(1, 3, 6), x, labels)
