"""`ltdi.diffusion.schedule`: time runs to the clean weight; diffusers' time runs the other way.

diffusers is a test dependency only: it is the independent witness that the noise levels are the
published ones.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdi.diffusion import Schedule, cosine_schedule, linear_schedule, make_schedule
from ltdi.errors import InputError

NAMES = ("linear", "cosine")
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(name=st.sampled_from(NAMES), steps=st.integers(1, 200))
def test_abar_rises_from_noise_to_one(name: str, steps: int) -> None:
    schedule = make_schedule(name, steps)
    assert schedule.steps == steps and schedule.alpha_bar.shape == (steps + 1,)
    assert schedule.alpha_bar[-1] == 1.0
    assert (schedule.alpha_bar.diff() > 0).all()
    assert 0 < schedule.alpha_bar[0] < 2e-3
    assert ((schedule.alpha > 0) & (schedule.alpha < 1)).all()


@few
@given(data=st.data(), name=st.sampled_from(NAMES), steps=st.integers(1, 40))
def test_alpha_bar_local_is_a_product_of_alphas(data: st.DataObject, name: str, steps: int) -> None:
    schedule = make_schedule(name, steps)
    end = data.draw(st.integers(0, steps))
    t = data.draw(st.integers(0, end))
    expected = math.prod(schedule.alpha[t:end].double().tolist())
    local = schedule.alpha_bar_local(torch.tensor([[t]]), torch.tensor([[end]]))
    assert local.shape == (1, 1)
    assert local.item() == pytest.approx(expected, rel=1e-6)


def test_a_local_chain_times_the_rest_is_the_global_chain() -> None:
    schedule = linear_schedule(20)
    t, end = torch.tensor([0, 3, 9, 10]), torch.tensor([5, 5, 15, 10])
    whole = schedule.alpha_bar_local(t, torch.full_like(t, 20))
    rest = schedule.alpha_bar_local(end, torch.full_like(t, 20))
    torch.testing.assert_close(schedule.alpha_bar_local(t, end) * rest, whole)
    assert schedule.alpha_bar_local(end, end).tolist() == [1.0] * 4


@pytest.mark.parametrize("k", [1, 2, 4, 5, 10, 20])
def test_segment_end_closes_the_segment_of_each_step(k: int) -> None:
    schedule = linear_schedule(20)
    length = schedule.segment_length(k)
    assert length * k == 20
    t = torch.arange(20)
    end = schedule.segment_end(t, k)
    assert ((end - length <= t) & (t < end)).all()
    assert end.unique().tolist() == [i * length for i in range(1, k + 1)]


@pytest.mark.parametrize("k", [-1, 0, 3, 21])
def test_segments_that_do_not_divide_are_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"T = 20 .* k = {k} equal segments"):
        linear_schedule(20).segment_length(k)


def test_unknown_schedule_and_empty_chain() -> None:
    with pytest.raises(InputError, match=r"'cosin'[\s\S]*did you mean 'cosine'"):
        make_schedule("cosin", 20)
    with pytest.raises(InputError, match="at least 1, got 0"):
        make_schedule("linear", 0)


def test_a_float32_chain_of_1000_steps_keeps_its_precision() -> None:
    exact = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).prod()
    assert linear_schedule(1000).alpha_bar[0].item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize(
    ("schedule", "beta_schedule"),
    [(linear_schedule(1000), "linear"), (cosine_schedule(1000), "squaredcos_cap_v2"),
     (cosine_schedule(20), "squaredcos_cap_v2")],
    ids=["linear-1000", "cosine-1000", "cosine-20"],
)  # fmt: skip
def test_alphas_agree_with_diffusers(kind: str, schedule: Schedule, beta_schedule: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the witness of published noise levels")
    theirs = getattr(diffusers, kind)(
        num_train_timesteps=schedule.steps, beta_schedule=beta_schedule,
        beta_start=1e-4, beta_end=0.02,
    ).alphas_cumprod  # fmt: skip
    ours = schedule.alpha_bar[:-1].flip(0).float()
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-9)
