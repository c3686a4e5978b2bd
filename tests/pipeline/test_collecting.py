"""`ltdi.pipeline.collecting`: a zoo of several runs is that of one; no anchor knows its tasks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltdi.anchor import Anchor
from ltdi.errors import InputError, MismatchError
from ltdi.files import read_tensors
from ltdi.pipeline import HeadCollection, begin_zoo, collecting, make_anchor, make_folds, solve
from ltdi.recipe import Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.zoo import FRAMES, Zoo
from tests.pipeline.made import ITEMS, WIDTH, same
from tests.zoo.made import load


def test_the_zoo_has_what_the_recipe_says(zoo: Zoo, recipe: Recipe):
    groups = {(g.way, g.shot, int(g.frame[0])): g for g in load(zoo)}
    settings = [(3, 1), (3, 2), (4, 1), (4, 2)]
    assert sorted(groups) == [(*s, fold) for s in settings for fold in range(3)]
    for (way, shot, fold), g in groups.items():
        assert len(g) == 4 and g.theta.shape == (4, 4, way * (WIDTH + 1))
        assert g.support.shape == (4, way, shot) and g.query.shape == (4, way, 4)
        assert (g.frame == fold).all()
    assert len(zoo.frames()) == 3
    assert zoo.about["backbone"] and zoo.about["anchor"] == "gaussian"


@pytest.mark.parametrize("after", [5, 23])
def test_a_zoo_of_two_runs_equals_one_of_one(
    zoo: Zoo, tmp_path, train, valid, backbone, recipe, after: int
):
    anchor = make_anchor(recipe, train, valid)

    def stop(stage: str, done: int, total: int, text: str) -> None:
        assert total == 48
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_zoo(tmp_path / "z", train, anchor, recipe, backbone).fill(progress=stop)
    begun = len(Zoo.open(tmp_path / "z").shards)
    assert 0 < begun < len(zoo.shards)
    again = begin_zoo(tmp_path / "z", train, anchor, recipe, backbone).fill().zoo
    one, other = Zoo.open(again.path), Zoo.open(zoo.path)
    assert one.header == other.header and one.shards == other.shards
    for a, b in zip(load(again), load(zoo), strict=True):
        assert same(vars(a), vars(b))


@pytest.mark.parametrize("alike", [-1.0, 0.0, 1.0])
def test_a_task_is_solved_against_an_anchor_that_never_saw_its_classes(
    tmp_path, train, valid, backbone, recipe, alike: float
):
    """Followed class by class from the zoo's items back to what each frame was fitted on."""
    recipe = replace(recipe, tasks=replace(recipe.tasks, alike=alike))
    anchor = make_anchor(recipe, train, valid)
    zoo = begin_zoo(tmp_path / "z", train, anchor, recipe, backbone).fill().zoo
    owner = torch.arange(30).repeat_interleave(ITEMS)
    frames, groups = zoo.frames(), load(zoo)
    folds = make_folds(recipe, anchor, train)
    for number, frame in enumerate(frames):
        mine = [g for g in groups if int(g.frame[0]) == number]
        used = torch.cat([owner[torch.cat([g.support, g.query], -1)].flatten() for g in mine])
        held = folds[number].classes
        assert mine and set(used.tolist()) <= set(held.tolist())
        rest = torch.tensor([c for c in range(30) if c not in held.tolist()])
        wanted = anchor.refit(train.select(rest)).frame(WIDTH)
        assert torch.equal(frame.basis, wanted.basis) and torch.equal(frame.mean, wanted.mean)
        # Whatever the held-out classes look like, the frame is the same.
        other = torch.where(torch.isin(owner, held)[:, None], 99.0, train.features)
        blind = anchor.refit(replace(train, features=other).select(rest)).frame(WIDTH)
        assert torch.equal(blind.basis, frame.basis)


def test_anchors_are_those_of_the_frame_and_its_own_fold(zoo: Zoo, train, valid, recipe):
    """What is stored is the fold's anchor on the support, in its frame, from the task's mean."""
    folds = make_folds(recipe, make_anchor(recipe, train, valid), train)
    for g in load(zoo):
        fold, space = folds[int(g.frame[0])], zoo.space.with_way(g.way)
        support = train.features[g.support]
        mask = torch.ones(support.shape[:3])
        origin = fold.anchor.task_mean(fold.frame.enter(support), mask, fold.frame)
        outside = fold.anchor(support, mask, space)
        torch.testing.assert_close(fold.frame.leave(g.anchor, origin), outside)


