"""Noise schedules. Time runs from t = 0 (pure noise) to t = T (the clean weight)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ltdi.errors import InputError, unknown


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of one diffusion chain.

    Attributes:
        alpha: [T] alpha_j of the step from t = j to t = j + 1.
    """

    alpha: Tensor

    @property
    def steps(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.alpha)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """[T + 1] abar_t = prod_{j=t}^{T-1} alpha_j, in double precision; abar_T = 1."""
        tail = self.alpha.double().flip(0).cumprod(0).flip(0)
        return torch.cat([tail, tail.new_ones(1)])

    @cached_property
    def _numbers(self) -> list[float]:
        numbers: list[float] = self.alpha_bar.tolist()
        return numbers

    def stride(self, t: int, s: int, end: int) -> tuple[float, float]:
        """Shares of x0 and of x_t in x_s, by DDIM in the chain that ends at step `end`.

        From eps = (x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t) and
        x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s) eps.
        """
        a_t, a_s = (self._numbers[j] / self._numbers[end] for j in (t, s))
        kept = math.sqrt((1 - a_s) / max(1 - a_t, 1e-12))
        return math.sqrt(a_s) - kept * math.sqrt(a_t), kept

    def alpha_bar_local(self, t: Tensor, end: Tensor) -> Tensor:
        """abar^i_t = prod_{j=t}^{end-1} alpha_j of the shorter chain that ends at step `end`.

        Args:
            t: Steps, any shape, 0 <= t <= end.
            end: iT/k, the same shape.
        """
        alpha_bar = self.alpha_bar.to(t.device)
        return (alpha_bar[t] / alpha_bar[end]).float()

    def segment_end(self, t: Tensor, segments: int) -> Tensor:
        """iT/k of the segment that holds the step from t to t + 1."""
        length = self.segment_length(segments)
        return (t.div(length, rounding_mode="floor") + 1).clamp(max=segments) * length

    def segment_length(self, segments: int) -> int:
        """T/k.

        Raises:
            InputError: If k does not divide T.
        """
        if segments < 1 or self.steps % segments:
            raise InputError(
                f"steps T = {self.steps} cannot be split into k = {segments} equal segments",
                where="diffusion.steps and segments",
                fix="choose T as a multiple of k",
            )
        return self.steps // segments


def linear_schedule(steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """Linear betas (Ho et al., 2020), stretched so that any T ends in noise as T = 1000 does."""
    grow = 1000 / steps
    beta = torch.linspace(beta_max * grow, beta_min * grow, steps, dtype=torch.float64)
    return Schedule((1 - beta.clamp(max=0.999)).float())


def cosine_schedule(steps: int, offset: float = 0.008) -> Schedule:
    """Squared-cosine schedule (Nichol and Dhariwal, 2021, equation 17)."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = ((u + offset) / (1 + offset) * math.pi / 2).cos().square()
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return Schedule((1 - beta.clamp(max=0.999)).flip(0).float())


_SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
}


def make_schedule(name: str, steps: int) -> Schedule:
    """The schedule called `name` with T = `steps`.

    Raises:
        InputError: If the name is unknown or steps < 1.
    """
    if name not in _SCHEDULES:
        raise unknown("schedule", name, _SCHEDULES)
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}", fix="give T >= 1")
    return _SCHEDULES[name](steps)
