"""`ltdi.lora.fit`: one step by hand, trajectories, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.collect import OPTIMISERS, Preparation
from ltdi.data.text.metrics import measure
from ltdi.errors import InputError, MismatchError
from ltdi.lora import Adapter, Base, Fitted, LoraSpec, adapter_logits, fit_adapter, make_adapter
from ltdi.lora.fit import _rate

from .conftest import LABELS, some_weights

QUICK = Preparation("adamw", lr=2e-2, steps=40, segments=4, weight_decay=0.01, batch=8)
ONE = Preparation("sgd", lr=0.1, steps=1, segments=1)


def fit(
    adapter: Adapter,
    inputs: Tensor,
    targets: Tensor = LABELS,
    preparation: Preparation = QUICK,
    *,
    seed: int = 0,
    start: Tensor | None = None,
) -> Fitted:
    rng = torch.Generator().manual_seed(seed)
    return fit_adapter(adapter, inputs, targets, preparation, rng, start=start, precision="float32")


def gradient(adapter: Adapter, theta: Tensor, inputs: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    loss = F.cross_entropy(adapter.predict(theta, inputs), LABELS)
    return torch.autograd.grad(loss, theta)[0]


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_one_step_follows_the_shortened_gradient(
    adapter: Adapter, inputs: Tensor, scale: float
) -> None:
    start = some_weights(adapter, scale=scale)
    g = gradient(adapter, start, inputs)
    found = fit(adapter, inputs, preparation=ONE, start=start)
    torch.testing.assert_close(found.theta, (start - 0.1 * g / g.norm().clamp(min=1))[None])
    loss = F.cross_entropy(adapter.predict(start, inputs), LABELS)
    torch.testing.assert_close(found.loss, loss[None])


def test_sam_takes_the_gradient_at_the_top_of_the_climb(adapter: Adapter, inputs: Tensor) -> None:
    start, rho = some_weights(adapter), 0.5
    g = gradient(adapter, start, inputs)
    top = gradient(adapter, start + rho * g / g.norm(), inputs)
    found = fit(adapter, inputs, preparation=replace(ONE, sam_rho=rho), start=start)
    torch.testing.assert_close(found.theta[0], start - 0.1 * top / top.norm().clamp(min=1))
    assert (top / top.norm() - g / g.norm()).norm() > 0.01


def test_the_rate_rises_and_falls() -> None:
    rates = [_rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 5
    assert rates[0] == pytest.approx(1 / 6)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.01)
    assert _rate(0, 1) == 1.0


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_learns(adapter: Adapter, inputs: Tensor, name: str) -> None:
    lr = 0.5 if name == "sgd" else 2e-2
    found = fit(adapter, inputs, preparation=replace(QUICK, optimiser=name, lr=lr))
    assert found.theta.shape == (4, adapter.space.size)
    assert found.finite
    assert found.loss[-1] < 0.5 * found.loss[0]
    assert measure("accuracy", adapter_logits(adapter, found.theta[-1], inputs), LABELS) == 1.0


def test_more_segments_are_more_stops_on_the_same_path(adapter: Adapter, inputs: Tensor) -> None:
    short = replace(QUICK, steps=12)
    path = fit(adapter, inputs, preparation=replace(short, segments=12))
    for k in (1, 3, 4):
        found = fit(adapter, inputs, preparation=replace(short, segments=k))
        assert torch.equal(found.theta, path.theta[12 // k - 1 :: 12 // k])
        torch.testing.assert_close(found.loss, path.loss.unflatten(0, (k, -1)).mean(1))
    assert len(path.theta.unique(dim=0)) == 12


def test_decay_is_towards_the_start(adapter: Adapter, inputs: Tensor) -> None:
    start = 3 * some_weights(adapter)

    def moved(decay: float) -> float:
        found = fit(adapter, inputs, preparation=replace(QUICK, weight_decay=decay), start=start)
        return float((found.theta[-1] - start).norm())

    assert moved(100.0) < 0.5 * moved(0.0)


def test_swapping_classes_swaps_the_heads_rows_and_nothing_else(
    adapter: Adapter, inputs: Tensor
) -> None:
    """Design section 4: relabelling permutes rows."""
    space = adapter.space
    plain = space.tokenize(fit(adapter, inputs).theta)
    turned = space.tokenize(fit(adapter, inputs, 1 - LABELS).theta)
    order = torch.arange(plain.shape[1])
    rows = (space.tokens.class_of >= 0).nonzero()[:, 0]
    order[rows] = rows.flip(0)
    torch.testing.assert_close(turned, plain[:, order], rtol=1e-3, atol=1e-5)
    assert (turned - plain).abs().max() > 0.01


def test_values_are_fitted_too(base: Base, inputs: Tensor) -> None:
    made = make_adapter(base, LoraSpec(), 1)
    targets = 0.2 + 0.6 * LABELS.float()
    found = fit(made, inputs, targets)
    assert found.loss[-1] < 0.2 * found.loss[0]
    assert measure("pearson", adapter_logits(made, found.theta[-1], inputs), targets) > 0.9


def test_the_generator_fixes_the_trajectory(adapter: Adapter, inputs: Tensor) -> None:
    state = torch.get_rng_state()
    short = replace(QUICK, steps=4)
    runs = [fit(adapter, inputs, preparation=short, seed=s).theta for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_good_start_is_a_head_start(adapter: Adapter, inputs: Tensor) -> None:
    first = fit(adapter, inputs)
    again = fit(adapter, inputs, start=first.theta[-1])
    assert again.loss[0] < 0.5 * first.loss[0]


def test_divergence_is_told(adapter: Adapter, inputs: Tensor) -> None:
    wild = replace(QUICK, optimiser="sgd", lr=1e30, steps=4)
    assert not fit(adapter, inputs, preparation=wild).finite


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_logits_do_not_see_batches(adapter: Adapter, inputs: Tensor, batch: int) -> None:
    theta = some_weights(adapter)
    found = adapter_logits(adapter, theta, inputs, batch=batch, precision="float32")
    torch.testing.assert_close(found, adapter.predict(theta, inputs))


def test_low_precision_is_near(adapter: Adapter, inputs: Tensor) -> None:
    theta = some_weights(adapter)
    low, high = (adapter_logits(adapter, theta, inputs, precision=p) for p in ("auto", "float32"))
    assert low.dtype == torch.float32
    assert float((low - high).norm() / high.norm()) < 0.03


def test_progress_is_told(adapter: Adapter, inputs: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    rng = torch.Generator().manual_seed(0)
    three = replace(QUICK, steps=3, segments=1)
    fit_adapter(
        adapter, inputs, LABELS, three, rng, progress=lambda i, n, loss: seen.append((i, n))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (LABELS + 1, r"targets are classes 1\.\.2, the head has 2 output"),
        (LABELS - 1, r"targets are classes -1\.\.0"),
        (LABELS.float(), "targets are values, the head has 2 output"),
        (LABELS[:3], "32 texts and targets of shape \\[3\\]"),
    ],
)
def test_targets_that_do_not_fit(
    adapter: Adapter, inputs: Tensor, targets: Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(adapter, inputs, targets)


def test_a_start_or_a_head_of_another_space(adapter: Adapter, base: Base, inputs: Tensor) -> None:
    with pytest.raises(MismatchError, match="the start has"):
        fit(adapter, inputs, start=adapter.theta_0[:-1])
    with pytest.raises(InputError, match=r"classes 0\.\.1, the head has 1 output"):
        fit(make_adapter(base, LoraSpec(), 1), inputs, LABELS)
