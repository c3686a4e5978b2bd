"""`ltdi.samples`: checkpoints, nets drawn around their centres, and what plain generators draw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi.baselines.samples import plain_samples
from ltdi.data import ImageSet
from ltdi.errors import InputError
from ltdi.generator import SampleGenerator
from ltdi.nets import NetConfig
from ltdi.recipe import named_recipe
from ltdi.samples import (
    Checkpoints,
    Lessons,
    Trainings,
    chosen_sampler,
    collect_checkpoints,
    descended,
    train_nets,
    train_sampler,
)
from ltdi.tracks.checkpoints import PRESETS

TRAININGS = Trainings(NetConfig(1, 12, (4, 8), (5, 3), (2, 2)), 2, 40, 4, 8)
SMOKE = PRESETS["smoke"].recipe
RECIPE = replace(
    SMOKE,
    network=replace(SMOKE.network, width=16, heads=2),
    meta=replace(SMOKE.meta, iterations=6, tasks=4, warmup=1),
)

WEIGHTS = replace(RECIPE, diffusion=replace(RECIPE.diffusion, loss="weight", plus_weight=0.0))


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


def told(zoo: Checkpoints) -> tuple[torch.Tensor, torch.Tensor]:
    return Lessons(zoo).draw(torch.Generator().manual_seed(8), 400)


def missed(zoo: Checkpoints, theta: torch.Tensor) -> float:
    """Mean cross entropy of nets [E, n] with what is wanted."""
    images, wanted = told(zoo)
    given = torch.stack([zoo.host.predict(t, images, zoo.space) for t in theta])
    return float(-(wanted * given.log_softmax(-1)).sum(-1).mean())


def test_lessons_want_the_label_and_the_vote_on_images_that_are_new(zoo: Checkpoints):
    images, wanted = told(zoo)
    known, labels = zoo.taught
    assert len(known) == len(zoo.labels) - zoo.valid and torch.equal(
        known, zoo.images[: len(known)]
    )
    gap = torch.cdist(images.flatten(1), known.flatten(1))
    assert float(gap.min()) > 1e-3
    vote = torch.stack([zoo.host.predict(c, images, zoo.space) for c in zoo.centres()])
    rest = wanted - vote.softmax(-1).mean(0) / 2
    torch.testing.assert_close(rest.max(1).values, torch.full((400,), 0.5))
    torch.testing.assert_close(rest.sum(1), torch.full((400,), 0.5))
    # Half of what is wanted is what the trainings were told, right or wrong.
    wrong = replace(zoo, taught=(known, (labels + 1) % 4))
    turned = told(wrong)[1] - vote.softmax(-1).mean(0) / 2
    assert torch.equal(turned.argmax(1), (rest.argmax(1) + 1) % 4)


def test_centres_move_under_the_loss_in_function_space_alone(zoo: Checkpoints):
    still = train_sampler(zoo, WEIGHTS, lambda *_: None)
    assert torch.equal(still.centres(1.0), zoo.centres())
    longer = replace(RECIPE, meta=replace(RECIPE.meta, iterations=40, meta_lr=1e-3))
    made = train_sampler(zoo, longer, lambda *_: None)
    # A training's centre moves as one, at every local target.
    moves = made.centres(1.0) - zoo.centres()
    torch.testing.assert_close(made.centres(0.5) - zoo.path()[1], moves, rtol=1e-3, atol=1e-6)
    assert missed(zoo, made.centres(1.0)) < 0.98 * missed(zoo, zoo.centres())
    assert missed(zoo, made.draws(20, seed=1)) < 0.98 * missed(zoo, still.draws(20, seed=1))
    with pytest.raises(InputError, match="'function' is that of linear heads"):
        wrong = replace(RECIPE, diffusion=replace(WEIGHTS.diffusion, loss="function"))
        train_sampler(zoo, wrong, lambda *_: None)


def test_gradient_descent_from_the_centres_learns_the_same(zoo: Checkpoints):
    rng = torch.Generator().manual_seed(0)
    theta, scores = descended(zoo, 60, rng, rates=(1e-6, 5e-3))
    assert theta.shape == zoo.centres().shape and list(scores) == [1e-6, 5e-3]
    fast = descended(zoo, 60, rng, rates=(5e-3,))[0]
    assert missed(zoo, fast) < 0.98 * missed(zoo, zoo.centres())
    slow = descended(zoo, 60, rng, rates=(1e-6,))[0]
    torch.testing.assert_close(slow, zoo.centres(), rtol=0, atol=1e-4)
    around = plain_samples("average-run", zoo, 8, rng, 0.5, centres=fast)
    assert float(torch.cdist(around, fast).min(1).values.max()) < 1e-6


def test_the_temperature_is_the_highest_that_is_as_good_as_the_checkpoints(
    zoo: Checkpoints, monkeypatch: pytest.MonkeyPatch
):
    made = train_sampler(zoo, RECIPE, lambda *_: None)
    right = dict(zip((1.0, 0.7, 0.5, 0.3), (0.4, 0.6, 0.9, 0.8), strict=True))
    monkeypatch.setattr(
        SampleGenerator, "draws", lambda _, count, **options: right[options["temperature"]]
    )
    bars = [0.1, 0.2, 0.3, 0.5]
    judge(monkeypatch, zoo, bars)

    def chosen(temperature: float | None = None) -> float:
        return chosen_sampler(made, zoo, temperature)[0].parts.sampling.temperature

    assert chosen() == 0.7
    bars[-1] = 0.95
    assert chosen() == 0.5
    assert chosen(1.0) == 1.0


def judge(monkeypatch: pytest.MonkeyPatch, zoo: Checkpoints, bars: list[float]) -> None:
    """The accuracy of the zoo at each local target is that of `bars`, and of a number itself."""

    def accuracy(_: Checkpoints, theta: torch.Tensor | float) -> float:
        if isinstance(theta, float):
            return theta
        return next(b for i, b in enumerate(bars) if torch.equal(theta, zoo.theta[:, i]))

    monkeypatch.setattr("ltdi.samples.choice.valid_accuracy", accuracy)


def test_a_chain_ends_where_the_nets_of_the_zoo_are_best(
    zoo: Checkpoints, monkeypatch: pytest.MonkeyPatch
):
    judge(monkeypatch, zoo, [0.4, 0.6, 0.5, 0.3])

    def exits(method: str) -> SampleGenerator:
        made = train_sampler(zoo, named_recipe(method, WEIGHTS), lambda *_: None)
        with monkeypatch.context() as patch:
            patch.setattr(SampleGenerator, "draws", lambda *_, **options: options["temperature"])
            return chosen_sampler(made, zoo, None)[0]

    made = exits("lt-di")
    assert made.parts.sampling.end == 0.5 and made.parts.sampling.steps == 10
    # A control knows the last local target alone.
    for method in ("mv-di", "mv-di-matched", "tw-di"):
        assert exits(method).parts.sampling.end == 1.0
    # A network that adds nothing leaves a training at its mean there, not at its end.
    torch.nn.init.zeros_(made.parts.network.mix.bias)
    torch.nn.init.zeros_(made.parts.network.mix.weight)
    for write in made.parts.network.write:
        torch.nn.init.zeros_(write.weight)
        torch.nn.init.zeros_(write.bias)
    theta = made.draws(2, seed=3)
    torch.testing.assert_close(theta, zoo.path()[1][made.origins(2, 3)])
    assert not torch.allclose(theta, zoo.centres()[made.origins(2, 3)])
    assert torch.equal(made.draws(2, seed=3, end=1.0, steps=1), zoo.centres()[made.origins(2, 3)])


def test_nets_may_be_trained_on_few_images_with_wrong_labels(
    one_task: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def trained(theta: torch.Tensor, steps: int, data: tuple, *_: object) -> torch.Tensor:
        seen.append(data)
        return theta.unsqueeze(1).expand(-1, 4, -1)

    monkeypatch.setattr("ltdi.samples.checkpoints.train_nets", trained)

    def data(**options: float) -> tuple[torch.Tensor, torch.Tensor]:
        trainings = replace(TRAININGS, **options)
        collect_checkpoints(one_task, trainings, RECIPE, seed=0, progress=lambda *_: None)
        return seen[-1]

    images, labels = data()
    few, own = data(images=10)
    assert len(few) == len(own) == 10 and torch.equal(few, images[:10])
    flipped = data(wrong=0.3)[1]
    share = float((flipped != labels).float().mean())
    assert share == pytest.approx(0.3, abs=0.15) and set(flipped.tolist()) <= set(labels.tolist())
    assert torch.equal(data(wrong=1.0)[1] == labels, torch.zeros(len(labels), dtype=torch.bool))
    # All trainings and branches see the same.
    assert all(torch.equal(a[1], b[1]) for a, b in zip(seen[-3:-1], seen[-2:], strict=True))


def test_local_targets_end_equal_parts_of_a_training_of_any_length(zoo: Checkpoints):
    rng = torch.Generator().manual_seed(0)
    data = zoo.images[: -zoo.valid], zoo.labels[: -zoo.valid]
    path = train_nets(zoo.last[:1], 150, data, zoo.host, zoo.space, RECIPE, rng, 3)
    assert path.shape == (1, 3, zoo.space.size)


def test_steps_that_do_not_part_into_segments_are_refused(zoo: Checkpoints):
    data, rng = (zoo.images, zoo.labels), torch.Generator()
    for steps, segments in ((10, 4), (2, 3)):
        with pytest.raises(InputError, match=f"{steps} steps do not part into {segments}"):
            train_nets(zoo.last[:1], steps, data, zoo.host, zoo.space, RECIPE, rng, segments)
