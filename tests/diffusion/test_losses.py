"""`ltdi.diffusion.losses`: each loss is the distance that its name says, and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.diffusion.losses import (
    LOSSES,
    Probe,
    check_loss,
    check_net_loss,
    function_loss,
    loss_of,
    predictive_loss,
    weight_loss,
)
from ltdi.errors import InputError
from ltdi.weights import head_space

B, WAY, D, P = 3, 4, 5, 6
SPACE = head_space(D, WAY)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Probe]:
    """Prediction and target [B, n], weight [B], probe."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.double)

    scale = normal(SPACE.size).exp()
    probe = Probe(normal(B, P, D), normal(B, SPACE.size), scale)
    return normal(B, SPACE.size), normal(B, SPACE.size), normal(B).exp(), probe


def logits(theta: Tensor, features: Tensor) -> Tensor:
    """[B, P, way], one head after the other, by torch's own linear layer."""
    heads = [SPACE.unflatten(row) for row in theta]
    return torch.stack(
        [F.linear(x, h["weight"], h["bias"]) for x, h in zip(features, heads, strict=True)]
    )


def common_shift(seed: int = 1) -> Tensor:
    """[B, n]: one random row, the same for every class."""
    rng = torch.Generator().manual_seed(seed)
    row = torch.randn(B, 1, D + 1, generator=rng, dtype=torch.double).expand(B, WAY, D + 1)
    return SPACE.flatten({"weight": row[..., :D], "bias": row[..., D]})


def fisher(theta: Tensor, move: Tensor, features: Tensor) -> Tensor:
    """[B, P] move^T F(theta) move of softmax: the variance of the logits' change under p."""
    p = logits(theta, features).softmax(-1)
    change = logits(move, features)
    mean = (p * change).sum(-1, keepdim=True)
    return (p * (change - mean).square()).sum(-1)


def test_weight_loss_is_a_weighted_mean_square() -> None:
    prediction, target, weight, probe = problem()
    by_hand = sum(float(weight[b]) * float(F.mse_loss(prediction[b], target[b])) for b in range(B))
    assert float(weight_loss(prediction, target, weight, probe)) == pytest.approx(by_hand / B)
    assert float(weight_loss(target, target, weight, probe)) == 0


def test_function_loss_is_the_mean_square_of_centred_logits() -> None:
    prediction, target, weight, probe = problem()
    scaled = (prediction - target) * probe.scale
    total = 0.0
    for b in range(B):
        for x in probe.features[b]:
            head = SPACE.unflatten(scaled[b])
            z = [float(head["weight"][c] @ x + head["bias"][c]) for c in range(WAY)]
            mean = sum(z) / WAY
            total += float(weight[b]) * sum((value - mean) ** 2 for value in z)
    wanted = 0.1 * total / (B * P * WAY)
    assert float(function_loss(prediction, target, weight, probe)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["function", "predictive"])
def test_a_shift_common_to_all_classes_costs_nothing(name: str) -> None:
    _, target, weight, probe = problem()
    moved = target + common_shift() / probe.scale
    assert not torch.allclose(moved, target)
    assert float(LOSSES[name](moved, target, weight, probe)) == pytest.approx(0, abs=1e-12)
    assert float(weight_loss(moved, target, weight, probe)) > 0.01


def test_predictive_loss_is_torchs_kl() -> None:
    prediction, target, weight, probe = problem()
    given = logits(probe.anchor + prediction * probe.scale, probe.features).log_softmax(-1)
    wanted = logits(probe.anchor + target * probe.scale, probe.features).log_softmax(-1)
    kl = F.kl_div(given, wanted, reduction="none", log_target=True).sum(-1)
    value = predictive_loss(prediction, target, weight, probe)
    assert float(value) == pytest.approx(float((weight[:, None] * kl).mean()))


