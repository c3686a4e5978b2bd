"""`ltdi.diffusion.objective`: every draw is the equation it stands for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltdi.diffusion import OBJECTIVES, Draw, Schedule, cosine_schedule, draw, linear_schedule
from ltdi.errors import InputError

B, N = 4000, 3
few = settings(max_examples=20, deadline=None, derandomize=True)


def targets(k: int, batch: int = B) -> Tensor:
    """[B, k, n] in double precision; theta_id holds i + 1/8, so a target names its i."""
    i = torch.arange(1, k + 1, dtype=torch.float64) + 0.125
    return i[None, :, None].expand(batch, k, N)


def drawn(
    objective: str, k: int, prediction: str = "eps", seed: int = 0,
    schedule: Schedule | None = None,
) -> Draw:  # fmt: skip
    rng = torch.Generator().manual_seed(seed)
    schedule = schedule or linear_schedule(20)
    return draw(objective, targets(k), schedule, prediction=prediction, rng=rng)


def index(objective: str, k: int, seed: int = 0, schedule: Schedule | None = None) -> Tensor:
    """[B] the drawn i, read from the x0 targets under the same seed."""
    return drawn(objective, k, "x0", seed, schedule).target[:, 0].floor().long()


def level(schedule: Schedule, t: Tensor, end: Tensor | None = None) -> Tensor:
    """[B] prod_{j=t}^{end-1} alpha_j, written out."""
    ends = [schedule.steps] * len(t) if end is None else end.tolist()
    alpha = schedule.alpha.double()
    return torch.stack([alpha[a:b].prod() for a, b in zip(t.tolist(), ends, strict=True)])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("k", [1, 4])
def test_shapes_and_ranges(objective: str, k: int) -> None:
    d = drawn(objective, k)
    assert d.x_t.shape == d.target.shape == (B, N)
    assert d.t.shape == d.weight.shape == (B,)
    assert d.t.min() == 0 and d.t.max() == 19
    assert ((d.weight > 0) & (d.weight <= 1)).all()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("other", ["trajectory", "matched", "naive"])
def test_with_one_segment_all_objectives_are_vanilla_up_to_the_weight(
    other: str, prediction: str
) -> None:
    vanilla, one = drawn("vanilla", 1, prediction), drawn(other, 1, prediction)
    assert torch.equal(one.t, vanilla.t)
    torch.testing.assert_close(one.x_t, vanilla.x_t)
    torch.testing.assert_close(one.target, vanilla.target)
    assert torch.equal(vanilla.weight, torch.ones(B))
    weighted = other != "naive" and prediction == "eps"
    expected = 1 - level(linear_schedule(20), one.t) if weighted else torch.ones(B)
    torch.testing.assert_close(one.weight.double(), expected.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_matched_has_the_t_and_the_weight_of_trajectory(k: int) -> None:
    """The weight is 1 - abar of the chain in use; at k = 1 the two chains are one."""
    schedule = linear_schedule(20)
    matched, path = drawn("matched", k), drawn("trajectory", k)
    assert torch.equal(matched.t, path.t)
    end = index("trajectory", k) * 20 // k
    torch.testing.assert_close(matched.weight.double(), 1 - level(schedule, matched.t))
    torch.testing.assert_close(path.weight.double(), 1 - level(schedule, path.t, end))
    assert (index("matched", k) == k).all()
    if k == 1:
        assert torch.equal(matched.weight, path.weight)
    # Both square errors of eps count the same: w * target^2 = (1 - abar_t) * eps^2.
    a, b = matched.residual(torch.zeros(B, N)), path.residual(torch.zeros(B, N))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_seed_gives_all_objectives_the_same_eps() -> None:
    """Common random numbers: ablations differ by the objective, not by luck."""
    draws = {name: drawn(name, 4, "x0") for name in OBJECTIVES}
    assert torch.equal(draws["naive"].t, draws["vanilla"].t)
    schedule = linear_schedule(20)
    noises = []
    for name, d in draws.items():
        end = index(name, 4) * 5 if name == "trajectory" else None
        a = level(schedule, d.t, end)[:, None]
        noises.append((d.x_t - a.sqrt() * d.target) / (1 - a).sqrt())
    for eps in noises[1:]:
        torch.testing.assert_close(eps, noises[0], rtol=1e-4, atol=1e-4)
    assert noises[0].mean().abs() < 0.05 and (noises[0].std() - 1).abs() < 0.03


@pytest.mark.parametrize("k", [2, 3, 5])
def test_naive_draws_all_targets_uniformly_whatever_t(k: int) -> None:
    schedule = linear_schedule(30)
    i, t = index("naive", k, schedule=schedule), drawn("naive", k, schedule=schedule).t
    table = torch.zeros(k, 30).index_put_((i - 1, t), torch.ones(B), accumulate=True)
    for counts in (table.sum(1), table.sum(0), table.flatten()):
        expected = B / len(counts)
        chi2 = ((counts - expected) ** 2 / expected).sum().item()
        freedom = len(counts) - 1
        assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("objective", ["vanilla", "matched"])
def test_only_the_last_target_is_used(objective: str) -> None:
    assert (index(objective, 4) == 4).all()


@pytest.mark.parametrize("k", [1, 2, 4, 10])
def test_trajectory_draws_i_uniformly_and_t_below_the_end_of_its_chain(k: int) -> None:
    i, t = index("trajectory", k), drawn("trajectory", k).t
    end = i * 20 // k
    assert (t < end).all() and (t >= 0).all()
    counts = torch.bincount(i, minlength=k + 1)[1:].double()
    assert (counts - B / k).abs().max() < 4 * (B / k) ** 0.5
    for which in range(1, k + 1):
        steps = torch.bincount(t[i == which], minlength=which * 20 // k).double()
        assert len(steps) == which * 20 // k and (steps > 0).all()
        chi2 = ((steps - steps.mean()) ** 2 / steps.mean()).sum().item()
        freedom = len(steps) - 1
        assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_share_of_the_draws_is_at_the_first_step(objective: str) -> None:
    """Target, stage and noise stay those of the objective; so do the other draws."""
    rngs = [torch.Generator().manual_seed(0) for _ in range(3)]
    plain, half, all_first = (
        draw(objective, targets(4), linear_schedule(20), prediction="x0", first=share, rng=rng)
        for share, rng in zip((0.0, 0.5, 1.0), rngs, strict=True)
    )
    assert (all_first.t == 0).all()
    share = float((half.t == 0).double().mean())
    kept = float((plain.t == 0).double().mean())
    assert abs(share - (0.5 + 0.5 * kept)) < 4 * (0.25 / B) ** 0.5
    assert ((half.t == plain.t) | (half.t == 0)).all()
    for other in (half, all_first):
        assert torch.equal(other.target, plain.target) and torch.equal(other.stage, plain.stage)


@few
@given(
    k=st.sampled_from([1, 2, 4, 5]), seed=st.integers(0, 999),
    make=st.sampled_from([linear_schedule, cosine_schedule]),
)  # fmt: skip
def test_the_residual_is_the_loss_of_the_paper(
    k: int, seed: int, make: Callable[[int], Schedule]
) -> None:
    """|sqrt(1 - abar^i_t) f - sqrt(1 - abar_t) eps|^2 for any f (design, section 2)."""
    schedule = make(20)
    d, i = drawn("trajectory", k, seed=seed, schedule=schedule), index("trajectory", k, seed)
    theta = targets(k)[torch.arange(B), i - 1]
    local, whole = level(schedule, d.t, i * 20 // k)[:, None], level(schedule, d.t)[:, None]
    eps = (d.x_t - local.sqrt() * theta) / (1 - local).sqrt()  # from x_t, not from the target
    f = torch.randn(B, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    paper = ((1 - local).sqrt() * f - (1 - whole).sqrt() * eps).square().sum(-1)
    torch.testing.assert_close(d.residual(f).square().sum(-1), paper, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_targets_of_x0_and_v_are_those_of_their_own_chain(objective: str) -> None:
    schedule, k = linear_schedule(20), 4
    i = index(objective, k)
    theta = targets(k)[torch.arange(B), i - 1]
    x0, v = drawn(objective, k, "x0"), drawn(objective, k, "v")
    assert torch.equal(x0.target, theta)
    assert torch.equal(x0.weight, torch.ones(B)) and torch.equal(v.weight, torch.ones(B))
    a = level(schedule, v.t, i * 5 if objective == "trajectory" else None)[:, None]
    # x_t and v are a rotation of theta and eps: turned back, v gives theta.
    torch.testing.assert_close(
        a.sqrt() * v.x_t - (1 - a).sqrt() * v.target, theta, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_signal_and_stage_say_what_was_drawn(objective: str, prediction: str) -> None:
    """x_t = signal theta_id + sqrt(1 - signal^2) eps, and theta_id is the local target k stage."""
    schedule, k = linear_schedule(20), 4
    d, i = drawn(objective, k, prediction), index(objective, k)
    assert d.signal.shape == d.stage.shape == (B,)
    assert torch.equal(d.stage, i / k)
    a = level(schedule, d.t, i * 5 if objective == "trajectory" else None)
    torch.testing.assert_close(d.signal.double(), a.sqrt(), rtol=1e-5, atol=1e-7)
    signal, theta = d.signal.double()[:, None], targets(k)[torch.arange(B), i - 1]
    eps = (d.x_t - signal * theta) / (1 - signal.square()).sqrt()
    assert abs(float(eps.mean())) < 0.05 and abs(float(eps.std()) - 1) < 0.03


def test_the_seed_fixes_the_draw() -> None:
    assert torch.equal(drawn("trajectory", 4).x_t, drawn("trajectory", 4).x_t)
    assert not torch.equal(drawn("trajectory", 4).x_t, drawn("trajectory", 4, seed=1).x_t)


@pytest.mark.parametrize("objective", ["trajectory", "matched"])
def test_k_must_divide_the_chain(objective: str) -> None:
    with pytest.raises(InputError, match=r"T = 20 .* k = 3"):
        drawn(objective, 3)
    assert drawn("vanilla", 3).t.shape == (B,)  # a global chain is not split


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'trajectry'[\s\S]*did you mean 'trajectory'"):
        drawn("trajectry", 2)
    with pytest.raises(InputError, match=r"'epss'[\s\S]*did you mean 'eps'"):
        drawn("vanilla", 2, "epss")
