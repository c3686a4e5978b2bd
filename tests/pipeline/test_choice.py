"""`ltdi.pipeline.choice`: the fewest steps that reach the lowest validation loss within noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltdi.evaluate import negative_log_likelihood
from ltdi.pipeline.choice import Trial, choose_among
from ltdi.recipe import Network, Recipe

RECIPE = Recipe(network=Network(kind="transformer"))
EPISODES, WAY = 60, 3


def trial(gain: float, noise: float):
    """Tasks whose logits get better by `gain` with ten steps, in the mean and with noise."""
    rng = torch.Generator().manual_seed(0)
    each = noise * torch.randn(EPISODES, 1, generator=rng)

    def weights(*, strength: float, steps: int = 1, end: float = 1.0, sharpness: float) -> Tensor:
        moved = strength * (1.0 + (gain + each if steps == 10 else 0.0))
        return torch.zeros(EPISODES, 1) + moved

    def judge(theta: Tensor) -> Tensor:
        return theta.view(-1, 1, 1, 1) * torch.eye(WAY)[:, None].expand(EPISODES, WAY, 4, WAY)

    return weights, judge


@pytest.mark.parametrize(
    ("gain", "noise", "steps"), [(0.5, 0.1, 10), (0.05, 3.0, 1), (0.0, 0.0, 1), (-0.5, 0.1, 1)]
)
def test_more_steps_must_be_worth_more_than_their_interval(gain: float, noise: float, steps: int):
    sampling, scores = choose_among([trial(gain, noise)], RECIPE)
    assert sampling.steps == steps and sampling.strength == 1.0
    assert "end 1.00, 10 steps, strength 0.25" in scores


def test_a_gain_without_noise_is_taken_however_small():
    sampling, _ = choose_among([trial(0.05, 0.0)], RECIPE)
    assert sampling.steps == 10
    both, _ = choose_among([trial(0.05, 0.0), trial(-0.5, 0.0)], RECIPE)
    assert both.steps != 10


def test_the_temperature_is_the_best_one_not_the_nearest_candidate():
    """Two kinds of tasks, both over-confident by a factor that lies between two candidates."""
    rng = torch.Generator().manual_seed(0)
    factor = 1 / 1.04

    def judged(queries: int) -> Trial:
        logits = torch.randn(EPISODES, WAY, queries, WAY, generator=rng)
        uniform = torch.rand(logits.shape, generator=rng).clamp_min(1e-9)
        label = (factor * logits - (-uniform.log()).log()).argmax(-1, keepdim=True)
        # Classes are turned until the label of a query is its own.
        own = torch.arange(WAY).view(1, -1, 1, 1)
        turned = logits.gather(-1, (torch.arange(WAY) + label - own) % WAY)
        return lambda strength, sharpness, **_: torch.full((EPISODES, 1), sharpness), (
            lambda theta: theta.view(-1, 1, 1, 1) * turned
        )

    trials = [judged(20), judged(30)]
    found, _ = choose_among(trials, RECIPE)

    def nll(sharpness: float) -> float:
        theta = torch.full((EPISODES, 1), sharpness)
        return sum(float(negative_log_likelihood(judge(theta)).mean()) for _, judge in trials)

    least = min((0.5 * 1.005**i for i in range(280)), key=nll)
    assert found.sharpness == pytest.approx(least, rel=0.01)
