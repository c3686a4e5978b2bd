"""The training targets of all objectives (design section 2), in one place.

Every objective answers three questions: which weight is the target (theta_M or a local target
theta_id), which chain makes the noise (the global one or the shorter one that ends at iT/k), and
how much a residual counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.diffusion.schedule import Schedule
from ltdi.errors import unknown


@dataclass(frozen=True)
class Draw:
    """One noised training example per task.

    Attributes:
        x_t: [B, n] noised weights.
        t: [B] diffusion step, 0 <= t < T.
        signal: [B] share of the target in x_t, the root of the chain's own abar.
        stage: [B] i/k of the target theta_id.
        target: [B, n] what the denoiser should return.
        weight: [B] factor of the squared residual.
    """

    x_t: Tensor
    t: Tensor
    signal: Tensor
    stage: Tensor
    target: Tensor
    weight: Tensor

    def residual(self, prediction: Tensor) -> Tensor:
        """[B, n] weighted residual, whose square is the loss."""
        return self.weight.sqrt().unsqueeze(-1) * (prediction - self.target)


@dataclass(frozen=True)
class Plan:
    """What an objective draws for each of B tasks.

    Attributes:
        target: [B] i in 1..k of the target theta_id.
        t: [B] step.
        end: [B] where the chain ends whose noise is added.
        weighted: Whether a residual counts by the noise of that chain.
    """

    target: Tensor
    t: Tensor
    end: Tensor
    weighted: bool


def _vanilla(batch: int, k: int, schedule: Schedule, rng: torch.Generator) -> Plan:
    """Mv-Di, as in OCD, p-diff and D2NWG: only theta_M, t uniform in [0, T)."""
    # Draws i as well, so that one seed gives both the same t and eps.
    plan = _naive(batch, k, schedule, rng)
    return Plan(torch.full((batch,), k), plan.t, plan.end, weighted=False)


def _naive(batch: int, k: int, schedule: Schedule, rng: torch.Generator) -> Plan:
    """Tw-Di: any local target, on the global chain."""
    i = _uniform(torch.full((batch,), k), rng) + 1
    end = torch.full((batch,), schedule.steps)
    return Plan(i, _uniform(end, rng), end, weighted=False)


def _trajectory(batch: int, k: int, schedule: Schedule, rng: torch.Generator) -> Plan:
    """Lt-Di: theta_id at the end of its own chain, i in 1..k, t uniform in [0, iT/k)."""
    i = _uniform(torch.full((batch,), k), rng) + 1
    end = i * schedule.segment_length(k)
    return Plan(i, _uniform(end, rng), end, weighted=True)


def _matched(batch: int, k: int, schedule: Schedule, rng: torch.Generator) -> Plan:
    """The control for `trajectory`: its weighting and its t, but only the global target."""
    plan = _trajectory(batch, k, schedule, rng)
    last = torch.full((batch,), k)
    return Plan(last, plan.t, torch.full((batch,), schedule.steps), weighted=True)


OBJECTIVES: dict[str, Callable[[int, int, Schedule, torch.Generator], Plan]] = {
    "vanilla": _vanilla,
    "naive": _naive,
    "trajectory": _trajectory,
    "matched": _matched,
}
PREDICTIONS = ("eps", "x0", "v")


def draw(
    objective: str,
    trajectory: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    first: float = 0.0,
    rng: torch.Generator,
) -> Draw:
    """Noise one target of every task.

    With a_i = abar^i_t and a = abar_t, x_t = sqrt(a_i) theta_id + sqrt(1 - a_i) eps. For
    eps-prediction the loss |sqrt(1 - a_i) f - sqrt(1 - a) eps|^2 is that of a target
    sqrt((1 - a) / (1 - a_i)) eps with weight 1 - a_i: with such an f the global DDPM step is the
    step of the local chain. x0- and v-prediction aim at the local chain directly, with weight one.

    Args:
        objective: One of `OBJECTIVES`.
        trajectory: [B, k, n] normalised local targets theta_d .. theta_M.
        schedule: The global chain.
        prediction: "eps", "x0" or "v".
        first: Share of the tasks whose t is 0 whatever was drawn: the step that a chain of one
            step consists of.
        rng: Source of i, t and eps, on the CPU.

    Raises:
        InputError: If a name is unknown, or k does not divide T where chains are split.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    batch, k, n = trajectory.shape
    plan = OBJECTIVES[objective](batch, k, schedule, rng)
    eps = torch.randn(batch, n, generator=rng).to(trajectory)
    if first > 0:
        at_first = torch.rand(batch, generator=rng) < first
        plan = replace(plan, t=plan.t.masked_fill(at_first, 0))
    theta = trajectory[torch.arange(batch), plan.target - 1]
    a_local = schedule.alpha_bar_local(plan.t, plan.end)
    a_global = schedule.alpha_bar_local(plan.t, torch.full_like(plan.t, schedule.steps))
    signal, noise = a_local.sqrt()[:, None], (1 - a_local).sqrt()[:, None]
    x_t = signal * theta + noise * eps
    weight = torch.ones(batch)
    if prediction == "eps":
        target = ((1 - a_global) / (1 - a_local)).sqrt()[:, None] * eps
        weight = 1 - a_local if plan.weighted else weight
    elif prediction == "x0":
        target = theta
    else:
        target = signal * eps - noise * theta
    return Draw(x_t, plan.t, signal.squeeze(1), plan.target / k, target, weight)


def _uniform(below: Tensor, rng: torch.Generator) -> Tensor:
    """Integers uniform in [0, below), elementwise."""
    u = torch.rand(below.shape, generator=rng, dtype=torch.float64)
    return (u * below).long().clamp(max=below - 1)
