"""`ltdi.lora.adapter`: an adapter as a flat vector is the adapter that PEFT has."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.errors import InputError
from ltdi.lora import Adapter, Base, LoraSpec, make_adapter
from ltdi.lora.inputs import as_call, mask_of, token_mean

from .conftest import LABELS, some_weights

ATTENTION = ("query", "key", "value", "attention.output.dense")


def head_of(adapter: Adapter) -> Tensor:
    """[n] whether a number belongs to the head."""
    first = adapter.space.size - sum(
        layer.units * layer.row for layer in adapter.space.layers if layer.per_class
    )
    return torch.arange(adapter.space.size) >= first


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize(
    ("rank", "targets", "modules"), [(4, ("query", "value"), 4), (8, ATTENTION, 8)]
)
def test_an_adapter_is_its_factors_and_its_head(
    base: Base, outputs: int, rank: int, targets: tuple[str, ...], modules: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = make_adapter(base, LoraSpec(rank, target_modules=targets), outputs)
    assert made.space.size == modules * rank * (32 + 32) + outputs * 33
    assert made.outputs == made.space.way == outputs
    assert int(head_of(made).sum()) == outputs * 33


def test_minilm_has_the_weights_that_the_design_counts(minilm: Base) -> None:
    assert make_adapter(minilm, LoraSpec(), 2).space.size == 37_634


def test_the_start_adds_nothing_and_favours_no_class(adapter: Adapter, inputs: Tensor) -> None:
    assert not adapter.predict(adapter.theta_0, inputs).any()
    assert adapter.theta_0.any()  # A is random


def test_without_b_the_model_is_a_linear_head_on_the_base(
    adapter: Adapter, base: Base, inputs: Tensor
) -> None:
    theta = torch.where(head_of(adapter), some_weights(adapter), adapter.theta_0)
    head = adapter.space.unflatten(theta)
    weight, bias = (next(v for k, v in head.items() if k.endswith(f"default.{name}") and
                         "modules_to_save" in k) for name in ("weight", "bias"))  # fmt: skip
    hidden = base.encoder(**as_call(inputs)).last_hidden_state
    expected = F.linear(token_mean(hidden, mask_of(inputs)), weight, bias)
    torch.testing.assert_close(adapter.predict(theta, inputs), expected)


def test_all_tasks_share_one_start(base: Base, adapter: Adapter) -> None:
    factors = adapter.theta_0[~head_of(adapter)]
    for outputs in (1, 3):
        other = make_adapter(base, LoraSpec(), outputs)
        assert torch.equal(other.theta_0[~head_of(other)], factors)
        assert other.space.fingerprint == adapter.space.fingerprint
        assert other.space.with_way(2) == adapter.space
    other = make_adapter(base, LoraSpec(), 2, seed=1)
    assert not torch.equal(other.theta_0, adapter.theta_0)


def test_permuting_the_heads_rows_permutes_the_logits(base: Base, inputs: Tensor) -> None:
    made = make_adapter(base, LoraSpec(), 3)
    theta, order = some_weights(made), torch.tensor([2, 0, 1])
    layout = made.space.tokens
    grid = made.space.tokenize(theta)
    rows = torch.arange(len(grid))
    rows[layout.class_of >= 0] = rows[layout.class_of >= 0][order]
    turned = made.space.untokenize(grid[rows])
    assert not torch.equal(turned, theta)
    torch.testing.assert_close(made.predict(turned, inputs), made.predict(theta, inputs)[:, order])


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_gradients_are_those_of_the_peft_model(base: Base, inputs: Tensor, pooling: str) -> None:
    made = make_adapter(base, LoraSpec(pooling=pooling), 2)
    theta = some_weights(made, scale=0.1).requires_grad_()
    F.cross_entropy(made.predict(theta, inputs), LABELS).backward()
    net = make_adapter(base, LoraSpec(pooling=pooling), 2).net
    net.load_state_dict(made.space.unflatten(theta.detach()), strict=False)
    chosen = {p.name for p in made.space.params}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)
    F.cross_entropy(net(inputs), LABELS).backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert theta.grad is not None
    assert bool((theta.grad != 0).float().mean() > 0.9)
    torch.testing.assert_close(made.space.flatten(grads), theta.grad)


def test_the_bases_tensors_are_shared_and_left_alone(base: Base, inputs: Tensor) -> None:
    mark = {name: value.clone() for name, value in base.state.items()}
    made = make_adapter(base, LoraSpec(), 2)
    assert torch.isfinite(made.predict(some_weights(made), inputs)).all()
    ours = {p.data_ptr() for p in made.net.parameters()}
    theirs = {p.data_ptr() for n, p in base.encoder.named_parameters() if "pooler" not in n}
    assert theirs <= ours
    assert all(torch.equal(value, mark[name]) for name, value in base.state.items())


def test_the_global_random_state_is_left_alone(base: Base) -> None:
    state = torch.get_rng_state()
    make_adapter(base, LoraSpec(), 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ("queries",)},
            r"unknown target module 'queries'[\s\S]*tiny-0[\s\S]*'query'",
        ),
        ({"target_modules": ("ry",)}, "unknown target module 'ry'"),
        (
            {"modules_to_save": ("classifiers",)},
            r"unknown head 'classifiers'[\s\S]*mean 'classifier'",
        ),
    ],
)
def test_modules_that_are_not_there(base: Base, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_adapter(base, LoraSpec(**settings), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": float("nan")}, "alpha positive"),
        ({"target_modules": ()}, "needs target modules"),
        ({"modules_to_save": ()}, "needs target modules and a head"),
        ({"pooling": "maen"}, "did you mean 'mean'"),
    ],
)
def test_settings_that_make_no_adapter(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoraSpec(**settings)


def test_no_outputs(base: Base) -> None:
    with pytest.raises(InputError, match="0 outputs"):
        make_adapter(base, LoraSpec(), 0)
