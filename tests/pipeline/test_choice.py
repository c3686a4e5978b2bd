"""`ltdi.pipeline.choice`: the fewest steps that reach the lowest validation loss within noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltdi.evaluate import negative_log_likelihood
from ltdi.generator import HeadGenerator
from ltdi.pipeline.choice import Trial, choose_among, choose_sampling
from ltdi.recipe import Network, Recipe, Sampling
from ltdi.tasks import FeatureBank
from tests.pipeline.made import Train

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


def test_sampling_is_chosen_on_valid_by_nll(
    whole: HeadGenerator, valid: FeatureBank, recipe: Recipe
):
    sampling, scores = choose_sampling(whole, valid, recipe)
    named = f"end {sampling.end:.2f}, {sampling.steps} steps, strength {sampling.strength}"
    as_few = [nll for name, nll in scores.items() if f" {sampling.steps} steps" in name]
    assert scores[named] == min(as_few) < min(scores.values()) + 0.01
    assert whole.parts.sampling == sampling and sampling.temperature == 0


def test_the_choice_of_a_sampling_does_not_depend_on_an_earlier_one(
    whole: HeadGenerator, valid: FeatureBank, recipe: Recipe
):
    parts = replace(whole.parts, sampling=Sampling(steps=3, strength=0.5, sharpness=1.7))
    other = HeadGenerator(parts)
    assert choose_sampling(other, valid, recipe) == choose_sampling(whole, valid, recipe)


def test_every_local_target_that_the_network_knows_is_a_candidate(run: Train, recipe: Recipe):
    def ends(changed: Recipe) -> set[str]:
        scores = run(changed=changed).parts.about["validation NLL"]
        return {name.partition(",")[0] for name in scores}

    short = replace(recipe, meta=replace(recipe.meta, iterations=1))
    assert ends(short) == {f"end {i / 4:.2f}" for i in range(1, 5)}
    # Neither the global target alone nor another network is told which target is asked for.
    vanilla = replace(short, diffusion=replace(short.diffusion, objective="vanilla"))
    transformer = replace(short, network=replace(short.network, kind="transformer"))
    assert ends(vanilla) == ends(transformer) == {"end 1.00"}


def test_a_noisy_recipe_keeps_its_sampling(run: Train, recipe: Recipe):
    noisy = replace(recipe, sampling=Sampling(steps=7, temperature=0.5))
    assert run(changed=noisy).parts.sampling == noisy.sampling
