"""`ltdi.diffusion.sampler`: exact denoisers reach their targets; steps are those of diffusers.

diffusers is a test dependency only: an independent implementation of the published steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltdi.diffusion import SAMPLERS, Schedule, cosine_schedule, linear_schedule, sample
from ltdi.diffusion.sampler import Denoise, time_grid, to_x0_eps
from ltdi.errors import InputError

B, N, T = 4, 5, 20
SCHEDULES = {"linear": linear_schedule(T), "cosine": cosine_schedule(T)}
PREDICTIONS = ("eps", "x0", "v")


def normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def exact(path: Tensor, schedule: Schedule, prediction: str, *, paper: bool = True) -> Denoise:
    """The denoiser that knows the local targets theta_d .. theta_M, path [B, k, n].

    At step t it answers for the chain that holds t. As the paper trains it, eps comes scaled by
    sqrt((1 - abar_t) / (1 - abar^i_t)).
    """
    k = path.shape[1]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        i = t * k // schedule.steps
        theta = path[torch.arange(len(x)), i]
        end = (i + 1) * schedule.steps // k
        local = schedule.alpha_bar_local(t, end).to(x)[:, None]
        eps = (x - local.sqrt() * theta) / (1 - local).sqrt()
        if prediction == "eps":
            whole = schedule.alpha_bar[t].to(x)[:, None]
            return ((1 - whole) / (1 - local)).sqrt() * eps if paper else eps
        return theta if prediction == "x0" else local.sqrt() * eps - (1 - local).sqrt() * theta

    return denoise


class Chain:
    """A callback that keeps the states."""

    def __init__(self) -> None:
        self.x: dict[int, Tensor] = {}
        self.x0: dict[int, Tensor] = {}

    def __call__(self, t: int, x: Tensor, x0: Tensor) -> None:
        self.x[t], self.x0[t] = x, x0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("k", [1, 2, 4, 10])
def test_paper_eps_lands_on_every_local_target(name: str, k: int) -> None:
    """Global DDPM mean steps, no knowledge of segments: x is theta_id at step iT/k."""
    schedule, path, chain = SCHEDULES[name], normal(B, k, N), Chain()
    out = sample(
        exact(path, schedule, "eps"), normal(B, N, seed=1), schedule,
        sampler="ddpm", temperature=0.0, callback=chain,
    )  # fmt: skip
    for i in range(1, k + 1):
        torch.testing.assert_close(chain.x[i * T // k], path[:, i - 1], rtol=1e-5, atol=1e-5)
    assert torch.equal(out, chain.x[T])
    assert list(chain.x) == list(range(1, T + 1))


def test_without_the_factor_of_the_paper_it_misses() -> None:
    schedule, path, chain = SCHEDULES["linear"], normal(B, 4, N), Chain()
    sample(
        exact(path, schedule, "eps", paper=False), normal(B, N), schedule,
        sampler="ddpm", temperature=0.0, callback=chain,
    )  # fmt: skip
    for i in (2, 3):  # segment 1 starts at 0, without noise to remove; in the last the factor is 1
        assert (chain.x[i * 5] - path[:, i - 1]).abs().max() > 0.05


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("steps", [T, 7])
def test_local_decoding_lands_on_every_local_target(
    prediction: str, sampler: str, temperature: float, steps: int
) -> None:
    for k in (1, 2, 4, 5):
        schedule, path, chain = SCHEDULES["linear"], normal(B, k, N), Chain()
        sample(
            exact(path, schedule, prediction), normal(B, N, seed=1), schedule, steps=steps,
            prediction=prediction, sampler=sampler, temperature=temperature, segments=k,
            rng=torch.Generator().manual_seed(0), callback=chain,
        )  # fmt: skip
        for i in range(1, k + 1):
            torch.testing.assert_close(chain.x[i * T // k], path[:, i - 1], rtol=1e-5, atol=1e-5)
        for t, x0 in chain.x0.items():
            now = path[:, (t - 1) * k // T]
            # At the noisiest levels x0 = (x - noise eps) / signal loses digits.
            torch.testing.assert_close(x0, now, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_vanilla_reaches_theta_in_any_number_of_steps(
    name: str, sampler: str, prediction: str, temperature: float
) -> None:
    schedule, theta = SCHEDULES[name], normal(B, N)
    denoise = exact(theta[:, None], schedule, prediction)
    for steps in range(1, T + 1):
        out = sample(
            denoise, normal(B, N, seed=steps), schedule, steps=steps, prediction=prediction,
            sampler=sampler, temperature=temperature, rng=torch.Generator().manual_seed(0),
        )  # fmt: skip
        torch.testing.assert_close(out, theta, rtol=1e-4, atol=1e-4)


def exact_until(theta: Tensor, end: int, schedule: Schedule, prediction: str) -> Denoise:
    """The denoiser that knows what is at the end of the chain that was asked for.

    As `draw` trains it, eps is scaled by sqrt((1 - abar_t) / (1 - abar^i_t)).
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        local = schedule.alpha_bar_local(t, torch.full_like(t, end)).to(x)[:, None]
        eps = (x - local.sqrt() * theta) / (1 - local).sqrt()
        if prediction == "eps":
            return ((1 - schedule.alpha_bar[t].to(x)[:, None]) / (1 - local)).sqrt() * eps
        return theta if prediction == "x0" else local.sqrt() * eps - (1 - local).sqrt() * theta

    return denoise


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("end", [1, 5, 10, 15, T])
def test_a_shorter_chain_lands_on_its_local_target(
    prediction: str, sampler: str, name: str, end: int
) -> None:
    """With k = 4 the ends 5, 10, 15 and 20 are those of theta_d .. theta_M."""
    schedule, theta = SCHEDULES[name], normal(B, N)
    denoise = exact_until(theta, end, schedule, prediction)
    for steps in {1, (end + 1) // 2, end}:
        chain = Chain()
        out = sample(
            denoise, normal(B, N, seed=1), schedule, steps=steps, end=end, prediction=prediction,
            sampler=sampler, rng=torch.Generator().manual_seed(0), callback=chain,
        )  # fmt: skip
        torch.testing.assert_close(out, theta, rtol=1e-4, atol=1e-4)
        assert max(chain.x) == end and len(chain.x) == steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_end_of_the_whole_chain_is_the_default(sampler: str, prediction: str) -> None:
    def run(**options: int) -> Tensor:
        return sample(
            wobble, normal(B, N), SCHEDULES["cosine"], prediction=prediction, sampler=sampler,
            rng=torch.Generator().manual_seed(0), **options,
        )  # fmt: skip

    assert torch.equal(run(end=T), run())
    assert not torch.allclose(run(end=T // 2), run())
    # All steps of a shorter chain are fewer.
    assert torch.equal(run(end=5, steps=5), run(end=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 0}, "T = 20 in 1 segments cannot end at 0"),
        ({"end": 21}, "cannot end at 21"),
        ({"end": 10, "segments": 2}, "in 2 segments cannot end at 10"),
        ({"end": 5, "steps": 6}, "6 inference steps .* T = 5"),
    ],
)
def test_impossible_ends_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(wobble, normal(B, N), SCHEDULES["linear"], **options)


def wobble(x: Tensor, t: Tensor) -> Tensor:
    """A smooth denoiser that is exact for nothing."""
    return torch.sin(2.0 * x + 0.3 * t.to(x)[:, None]) + 0.2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_x0_step_returns_the_prediction(sampler: str) -> None:
    noise, schedule = normal(B, N), SCHEDULES["linear"]
    out = sample(wobble, noise, schedule, prediction="x0", sampler=sampler, steps=1)
    assert torch.equal(out, wobble(noise, torch.zeros(B)))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_temperature_zero_does_not_see_the_noise(sampler: str, prediction: str) -> None:
    def run(temperature: float, seed: int) -> Tensor:
        return sample(
            wobble, normal(B, N, seed=seed), SCHEDULES["cosine"], sampler=sampler,
            prediction=prediction, temperature=temperature,
            rng=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    assert torch.equal(run(0.0, 1), run(0.0, 2))
    assert not torch.allclose(run(1.0, 1), run(1.0, 2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_temperature_scales_all_noise(sampler: str) -> None:
    """Where the clean weight is zero every state is noise, and so in proportion."""

    def run(temperature: float) -> dict[int, Tensor]:
        chain, rng = Chain(), torch.Generator().manual_seed(3)
        sample(
            lambda x, t: torch.zeros_like(x), normal(B, N), SCHEDULES["cosine"], prediction="x0",
            sampler=sampler, temperature=temperature, rng=rng, callback=chain,
        )  # fmt: skip
        return chain.x

    whole, half = run(1.0), run(0.5)
    for t in range(1, T):
        assert whole[t].abs().max() > 1e-3
        torch.testing.assert_close(half[t], 0.5 * whole[t])


def test_only_ddpm_adds_noise_and_its_generator_fixes_it() -> None:
    def run(sampler: str, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return sample(wobble, normal(B, N), SCHEDULES["cosine"], sampler=sampler, rng=rng)

    assert torch.equal(run("ddim", 1), run("ddim", 2))
    assert torch.equal(run("ddpm", 1), run("ddpm", 1))
    assert not torch.allclose(run("ddpm", 1), run("ddpm", 2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_adds_no_noise(sampler: str) -> None:
    x0, eps, one = normal(B, N), normal(B, N, seed=1), torch.ones((), dtype=torch.float64)
    step = SAMPLERS[sampler]
    assert torch.equal(step(x0, eps, 0.4 * one, one, torch.full_like(x0, 1e6)), x0)


@pytest.mark.parametrize("a_s", [0.5, 0.9])
def test_ddpm_is_the_posterior_of_ho_et_al(a_s: float) -> None:
    """Mean and variance of q(x_s | x_t, x0), equations 6 and 7."""
    a_t, x0, eps = 0.3, normal(B, N), normal(B, N, seed=1)
    x = math.sqrt(a_t) * x0 + math.sqrt(1 - a_t) * eps
    alpha = a_t / a_s
    mean = (math.sqrt(a_s) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - a_s) * x) / (1 - a_t)
    deviation = math.sqrt((1 - a_s) / (1 - a_t) * (1 - alpha))
    before, after = (torch.tensor(a, dtype=torch.float64) for a in (a_t, a_s))
    step = SAMPLERS["ddpm"]
    torch.testing.assert_close(step(x0, eps, before, after, torch.zeros_like(x)), mean)
    torch.testing.assert_close(step(x0, eps, before, after, torch.ones_like(x)), mean + deviation)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_all_predictions_stand_for_the_same_weight_and_noise(prediction: str) -> None:
    x0, eps, a = normal(B, N), normal(B, N, seed=1), torch.tensor(0.3, dtype=torch.float64)
    x = a.sqrt() * x0 + (1 - a).sqrt() * eps
    output = {"eps": eps, "x0": x0, "v": a.sqrt() * eps - (1 - a).sqrt() * x0}[prediction]
    got = to_x0_eps(output, x, a, prediction)
    torch.testing.assert_close(got, (x0, eps))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_chain_samples_a_gaussian_it_knows(sampler: str) -> None:
    """With the posterior mean of N(m, s^2) as denoiser, samples have that mean and deviation."""
    schedule, m, s = linear_schedule(200), 0.7, 0.4

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a = schedule.alpha_bar[t][:, None]
        return m + a.sqrt() * s**2 / (a * s**2 + 1 - a) * (x - a.sqrt() * m)

    rng = torch.Generator().manual_seed(0)
    out = sample(denoise, normal(4000, 1), schedule, prediction="x0", sampler=sampler, rng=rng)
    assert out.mean().item() == pytest.approx(m, abs=0.03)
    assert out.std().item() == pytest.approx(s, rel=0.05)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), total=st.integers(1, 60))
def test_a_time_grid_has_exactly_its_steps(data: st.DataObject, total: int) -> None:
    steps = data.draw(st.integers(1, total))
    grid = time_grid(total, steps)
    assert grid[0] == 0 and grid[-1] == total and len(grid) == steps + 1
    assert all(a < b for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize("steps", [-1, 0, 21])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=rf"{steps} inference steps .* T = 20"):
        sample(wobble, normal(B, N), SCHEDULES["linear"], steps=steps)


def test_segments_must_divide_the_chain() -> None:
    with pytest.raises(InputError, match=r"T = 20 .* k = 3"):
        sample(wobble, normal(B, N), SCHEDULES["linear"], segments=3)


@pytest.mark.parametrize(
    ("argument", "given_name", "nearest"),
    [("sampler", "dimm", "ddim"), ("sampler", "DDPM ddpm", "ddpm"), ("prediction", "x_0", "x0"),
     ("prediction", "epsilon", "eps")],
)  # fmt: skip
def test_unknown_names_bring_the_nearest(argument: str, given_name: str, nearest: str) -> None:
    names = {argument: given_name}
    with pytest.raises(InputError, match=rf"'{given_name}'[\s\S]*did you mean '{nearest}'"):
        sample(wobble, normal(B, N), SCHEDULES["linear"], **names)  # type: ignore[arg-type]


THEIR_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def their_chain(
    kind: str, schedule: Schedule, prediction: str, start: Tensor, steps: int,
    stepper: Callable[..., Tensor],
) -> dict[int, Tensor]:  # fmt: skip
    """Run diffusers' scheduler over our denoiser, time reversed: theirs is T - 1 - t."""
    diffusers = pytest.importorskip("diffusers", reason="the witness of the published steps")
    total = schedule.steps
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=total, trained_betas=(1 - schedule.alpha.double()).flip(0).numpy(),
        prediction_type=THEIR_PREDICTION[prediction], clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    x, states = start, {}
    for tau in scheduler.timesteps:
        t = total - 1 - tau
        x = stepper(scheduler, wobble(x, t.expand(len(x))), tau, x)
        states[int(t) + total // steps] = x
    return states


def check_chains(ours: Chain, theirs: dict[int, Tensor]) -> None:
    assert list(ours.x) == list(theirs)
    for t, x in theirs.items():
        torch.testing.assert_close(ours.x[t], x, rtol=1e-3, atol=1e-3)  # float32 alphas


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [20, 5])
def test_ddim_is_the_ddim_of_diffusers(name: str, prediction: str, steps: int) -> None:
    schedule, start, chain = SCHEDULES[name], normal(B, N), Chain()
    theirs = their_chain(
        "DDIMScheduler", schedule, prediction, start, steps,
        lambda s, out, tau, x: s.step(out, tau, x, eta=0.0).prev_sample,
    )  # fmt: skip
    sample(wobble, start, schedule, prediction=prediction, steps=steps, callback=chain)
    check_chains(chain, theirs)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [20, 5])
def test_ddpm_is_the_ddpm_of_diffusers_with_its_noise(
    name: str, prediction: str, steps: int
) -> None:
    """The same generator feeds both, so the noise and its variance agree as well."""
    schedule, start, chain = SCHEDULES[name], normal(B, N).float(), Chain()
    rng = torch.Generator().manual_seed(5)
    theirs = their_chain(
        "DDPMScheduler", schedule, prediction, start, steps,
        lambda s, out, tau, x: s.step(out, tau, x, generator=rng).prev_sample,
    )  # fmt: skip
    sample(
        wobble, start, schedule, prediction=prediction, steps=steps, sampler="ddpm",
        rng=torch.Generator().manual_seed(5), callback=chain,
    )  # fmt: skip
    check_chains(chain, theirs)
