"""`ltdi.pipeline`: stopped and resumed runs equal uninterrupted ones, and nothing leaks."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltdi import pipeline
from ltdi.backbone import Backbone, ConvNet, InputTransform
from ltdi.errors import InputError, LtdiError, MismatchError
from ltdi.generator import Generator
from ltdi.meta import MetaConfig
from ltdi.parts import tensors_of
from ltdi.pipeline import (
    HeadObjective,
    TrainingSet,
    choose_sampling,
    load_shared,
    make_anchor,
    prepare_zoo,
    save_shared,
    train_generator,
)
from ltdi.recipe import Network, Recipe, Sampling, Tasks
from ltdi.tasks import FeatureBank
from ltdi.zoo import Zoo

WIDTH, ITEMS = 8, 12


def gaussian_bank(classes: int, seed: int, prefix: str) -> FeatureBank:
    """Class means ~ N(1, I), items ~ N(mean, diagonal)."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.3, 1.5, WIDTH)
    means = 1 + torch.randn(classes, 1, WIDTH, generator=rng)
    items = means + spread * torch.randn(classes, ITEMS, WIDTH, generator=rng)
    names = tuple(f"{prefix}{c}" for c in range(classes))
    return FeatureBank(items.flatten(0, 1), torch.arange(classes + 1) * ITEMS, names)


@pytest.fixture(scope="module")
def train() -> FeatureBank:
    return gaussian_bank(30, 0, "train")


@pytest.fixture(scope="module")
def valid() -> FeatureBank:
    return gaussian_bank(12, 1, "valid")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet(1, 4, 28)
    config = {"kind": "conv", "channels": 1, "width": 4, "size": 28}
    return Backbone(net, InputTransform(), config)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    r = Recipe(
        tasks=Tasks(ways=(3, 4), shots=(1, 2), query=4, per_setting=12, shard=5),
        network=Network(width=16, depth=1, heads=2),
        meta=MetaConfig(iterations=12, meta_batch=2, tasks=4, warmup=2, checkpoint_every=5),
    )
    return replace(r, prepare=replace(r.prepare, steps=8))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, train, valid, backbone, recipe) -> Zoo:
    path = tmp_path_factory.mktemp("whole") / "zoo"
    return prepare_zoo(path, train, make_anchor(recipe, train, valid), recipe, backbone)


def tensors(generator: Generator) -> dict[str, Tensor]:
    return tensors_of(generator.parts, generator.backbone)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# ---- zoo ----------------------------------------------------------------------------------------


def test_the_zoo_has_what_the_recipe_says(zoo: Zoo, recipe: Recipe):
    groups = {(g.way, g.shot): g for g in zoo.load()}
    assert sorted(groups) == [(3, 1), (3, 2), (4, 1), (4, 2)]
    for (way, shot), g in groups.items():
        assert len(g) == 12 and g.theta.shape == (12, 4, way * (WIDTH + 1))
        assert g.support.shape == (12, way, shot) and g.query.shape == (12, way, 4)
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
        prepare_zoo(tmp_path / "z", train, anchor, recipe, backbone, progress=stop)
    begun = len(Zoo.open(tmp_path / "z").shards)
    assert 0 < begun < len(zoo.shards)
    again = prepare_zoo(tmp_path / "z", train, anchor, recipe, backbone)
    assert Zoo.open(again.path).index == Zoo.open(zoo.path).index
    for a, b in zip(again.load(), zoo.load(), strict=True):
        assert same(vars(a), vars(b))


def test_tasks_of_two_shards_differ(zoo: Zoo):
    for g in zoo.load():
        assert len({tuple(row) for row in g.support.flatten(1).tolist()}) == len(g)


def test_residuals_are_centred_over_classes(zoo: Zoo):
    for g in zoo.load():
        head = zoo.space.with_way(g.way).unflatten(g.theta)
        assert head["weight"].mean(-2).abs().max() < 1e-5
        assert head["bias"].mean(-1).abs().max() < 1e-5


def test_solving_helps(zoo: Zoo, train: FeatureBank, recipe: Recipe):
    """The last local target fits a task's own samples better than the anchor it started from."""
    for g in zoo.load():
        items = torch.cat([g.support, g.query], -1)
        labels = torch.arange(g.way).repeat_interleave(items.shape[-1])

        def loss(theta: Tensor, g=g, items=items, labels=labels) -> float:
            head = zoo.space.with_way(g.way).unflatten(theta)
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
        prepare_zoo(path, train, anchor, longer, backbone)
    renamed = replace(train, classes=tuple(f"{c}!" for c in train.classes))
    with pytest.raises(MismatchError, match=r"other images[\s\S]*new directory"):
        prepare_zoo(path, renamed, anchor, recipe, backbone)
    with pytest.raises(InputError, match=r"unknown start 'gausian'[\s\S]*'gaussian'"):
        prepare_zoo(tmp_path / "y", train, anchor, replace(recipe, start="gausian"), backbone)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert not (tmp_path / "y").exists()


