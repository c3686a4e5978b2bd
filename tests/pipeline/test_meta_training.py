"""`ltdi.pipeline.meta_training`: a run that was resumed is one that was not; sampling is chosen."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.errors import MismatchError
from ltdi.generator import HeadGenerator
from ltdi.pipeline import (
    HeadObjective,
)
from ltdi.pipeline.choice import choose_sampling
from ltdi.recipe import Recipe, Sampling
from ltdi.tasks import FeatureBank
from tests.pipeline.made import Train, same, tensors


def test_training_is_fixed_by_its_seed(run: Train, whole: HeadGenerator, recipe: Recipe):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(tensors(run()), tensors(whole))
    assert torch.equal(torch.get_rng_state(), state)
    other = run(changed=replace(recipe, meta=replace(recipe.meta, seed=1)))
    assert not same(tensors(other), tensors(whole))


@pytest.mark.parametrize("at", [3, 5, 11])
def test_resumed_training_equals_an_uninterrupted_one(
    run: Train, whole: HeadGenerator, tmp_path: Path, at: int
):
    def stop(stage: str, done: int, total: int, text: str) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "g", progress=stop)
    steps: list[int] = []
    resumed = run(tmp_path / "g", progress=lambda stage, done, total, text: steps.append(done))
    assert steps == list(range(at + 1, 13))
    assert same(tensors(resumed), tensors(whole))
    assert resumed.parts.sampling == whole.parts.sampling


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_within_an_iteration_resumes_exactly(
    run: Train, whole: HeadGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The signal comes after random numbers were drawn, before the step is counted."""
    drawn, original = [], HeadObjective.draw

    def draw(self: HeadObjective, rng: torch.Generator, tasks: int):
        drawn.append(tasks)
        out = original(self, rng, tasks)
        if len(drawn) == 20:
            signal.raise_signal(signal.SIGINT)
        return out

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(HeadObjective, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "g")
    assert len(drawn) < 36  # it did stop
    assert signal.getsignal(signal.SIGINT) is handler
    assert same(tensors(run(tmp_path / "g")), tensors(whole))


def test_training_works_in_a_thread(run: Train, whole: HeadGenerator):
    made: list[HeadGenerator] = []
    thread = threading.Thread(target=lambda: made.append(run()))
    thread.start()
    thread.join()
    assert same(tensors(made[0]), tensors(whole))


def test_a_checkpoint_of_other_settings_is_refused(run: Train, tmp_path: Path, recipe: Recipe):
    run(tmp_path / "g")
    for changed in (
        replace(recipe, meta=replace(recipe.meta, inner_lr=0.1)),
        replace(recipe, diffusion=replace(recipe.diffusion, objective="vanilla")),
        replace(recipe, network=replace(recipe.network, width=32)),
    ):
        with pytest.raises(MismatchError, match="other settings"):
            run(tmp_path / "g", changed)


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
