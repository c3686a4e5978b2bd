"""`ltdi.samples`: checkpoints, nets drawn around their centres, and what plain generators draw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi.baselines.samples import plain_samples
from ltdi.data import ImageSet
from ltdi.generator import SampleGenerator
from ltdi.nets import NetConfig
from ltdi.samples import Checkpoints, Trainings, chosen_sampler, collect_checkpoints, train_sampler
from ltdi.tracks.checkpoints import PRESETS

TRAININGS = Trainings(NetConfig(1, 12, (4, 8), (5, 3), (2, 2)), 2, 40, 4, 8)
SMOKE = PRESETS["smoke"].recipe
RECIPE = replace(
    SMOKE,
    network=replace(SMOKE.network, width=16, heads=2),
    meta=replace(SMOKE.meta, iterations=6, tasks=4, warmup=1),
)


@pytest.fixture(scope="module")
def zoo(one_task: dict[str, ImageSet]) -> Checkpoints:
    return collect_checkpoints(one_task, TRAININGS, RECIPE, seed=0, progress=lambda *_: None)


def test_branches_go_on_from_the_end_of_their_training(zoo: Checkpoints):
    assert zoo.theta.shape == (8, 4, zoo.space.size) and zoo.run.tolist() == [0] * 4 + [1] * 4
    own = torch.cdist(zoo.last, zoo.last)
    same = zoo.run[:, None] == zoo.run
    apart = ~torch.eye(8, dtype=torch.bool)
    assert float(own[same & apart].max()) < float(own[~same].min())
    assert float(own[same & apart].min()) > 0
    # Later local targets have moved further from where the branches part.
    first = torch.cdist(zoo.theta[:4, 0], zoo.theta[:4, 0]).max()
    assert float(own[:4, :4].max()) > float(first)


def test_plain_generators_are_what_they_say(zoo: Checkpoints):
    def made(name: str, count: int = 400) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        return plain_samples(name, zoo, count, rng, 0.5)

    assert torch.allclose(made("average"), zoo.last.mean(0))
    own = torch.stack([zoo.last[:4].mean(0), zoo.last[4:].mean(0)])
    apart = (made("average-run")[:, None] - own).norm(dim=-1)
    assert float(apart.min(1).values.max()) < 1e-4
    gap = torch.cdist(made("noise"), zoo.last).min(1).values
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5), rtol=0.02, atol=1e-3)
    near = made("gaussian-run")
    which = (near[:, None] - own).norm(dim=-1).argmin(1)
    assert set(which.tolist()) == {0, 1}
    torch.testing.assert_close((near - own[which]).std(0), zoo.spread(), rtol=0.3, atol=1e-3)
    gaussian = made("gaussian")
    torch.testing.assert_close(gaussian.std(0), zoo.last.std(0), rtol=0.3, atol=1e-3)
    full = made("gaussian-full")
    basis = torch.linalg.svd(zoo.last - zoo.last.mean(0), full_matrices=False)[2][:7]
    inside = (full - zoo.last.mean(0)) @ basis.T @ basis
    torch.testing.assert_close(inside, full - zoo.last.mean(0), rtol=1e-2, atol=1e-3)


def test_nets_are_drawn_around_the_centres_of_all_trainings(zoo: Checkpoints):
    made = train_sampler(zoo, RECIPE, lambda *_: None)
    theta = made.draws(6, seed=3, temperature=0.3)
    apart = torch.cdist(theta, zoo.centres())
    assert apart.argmin(1).tolist() == made.origins(6, 3).tolist()
    assert apart.argmin(1).bincount().tolist() == [3, 3]
    assert float(apart.min(1).values.max()) < 0.5 * float(torch.cdist(*[zoo.centres()] * 2).max())
    assert {int(made.origins(1, seed)) for seed in range(20)} == {0, 1}


def test_the_temperature_is_the_highest_that_is_as_good_as_the_checkpoints(
    zoo: Checkpoints, monkeypatch: pytest.MonkeyPatch
):
    made = train_sampler(zoo, RECIPE, lambda *_: None)
    right = dict(zip((1.0, 0.7, 0.5, 0.3), (0.4, 0.6, 0.9, 0.8), strict=True))

    class Known(SampleGenerator):
        def draws(self, count: int, **options: float) -> float:
            return right[options["temperature"]]

    images = zoo.validation()[0]
    told = {id(zoo.last): 0.5}

    def predicted(theta: object, *_: object) -> torch.Tensor:
        value = theta if isinstance(theta, float) else told[bar]
        return torch.where(torch.arange(1000) < 1000 * value, 0, 1)

    bar = id(zoo.last)
    monkeypatch.setattr(Checkpoints, "last", property(lambda _: "checkpoints"))
    monkeypatch.setattr("ltdi.samples.predictions", predicted)
    monkeypatch.setattr(
        Checkpoints, "validation", lambda _: (images, torch.zeros(1000, dtype=torch.long))
    )
    assert chosen_sampler(Known(made.parts), zoo, None)[0].parts.sampling.temperature == 0.7
    told[bar] = 0.95
    assert chosen_sampler(Known(made.parts), zoo, None)[0].parts.sampling.temperature == 0.5
    assert chosen_sampler(Known(made.parts), zoo, 1.0)[0].parts.sampling.temperature == 1.0