def test_collecting_again_keeps_the_classes_of_every_fold(
    zoo: Zoo, tmp_path, train, valid, backbone, recipe, monkeypatch
):
    """Even where another machine's rounding would choose other folds."""
    path = Path(shutil.copytree(zoo.path, tmp_path / "z"))
    lost = path / f"{zoo.shards[-1]['name']}.safetensors"
    lost.unlink()
    monkeypatch.setattr(collecting, "make_folds", None)  # not asked again
    begin_zoo(path, train, make_anchor(recipe, train, valid), recipe, backbone).fill()
    assert torch.equal(read_tensors(lost)["support"], read_tensors(zoo.path / lost.name)["support"])


def test_collecting_again_goes_on_with_the_frames_that_are_there(
    zoo: Zoo, tmp_path, train, valid, backbone, recipe
):
    """Not with those of another machine, whose decompositions may round or turn differently."""
    path = Path(shutil.copytree(zoo.path, tmp_path / "z"))
    lost = path / f"{zoo.shards[-1]['name']}.safetensors"
    lost.unlink()
    held = Zoo.open(path).frames()
    turned = [replace(f, basis=f.basis.flip(1), between=f.between.flip(0)) for f in held]
    (path / FRAMES).unlink()
    Zoo.open(path).keep_frames(turned)
    again = begin_zoo(path, train, make_anchor(recipe, train, valid), recipe, backbone).fill()
    for frame, wanted in zip(again.frames, turned, strict=True):
        assert torch.equal(frame.basis, wanted.basis)
    # The shard made anew has its anchors in those coordinates.
    made, before = read_tensors(lost), read_tensors(zoo.path / lost.name)
    frame = turned[int(made["frame"][0])]
    support = train.features[made["support"].long()]
    assert torch.equal(made["support"], before["support"])
    fold = make_folds(recipe, make_anchor(recipe, train, valid), train)[int(made["frame"][0])]
    space = zoo.space.with_way(support.shape[1])
    z = frame.enter(support)
    z = z - again.origin(int(made["frame"][0]), z)
    wanted = fold.anchor.local(z, torch.ones(support.shape[:3]), space)
    assert torch.equal(made["anchor"], wanted)


def test_the_folds_whose_tasks_look_as_unseen_ones_do_are_chosen(train, recipe, monkeypatch):
    """`alike = -1` takes the candidate that is nearest; a number is taken as it is."""
    asked: list[float] = []
    distance = {0.0: 0.3, 0.5: 0.1, 1.0: 0.2}

    def crossfit(anchor, bank, *, folds, alike, **rest):
        asked.append(alike)
        return [(alike, folds)]

    monkeypatch.setattr(collecting, "crossfit", crossfit)
    monkeypatch.setattr(collecting, "likeness", lambda folds, *_, **__: distance[folds[0][0]])
    tasks = replace(recipe.tasks, folds=9)
    chosen = make_folds(replace(recipe, tasks=tasks), Anchor(), train)
    assert chosen == [(0.5, 9)] and sorted(set(asked)) == [0.0, 0.5, 1.0]
    fixed = replace(recipe, tasks=replace(tasks, alike=0.25))
    assert make_folds(fixed, Anchor(), train) == [(0.25, 9)]
    assert make_folds(replace(recipe, tasks=replace(tasks, folds=0)), Anchor(), train) == [(0, 0)]


def test_tasks_of_two_shards_differ(zoo: Zoo):
    for g in load(zoo):
        assert len({tuple(row) for row in g.support.flatten(1).tolist()}) == len(g)


def test_residuals_are_centred_over_classes(zoo: Zoo):
    for g in load(zoo):
        head = zoo.space.with_way(g.way).unflatten(g.theta)
        assert head["weight"].mean(-2).abs().max() < 1e-5
        assert head["bias"].mean(-1).abs().max() < 1e-5


def test_heads_of_an_earlier_version_stay_in_the_origin_of_their_frame(zoo: Zoo):
    """Zoos that do not say where their heads are seen from are solved and learnt as they were."""
    assert HeadCollection(zoo).anchor.own_mean
    earlier = Zoo.open(zoo.path)
    del earlier.header["shared"]["anchor"]["note"]["own_mean"]
    data = HeadCollection(earlier)
    z = data.frames[0].enter(data.bank.features[:24].view(2, 3, 4, -1))
    assert not data.origin(0, z).any() and not data.fold(0).anchor.own_mean