def test_predictive_loss_asks_for_other_predictions_where_they_are_given() -> None:
    prediction, target, weight, probe = problem()
    given = logits(probe.anchor + prediction * probe.scale, probe.features).log_softmax(-1)
    own = logits(probe.anchor + target * probe.scale, probe.features).softmax(-1)
    hard = F.one_hot(own.argmax(-1), WAY).to(own)
    for wanted in (own, hard, (own + hard) / 2):
        other = replace(probe, wanted=wanted)
        kl = F.kl_div(given, wanted, reduction="none").sum(-1)
        value = predictive_loss(prediction, torch.zeros_like(target), weight, other)
        assert float(value) == pytest.approx(float((weight[:, None] * kl).mean()))
    told = predictive_loss(prediction, target, weight, replace(probe, wanted=own))
    assert float(told) == pytest.approx(float(predictive_loss(prediction, target, weight, probe)))


def test_the_loss_in_weight_space_may_be_added_to_another() -> None:
    for name in LOSSES:
        assert loss_of(name) is LOSSES[name]
        apart = float(weight_loss(*problem()))
        both = float(loss_of(name, 0.5)(*problem()))
        assert both == pytest.approx(float(LOSSES[name](*problem())) + 0.5 * apart)


def test_predictive_loss_is_zero_only_for_equal_predictions() -> None:
    prediction, target, weight, probe = problem()
    assert float(predictive_loss(target, target, weight, probe)) == pytest.approx(0, abs=1e-14)
    for entry in range(SPACE.size):
        other = target.clone()
        other[:, entry] += 0.1
        assert float(predictive_loss(other, target, weight, probe)) > 1e-9
    assert float(predictive_loss(prediction, target, weight, probe)) > 0


def test_predictive_loss_is_the_fisher_metric_to_second_order() -> None:
    """KL(theta || theta + h v) = h^2 / 2 v^T F v + O(h^3): the ratio's error falls like h."""
    move, target, weight, probe = problem()
    theta = probe.anchor + target * probe.scale
    form = 0.5 * (weight[:, None] * fisher(theta, move * probe.scale, probe.features)).mean()
    errors = []
    for h in (1e-2, 1e-3, 1e-4):
        value = predictive_loss(target + h * move, target, weight, probe) / h**2
        errors.append(abs(float(value / form) - 1))
    assert errors[-1] < 1e-3
    assert errors[1] < 0.2 * errors[0]


def test_predictive_loss_takes_the_targets_side() -> None:
    """KL is not symmetric: the expectation is under the target's predictions."""
    prediction, target, weight, probe = problem()
    forward = predictive_loss(prediction, target, weight, probe)
    backward = predictive_loss(target, prediction, weight, probe)
    assert abs(float(forward - backward)) > 1e-3


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_weights_scale_tasks_one_by_one(name: str) -> None:
    prediction, target, _, probe = problem()
    alone = torch.stack(
        [LOSSES[name](prediction, target, row, probe) for row in torch.eye(B).double()]
    )
    mixed = LOSSES[name](prediction, target, torch.tensor([3.0, 0.0, 1.0]), probe)
    assert float(mixed) == pytest.approx(float(3 * alone[0] + alone[2]))
    assert len({round(float(x), 9) for x in alone}) == B


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_descending_a_loss_reaches_the_target(name: str) -> None:
    prediction, target, weight, probe = problem()
    x = prediction.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](x, target, weight, probe), x)
    assert float((slope * (prediction - target)).sum()) > 0
    x = target.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](x, target, weight, probe), x)
    assert float(slope.abs().max()) < 1e-12


def test_check_loss_knows_what_fits() -> None:
    for prediction in ("x0", "eps", "v"):
        check_loss("weight", prediction)
        check_loss("function", prediction)
    check_loss("predictive", "x0")
    for prediction in ("eps", "v"):
        with pytest.raises(InputError, match=f"predictive.*{prediction}"):
            check_loss("predictive", prediction)
    with pytest.raises(InputError, match="did you mean 'predictive'"):
        check_loss("predictiv", "x0")


def test_check_net_loss_refuses_that_of_linear_heads() -> None:
    for name in ("weight", "predictive"):
        check_net_loss(name)
    with pytest.raises(InputError, match="'function' is that of linear heads"):
        check_net_loss("function")
