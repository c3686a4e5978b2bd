"""The track of checkpoints: what each plain generator is, and what novelty measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.baselines.samples import plain_samples
from ltdi.data import ImageSet
from ltdi.errors import InputError
from ltdi.generator import Generator, SampleGenerator
from ltdi.nets import NetConfig
from ltdi.samples import Checkpoints, Trainings, chosen_sampler, collect_checkpoints, train_sampler
from ltdi.tracks import checkpoints as track

NET = NetConfig(1, 12, (4, 8), (5, 3), (2, 2))
RECIPE = replace(
    track.PRESETS["smoke"].recipe,
    network=replace(track.PRESETS["smoke"].recipe.network, width=16, heads=2),
    meta=replace(track.PRESETS["smoke"].recipe.meta, iterations=6, tasks=4, warmup=1),
)
TRAININGS = Trainings(NET, 2, 40, 4, 8)
TINY = track.CheckpointPreset(TRAININGS, RECIPE, generated=5, tests=60)


@pytest.fixture(scope="module")
def parts(glyphs: dict[str, ImageSet]) -> dict[str, ImageSet]:
    """One task of four classes: 14 images of each to train on, 6 to test on."""
    whole = glyphs["train"].select(range(4))
    rows = torch.arange(80).view(4, 20)

    def part(which: torch.Tensor) -> ImageSet:
        offsets = torch.arange(5) * which.shape[1]
        return ImageSet("glyphs", whole.images[which.flatten()], offsets, whole.classes)

    return {"train": part(rows[:, :14]), "test": part(rows[:, 14:])}


@pytest.fixture(scope="module")
def zoo(parts: dict[str, ImageSet]) -> Checkpoints:
    return collect_checkpoints(parts, TRAININGS, RECIPE, seed=0, progress=lambda *_: None)


@pytest.fixture(scope="module")
def outcome(parts: dict[str, ImageSet]) -> track.Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltdi.tracks.checkpoints.load_data", lambda *_, **__: parts)
        methods = ("originals", "lt-di", "mv-di", "noise", "average", "gaussian")
        return track.bench("glyphs", methods=methods, preset=TINY)


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


def test_rows_and_novelty(outcome: track.Outcome, tmp_path: Path):
    rows = {r.method: r for r in outcome.result.rows}
    kinds = {n: r.kind for n, r in rows.items()}
    assert kinds["lt-di"] == "ours" and kinds["originals"] == kinds["mv-di"] == "control"
    assert kinds["noise"] == kinds["average"] == kinds["gaussian"] == "peer"
    novelty = outcome.result.settings["novelty"]
    assert set(novelty) == set(rows) and novelty["average"]["spread"] == pytest.approx(0, abs=1e-4)
    # Noise is measured by what is generated.
    assert novelty["noise"]["distance"] == pytest.approx(novelty["lt-di"]["distance"], rel=0.2)
    assert rows["originals"].mean > 0.3
    outcome.publish(tmp_path)
    made = Generator.from_pretrained(tmp_path / "generator")
    assert isinstance(made, SampleGenerator)
    one, three = made.generate(None, seed=1), made.generate(3, seed=1)
    assert one["head.bias"].shape == (1, 4) and three["layers.0.weight"].shape == (3, 4, 1, 5, 5)
    assert not torch.allclose(three["head.weight"][0], three["head.weight"][1])
    with pytest.raises(InputError, match="has no condition: give the number of nets"):
        made.generate((torch.zeros(2, 1, 12, 12), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "smok"}, r"unknown preset 'smok'[\s\S]*'smoke'"),
        ({"methods": ("nois",)}, r"unknown method 'nois'[\s\S]*'noise'"),
        ({"dataset": "glyphs"}, "no training and test images of the same classes"),
    ],
)
def test_what_cannot_be(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        track.bench(**options)
