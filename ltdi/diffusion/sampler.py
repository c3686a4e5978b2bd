"""Samplers: from noise at t = 0 to the weight at t = T, with all steps or a strided few."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ltdi.diffusion.objective import PREDICTIONS
from ltdi.diffusion.schedule import Schedule
from ltdi.errors import InputError, unknown

Denoise = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]
_TINY = 1e-12


def to_x0_eps(
    output: Tensor, x: Tensor, alpha_bar: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """The clean weight and the noise that a denoiser's output stands for.

    Args:
        output: [B, n] eps, x0 or v = sqrt(abar) eps - sqrt(1 - abar) x0.
        x: [B, n] the noised weight.
        alpha_bar: Scalar abar of the chain at the current step.
        prediction: Which of the three the output is.
    """
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=_TINY).sqrt()
    if prediction == "eps":
        return (x - noise * output) / signal.clamp(min=_TINY), output
    x0 = output if prediction == "x0" else signal * x - noise * output
    return x0, (x - signal * x0) / noise


def _ddim(x0: Tensor, eps: Tensor, a_t: Tensor, a_s: Tensor, xi: Tensor) -> Tensor:
    """DDIM with eta = 0 (Song et al., 2021, equation 12): the step adds no noise."""
    return a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps


def _ddpm(x0: Tensor, eps: Tensor, a_t: Tensor, a_s: Tensor, xi: Tensor) -> Tensor:
    """Ancestral step (Ho et al., 2020, equations 6 and 7); DDIM with eta = 1."""
    ratio = a_t / a_s
    variance = (1 - a_s) / (1 - a_t).clamp(min=_TINY) * (1 - ratio)
    return a_s.sqrt() * x0 + (1 - a_s - variance).clamp(min=0).sqrt() * eps + variance.sqrt() * xi


SAMPLERS = {"ddim": _ddim, "ddpm": _ddpm}


def time_grid(total: int, steps: int) -> list[int]:
    """Strided times 0 = t_0 < .. < t_steps = T.

    Raises:
        InputError: If steps is not in 1..T.
    """
    if not 1 <= steps <= total:
        raise InputError(
            f"{steps} inference steps are not possible with a chain of T = {total}",
            where="steps",
            fix=f"choose steps between 1 and {total}",
        )
    return [round(j * total / steps) for j in range(steps + 1)]


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    sampler: str = "ddim",
    steps: int | None = None,
    temperature: float = 1.0,
    segments: int = 1,
    end: int | None = None,
    rng: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Run the chain.

    `segments = 1` uses the global schedule, as the paper does. `segments = k` decodes every step
    in the local chain of its segment, so x0 is read as the local target theta_id. With `end`
    below T the chain is the shorter one that ends there, on the local target of t = end.

    Args:
        denoise: f(x [B, n], t [B]) -> [B, n].
        noise: [B, n] standard normal start; scaled by `temperature`.
        schedule: The noise schedule.
        prediction: "eps", "x0" or "v".
        sampler: "ddim" or "ddpm".
        steps: Number of denoising steps, 1..end; all by default.
        temperature: Scale of all noise; 0 is deterministic and the most accurate, 1 diverse.
        segments: k of the local chains, or 1.
        end: Where the chain ends, 1..T; T by default.
        rng: Source of the noise that DDPM adds.
        callback: Called as callback(t, x, x0) after each step, to record the chain.

    Returns:
        [B, n] clean weights.

    Raises:
        InputError: If a name is unknown, or the chain has no such end, steps or segments.
    """
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    total = schedule.steps if end is None else end
    if not 1 <= total <= schedule.steps or (segments > 1 and total < schedule.steps):
        raise InputError(
            f"a chain of T = {schedule.steps} in {segments} segments cannot end at {total}",
            where="end",
            fix="choose an end in 1..T, and one segment for an end below T",
        )
    # A stride may not jump over the end of a local chain.
    grid = {*time_grid(total, total if steps is None else steps)}
    if segments > 1:
        grid |= set(range(0, total, schedule.segment_length(segments)))
    times = sorted(grid)
    x = temperature * noise
    for t, s in pairwise(times):
        now = torch.tensor(t)
        end = int(schedule.segment_end(now, segments)) if segments > 1 else total
        output = denoise(x, now.expand(len(x)).to(x.device))
        if prediction == "x0" and s == end:
            # A chain ends on x0, whatever the sampler.
            x = x0 = output
        elif prediction == "x0" and sampler == "ddim":
            own, kept = schedule.stride(t, s, end)
            x0, x = output, own * output + kept * x
        else:
            last = torch.tensor(end)
            a_t = schedule.alpha_bar_local(now, last).to(x)
            a_s = schedule.alpha_bar_local(torch.tensor(s), last).to(x)
            if prediction == "eps" and (segments > 1 or total < schedule.steps):
                a_global = schedule.alpha_bar[t].to(x)
                output = output * ((1 - a_t) / (1 - a_global)).sqrt()
            x0, eps = to_x0_eps(output, x, a_t, prediction)
            xi = torch.zeros_like(x)
            if sampler == "ddpm" and temperature > 0:
                xi = temperature * torch.randn(x.shape, generator=rng).to(x)
            x = SAMPLERS[sampler](x0, eps, a_t, a_s, xi)
        if callback is not None:
            callback(s, x, x0)
    return x
