"""`ltdi.pipeline.training`: all networks train, and a run that was resumed is one that was not."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltdi.engine import Runtime
from ltdi.errors import MismatchError
from ltdi.generator import HeadGenerator
from ltdi.parts import build_network
from ltdi.pipeline import (
    HeadCollection,
    HeadObjective,
    collecting,
    objective,
    shared,
    train_generator,
    training,
)
from ltdi.recipe import Network, Recipe
from ltdi.zoo import Zoo
from tests.pipeline.made import WIDTH, Train, same, tensors


def test_training_lowers_its_loss(run: Train, recipe: Recipe, zoo: Zoo):
    longer = replace(recipe, meta=replace(recipe.meta, iterations=60, meta_lr=3e-3))
    parts = run(changed=longer).parts
    network = build_network(zoo.space, WIDTH, parts.shape, parts.diffusion)
    network.load_state_dict({**network.state_dict(), "unit": parts.normaliser.std})
    losses = []
    for net in (network, parts.network):
        objective = HeadObjective(HeadCollection(zoo), net, parts.normaliser, longer.diffusion)
        rng = torch.Generator().manual_seed(5)
        params = {name: p.detach() for name, p in net.named_parameters()}
        losses.append(sum(float(objective(params, objective.draw(rng, 8))) for _ in range(60)))
    assert losses[1] < 0.9 * losses[0]


def test_training_sees_tasks_from_where_they_were_solved(
    whole: HeadGenerator, zoo: Zoo, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    """The anchor of a batch is that of its support: both lie in the frame, from the task's mean."""
    data, parts = HeadCollection(zoo), whole.parts
    objective = HeadObjective(data, parts.network, parts.normaliser, recipe.diffusion)
    between = torch.stack([f.between for f in data.frames])
    rng, moved, features = torch.Generator().manual_seed(0), 0.0, objective.features
    read: list[Tensor] = []  # the query and the support of a batch, in any order, in their frame
    monkeypatch.setattr(
        objective, "features", lambda *of: read.append(features(*of)) or features(*of)
    )
    for _ in range(8):
        read.clear()
        batch = objective.draw(rng, 4)
        raw = {x.flatten(1, 2).shape: x.flatten(1, 2) for x in read}
        shift = {
            name: raw[batch[name].flatten(1, -2).shape] - batch[name].flatten(1, -2)
            for name in ("support", "query")
        }
        # All that a task shows was moved by as much.
        for part in shift.values():
            torch.testing.assert_close(part, shift["support"][:, :1].expand_as(part))
        support, mask = batch["support"], torch.ones(batch["support"].shape[:3])
        number = int((between - batch["between"][0]).abs().sum(1).argmin())
        fold, space = data.fold(number), objective.spaces[support.shape[1]]
        torch.testing.assert_close(batch["anchor"], fold.anchor.local(support, mask, space))
        # Nothing of the mean is left to move: the second look finds less than the first.
        moved = max(moved, float(data.origin(number, support).abs().max()))
    everywhere = data.origin(0, data.frames[0].enter(data.bank.features[:24].view(2, 3, 4, -1)))
    assert moved < float(everywhere.abs().max())


def test_every_objective_prediction_and_network_trains(run: Train, recipe: Recipe, train):
    short = replace(recipe, meta=replace(recipe.meta, iterations=2))
    changes = [
        ("equivariant", {"objective": "vanilla"}),
        ("equivariant", {"objective": "naive", "loss": "weight"}),
        ("transformer", {"objective": "trajectory"}),
        ("transformer", {"objective": "naive", "prediction": "v", "loss": "function"}),
        ("transformer", {"objective": "matched", "prediction": "eps", "loss": "weight"}),
    ]
    for kind, change in changes:
        diffusion = replace(short.diffusion, **change)
        network = replace(short.network, kind=kind)
        made = run(changed=replace(short, diffusion=diffusion, network=network))
        support = train.features[:24].view(1, 3, 8, WIDTH)[:, :, :2]
        assert made.weights(support).isfinite().all()


def test_a_unet_serves_one_way_and_says_so(run: Train, recipe: Recipe):
    with pytest.raises(MismatchError, match="3-way weights, the task has 4 classes"):
        run(changed=replace(recipe, network=Network("unet", 16, 1)))


def test_pipeline_has_no_state_of_its_own():
    """Nothing is remembered between runs but on disk."""
    for module in (collecting, objective, shared, training):
        held = {k for k, v in vars(module).items() if isinstance(v, (list, dict, set))}
        assert held <= {"__builtins__", "__annotations__"} | {"LOSSES"}


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


def test_a_checkpoint_belongs_to_its_anchor(
    run: Train, tmp_path: Path, zoo: Zoo, backbone, recipe: Recipe
):
    """A zoo that was collected anew, with other classes or another origin, is trained anew."""
    run(tmp_path / "g")
    other, unmoved = HeadCollection(zoo), HeadCollection(zoo)
    other.anchor.scale *= 2  # type: ignore[operator]
    unmoved.anchor.own_mean = False
    for data in (other, unmoved):
        with pytest.raises(MismatchError, match="other settings"):
            train_generator(data, backbone, recipe, runtime=Runtime(tmp_path / "g"))