def test_solving_helps(zoo: Zoo, train: FeatureBank, recipe: Recipe):
    """The last local target fits a task's own samples better than the anchor it started from."""
    for g in load(zoo):
        frame = zoo.frames()[int(g.frame[0])]
        data, z = HeadCollection(zoo), frame.enter(train.features[g.support])
        origin = data.origin(int(g.frame[0]), z)[:, 0, 0]
        items = torch.cat([g.support, g.query], -1)
        labels = torch.arange(g.way).repeat_interleave(items.shape[-1])
        leave = partial(frame.leave, origin=origin)

        def loss(theta: Tensor, g=g, items=items, labels=labels, leave=leave) -> float:
            head = zoo.space.with_way(g.way).unflatten(leave(theta))
            logits = train.features[items].flatten(1, 2) @ head["weight"].mT
            logits = logits + head["bias"].unsqueeze(1)
            return float(torch.nn.functional.cross_entropy(logits.mT, labels.expand(len(g), -1)))

        assert loss(g.theta[:, -1]) < loss(g.theta[:, 0]) < loss(g.anchor)


def test_other_settings_and_other_classes_are_refused(
    zoo: Zoo, tmp_path, train, valid, backbone, recipe
):
    path = Path(shutil.copytree(zoo.path, tmp_path / "z"))
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    anchor = make_anchor(recipe, train, valid)
    longer = replace(recipe, prepare=replace(recipe.prepare, steps=12))
    with pytest.raises(MismatchError, match="prepare"):
        begin_zoo(path, train, anchor, longer, backbone)
    renamed = replace(train, classes=tuple(f"{c}!" for c in train.classes))
    with pytest.raises(MismatchError, match=r"other images[\s\S]*new directory"):
        begin_zoo(path, renamed, anchor, recipe, backbone)
    with pytest.raises(InputError, match=r"unknown start 'gausian'[\s\S]*'gaussian'"):
        begin_zoo(tmp_path / "y", train, anchor, replace(recipe, start="gausian"), backbone)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert not (tmp_path / "y").exists()


def test_gaussian_starts_are_not_the_anchor(tmp_path, train, valid, backbone, recipe):
    r = replace(recipe, start="gaussian", prepare=replace(recipe.prepare, steps=4, lr=1e-6))
    anchor = make_anchor(r, train, valid)
    groups = load(begin_zoo(tmp_path / "z", train, anchor, r, backbone).fill().zoo)
    for way in (3, 4):
        some = [g for g in groups if g.way == way]
        # With hardly a step taken, theta is theta_0, centred: one of `way` freedoms is lost.
        spread = torch.cat([g.theta for g in some]).std()
        assert spread == pytest.approx(0.1 * (1 - 1 / way) ** 0.5, rel=0.1)
        assert min((g.theta[:, -1] - g.anchor).abs().max() for g in some) > 0.5


def test_the_anchor_is_fitted_on_train_and_chosen_on_valid(train, valid, recipe):
    state = make_anchor(recipe, train, valid).state_dict()
    class_means = train.features.unflatten(0, (30, ITEMS)).mean(1)
    torch.testing.assert_close(state["mean"], class_means.mean(0))
    # Other validation classes move the temperature (and the ridge), never the class statistics.
    other = replace(valid, features=3 * valid.features.flip(1))
    moved = make_anchor(recipe, train, other).state_dict()
    assert torch.equal(moved["mean"], state["mean"])
    assert not torch.equal(moved["scale"], state["scale"])
    # The prototype anchor has nothing to fit on the training classes.
    r = replace(recipe, anchor="prototype")
    noise = replace(train, features=torch.zeros_like(train.features))
    assert same(
        make_anchor(r, noise, valid).state_dict(), make_anchor(r, train, valid).state_dict()
    )


def test_a_probed_target_has_not_seen_its_probe(train: FeatureBank, valid: FeatureBank):
    """Features that are not numbers at the probe change nothing in the solved task."""
    tasks = Tasks(ways=(4,), shots=(2,), query=5, probe=3, folds=0)
    recipe = Recipe(tasks=tasks)
    anchor = make_anchor(recipe, train, valid)
    fold = make_folds(recipe, anchor, train)[0]
    solved, finite = solve(train, fold, recipe, way=4, shot=2, tasks=1, seed=7)
    assert solved["query"].shape == (1, 4, 3) and bool(finite.all())
    assert not set(solved["query"].flatten().tolist()) & set(solved["support"].flatten().tolist())
    spoilt = train.features.clone()
    spoilt[solved["query"]] = float("nan")
    other = FeatureBank(spoilt, train.offsets, train.classes)
    again, _ = solve(other, fold, recipe, way=4, shot=2, tasks=1, seed=7)
    assert torch.equal(again["theta"], solved["theta"])
    # Without a probe the loss is measured where the task was solved.
    seen, _ = solve(
        train, fold, replace(recipe, tasks=replace(tasks, probe=0)), way=4, shot=2, tasks=1, seed=7
    )
    assert seen["query"].shape == (1, 4, 5)