def test_gaussian_starts_are_not_the_anchor(tmp_path, train, valid, backbone, recipe):
    r = replace(recipe, start="gaussian", prepare=replace(recipe.prepare, steps=4, lr=1e-6))
    anchor = make_anchor(r, train, valid)
    for g in prepare_zoo(tmp_path / "z", train, anchor, r, backbone).load():
        # With hardly a step taken, theta is theta_0, centred.
        assert g.theta.std() == pytest.approx(0.1, rel=0.2)
        assert (g.theta[:, -1] - g.anchor).abs().max() > 0.5


# ---- anchor -------------------------------------------------------------------------------------


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


# ---- training -----------------------------------------------------------------------------------

Train = Callable[..., Generator]


@pytest.fixture(scope="module")
def run(zoo: Zoo, train, valid, backbone, recipe) -> Train:
    anchor, data = make_anchor(recipe, train, valid), TrainingSet.of(zoo)

    def go(out: Path | None = None, changed: Recipe = recipe, **options) -> Generator:
        if out:
            out.mkdir(exist_ok=True)
        return train_generator(data, anchor, backbone, changed, out=out, valid=valid, **options)

    return go


@pytest.fixture(scope="module")
def whole(run: Train) -> Generator:
    return run()


def test_training_is_fixed_by_its_seed(run: Train, whole: Generator, recipe: Recipe):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(tensors(run()), tensors(whole))
    assert torch.equal(torch.get_rng_state(), state)
    other = run(changed=replace(recipe, meta=replace(recipe.meta, seed=1)))
    assert not same(tensors(other), tensors(whole))


@pytest.mark.parametrize("at", [3, 5, 11])
def test_resumed_training_equals_an_uninterrupted_one(
    run: Train, whole: Generator, tmp_path: Path, at: int
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


def test_ctrl_c_within_an_iteration_resumes_exactly(
    run: Train, whole: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_training_works_in_a_thread(run: Train, whole: Generator):
    made: list[Generator] = []
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


def test_training_lowers_its_loss(run: Train, recipe: Recipe):
    losses: list[float] = []
    longer = replace(recipe, meta=replace(recipe.meta, iterations=60, meta_lr=3e-3))
    run(changed=longer, log=lambda r: losses.append(r["loss"]) if "loss" in r else None)
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_every_objective_prediction_and_network_trains(run: Train, recipe: Recipe, train):
    short = replace(recipe, meta=replace(recipe.meta, iterations=2))
    changes = [
        {"objective": "vanilla"},
        {"objective": "naive", "prediction": "v", "loss": "function"},
        {"objective": "matched", "prediction": "eps", "loss": "weight"},
    ]
    for change in changes:
        made = run(changed=replace(short, diffusion=replace(short.diffusion, **change)))
        support = train.features[:24].view(1, 3, 8, WIDTH)[:, :, :2]
        assert made.weights(support).isfinite().all()


def test_a_unet_serves_one_way_and_says_so(run: Train, recipe: Recipe):
    with pytest.raises(MismatchError, match="3-way weights, the task has 4 classes"):
        run(changed=replace(recipe, network=Network("unet", 16, 1)))


def test_sampling_is_chosen_on_valid_by_nll(whole: Generator, valid: FeatureBank, recipe: Recipe):
    sampling, scores = choose_sampling(whole, valid, recipe)
    named = f"{sampling.steps} steps, strength {sampling.strength}"
    assert scores[named] == min(scores.values())
    assert whole.parts.sampling == sampling and sampling.temperature == 0


def test_a_noisy_recipe_keeps_its_sampling(run: Train, recipe: Recipe):
    noisy = replace(recipe, sampling=Sampling(steps=7, temperature=0.5))
    assert run(changed=noisy).parts.sampling == noisy.sampling


# ---- what lies beside a zoo ---------------------------------------------------------------------


def test_shared_parts_round_trip(zoo: Zoo, tmp_path, train, valid, backbone, recipe):
    path = Path(shutil.copytree(zoo.path, tmp_path / "z"))
    anchor = make_anchor(recipe, train, valid)
    save_shared(path, anchor, backbone, valid)
    shared = load_shared(Zoo.open(path))
    assert same(dict(shared.anchor.state_dict()), dict(anchor.state_dict()))
    assert shared.backbone.fingerprint == backbone.fingerprint
    assert torch.equal(shared.valid.features, valid.features)
    assert shared.valid.classes == valid.classes
    # A backbone that was swapped afterwards is found.
    other = Backbone(ConvNet(1, 4, 28), InputTransform(), backbone.config)
    other.save(path / "backbone")
    with pytest.raises(MismatchError, match="not the one that it was collected on"):
        load_shared(Zoo.open(path))
    (path / "anchor.safetensors").unlink()
    backbone.save(path / "backbone")
    with pytest.raises(LtdiError, match="anchor"):
        load_shared(Zoo.open(path))


def test_pipeline_has_no_state_of_its_own():
    """Nothing is remembered between runs but on disk."""
    held = {k for k, v in vars(pipeline).items() if isinstance(v, (list, dict, set))}
    assert held <= {"__builtins__", "__annotations__"} | {"LOSSES"}
