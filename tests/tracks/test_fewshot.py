"""`ltdi.tracks.fewshot`: one set of episodes, disjoint classes, rows that say what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.backbone import ProtoTraining
from ltdi.baselines import PEERS
from ltdi.data import ImageSet
from ltdi.errors import InputError, MismatchError
from ltdi.evaluate import summarise
from ltdi.files import digest
from ltdi.generator import Generator
from ltdi.meta import MetaConfig
from ltdi.recipe import Network, Recipe, Tasks
from ltdi.tracks import Outcome, episodes, fewshot_methods
from ltdi.tracks.episodes import hold_out
from ltdi.tracks.fewshot import bench
from ltdi.tracks.fewshot_methods import ALL_METHODS, Generated, methods_of
from ltdi.tracks.fewshot_presets import Preset
from ltdi.weights import head_space, query_logits
from tests.folders import write_folders

RECIPE = Recipe(
    tasks=Tasks(ways=(3,), shots=(1, 5), query=8, per_setting=40, shard=40, folds=4),
    network=Network(width=32, depth=1, heads=2),
    meta=MetaConfig(iterations=8, meta_batch=2, tasks=8, warmup=2),
)
TINY = Preset(
    ProtoTraining(iterations=12, classes=20, width=16),
    replace(RECIPE, prepare=replace(RECIPE.prepare, steps=12)),
    3,
    60,
    held_out=0.4,
)
SOME = ("lt-di", "protonet", "mv-di", "anchor", "simpleshot", "mc-di-paper")


@pytest.fixture(scope="module", autouse=True)
def few_classes(glyphs: dict[str, ImageSet]):
    """A part of the glyphs, drawn once."""
    parts = {
        "train": glyphs["train"].select(range(0, 840, 12)),
        "val": glyphs["val"].select(range(0, 120, 5)),
        "test": glyphs["test"].select(range(0, 96, 4)),
    }
    patch = pytest.MonkeyPatch()
    patch.setattr(episodes, "load_data", lambda *_, **__: parts)
    yield parts
    patch.undo()


def run(methods=SOME, **changes) -> Outcome:
    options = {"preset": TINY, "way": 3, "query": 8, "seed": 3} | changes
    return bench("glyphs", methods=methods, **options)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run()


def test_every_requested_method_has_a_row_of_its_kind(outcome: Outcome):
    rows = {row.method: row for row in outcome.result.rows}
    assert tuple(rows) == SOME
    kinds = ("ours", "peer", "control", "control", "peer", "ours")
    assert tuple(row.kind for row in rows.values()) == kinds
    for row in rows.values():
        assert row.metric == "accuracy" and row.episodes == 60
        assert 0 <= row.mean <= 1 and 0 < row.ci95 < 0.2 and row.latency_ms > 0
    assert rows["lt-di"].train_s > 0 and rows["lt-di"].prepare_s > 0
    assert rows["protonet"].prepare_s == 0
    # Even so little training must beat guessing one class of three.
    assert rows["lt-di"].mean > 0.6 and rows["protonet"].mean > 0.6


def test_the_kinds_are_those_of_the_design(outcome: Outcome):
    ours = {"lt-di", "lt-di-16", "mc-di-paper"}
    controls = {"mv-di", "tw-di", "mv-di-matched", "single-level", "anchored-regression", "anchor"}
    for name, method in methods_of(ALL_METHODS, RECIPE, outcome.world, 3).items():
        kind = "ours" if name in ours else "control" if name in controls else "peer"
        assert method.kind == kind, name
    assert ours | controls | set(PEERS) == set(ALL_METHODS)


def test_the_json_says_what_was_compared(outcome: Outcome):
    data = json.loads(json.dumps(outcome.result.to_dict()))
    assert [data[k] for k in ("track", "dataset", "preset", "seed")] == [
        "fewshot",
        "glyphs",
        "custom",
        3,
    ]
    s = data["settings"]
    assert (s["way"], s["shot"], s["query"]) == (3, 1, 8)
    for per_method in ("nll", "ece", "tasks_per_s", "notes"):
        assert tuple(s[per_method]) == SOME
    assert s["recipe"]["meta"]["seed"] == 3  # the seed of the run, not of the preset


def test_all_methods_see_the_same_episodes(outcome: Outcome):
    """Paired differences are those of the per-episode scores on one list of episodes."""
    world, settings = outcome.world, outcome.result.settings
    tests = world.test.episodes(way=3, shot=1, query=8, episodes=60, seed=77_003)
    support, query = world.test.features[tests.support], world.test.features[tests.query]
    labels = torch.arange(3).view(1, 3, 1)
    hits = {
        name: (m.predict(support, query).argmax(-1) == labels).float().mean((1, 2))
        for name, m in outcome.methods.items()
    }
    for row in outcome.result.rows:
        # Batches of another size may round one near-tie the other way.
        assert row.mean == pytest.approx(float(hits[row.method].mean()), abs=2e-3)
    assert set(settings["paired"]) == set(SOME) - {"lt-di"}
    for name, pair in settings["paired"].items():
        d = summarise(hits["lt-di"] - hits[name])
        assert (pair["mean"], pair["ci95"]) == pytest.approx((d.mean, d.ci95), abs=2e-3)


def test_a_seed_fixes_all_means(outcome: Outcome):
    torch.manual_seed(1234)
    again = run()
    assert [r.mean for r in again.result.rows] == [r.mean for r in outcome.result.rows]
    assert again.result.settings["nll"] == outcome.result.settings["nll"]
    other = run(("lt-di", "protonet"), seed=4)
    assert [r.mean for r in other.result.rows] != [r.mean for r in outcome.result.rows[:2]]


def test_a_method_does_not_depend_on_its_company(outcome: Outcome):
    alone = run(("mv-di",))
    assert alone.result.rows[0].mean == {r.method: r.mean for r in outcome.result.rows}["mv-di"]
    assert alone.result.settings["paired"] == {}


def test_classes_are_disjoint_all_the_way_through(outcome: Outcome, few_classes):
    w = outcome.world
    names = {part: set(getattr(w, part).classes) for part in ("train", "valid", "test")}
    held = names["train"]
    for_backbone = set(few_classes["train"].classes) - held
    parts = [for_backbone, *names.values()]
    assert all(parts)
    for i, a in enumerate(parts):
        for b in parts[:i]:
            assert not a & b
    assert names["valid"] == set(few_classes["val"].classes)
    assert names["test"] == set(few_classes["test"].classes)
    counted = outcome.result.settings["classes"]
    assert list(counted.values()) == [len(p) for p in parts]
    # What the generator was trained on is the bank of the held-out classes and nothing else.
    for data, _ in w.prepared.values():
        assert set(data.bank.classes) == held


def test_the_backbone_is_trained_on_its_own_classes_only(few_classes, monkeypatch):
    seen: list[ImageSet] = []
    original = episodes.train_backbone

    def spy(images: ImageSet, *args, **kwargs):
        seen.append(images)
        return original(images, *args, **kwargs)

    monkeypatch.setattr(episodes, "train_backbone", spy)
    world = run(("protonet",)).world
    assert len(seen) == 1
    assert set(seen[0].classes) | set(world.train.classes) == set(few_classes["train"].classes)
    assert not set(seen[0].classes) & set(world.train.classes)


def test_peers_are_fitted_on_train_and_valid(monkeypatch):
    seen: list[tuple] = []
    monkeypatch.setattr(
        PEERS["protonet"],
        "fit",
        lambda self, banks, budget, progress=None: seen.append((banks, budget)),
    )
    world = run(("protonet",), shot=2).world
    banks, budget = seen[0]
    assert banks.train is world.train and banks.valid is world.valid
    assert (budget.way, budget.shot, budget.query, budget.seed) == (3, 2, 8, 3)
    assert budget.iterations == TINY.peer_iterations


def test_recipes_that_agree_share_their_zoo(outcome: Outcome):
    # lt-di and mv-di; the paper's recipe has another anchor.
    assert len(outcome.world.prepared) == 2


def test_a_published_generator_gives_the_same_logits(outcome: Outcome, tmp_path: Path):
    ours = outcome.methods["lt-di"]
    outcome.publish(tmp_path)
    loaded = Generator.from_pretrained(tmp_path / "generator")
    bank = outcome.world.test
    tasks = bank.episodes(way=5, shot=2, query=3, episodes=4, seed=0)
    support, query = bank.features[tasks.support], bank.features[tasks.query]
    assert torch.equal(query_logits(loaded.weights(support), query), ours.predict(support, query))
    metrics = loaded.parts.about["metrics"]
    mean = next(r.mean for r in outcome.result.rows if r.method == "lt-di")
    assert metrics["glyphs 3w1s, lt-di"]["mean"] == mean
    assert not any("mv-di" in name for name in metrics)  # controls are not for the card


def test_head_logits_are_those_of_the_head():
    rng = torch.Generator().manual_seed(0)
    head = {
        "weight": torch.randn(2, 4, 6, generator=rng),
        "bias": torch.randn(2, 4, generator=rng),
    }
    query = torch.randn(2, 4, 3, 6, generator=rng)
    logits = query_logits(head_space(6, 4).flatten(head), query)
    expected = torch.einsum("ewqd,evd->ewqv", query, head["weight"]) + head["bias"][:, None, None]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["mc-di-paper", "lt-di"])
def test_mixed_ways_in_the_preset_serve_other_test_ways(name: str):
    """The paper's U-Net has one way; a benchmark trains it for the way of its episodes."""
    mixed = replace(TINY, recipe=replace(TINY.recipe, tasks=replace(RECIPE.tasks, ways=(3, 6))))
    result = run((name,), preset=mixed, way=4, episodes=20).result
    assert result.rows[0].episodes == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_METHODS)
def test_every_method_runs(name: str):
    result = run((name,), episodes=30).result
    assert [r.method for r in result.rows] == [name]
    # Whole weights from noise are beyond so small a budget; everything else must beat chance.
    assert result.rows[0].mean > (0.2 if name == "mc-di-paper" else 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": "5w1s,5way"}, "'5way' is not the shape of an episode"),
        ({"way": 25, "methods": ("protonet",)}, "25-way episode needs 25 classes"),
        ({"query": 20, "methods": ("protonet",)}, "needs 21 items per class"),
    ],
)
def test_mistakes_are_named(changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        run(**changes)


# ---- hold_out -----------------------------------------------------------------------------------


def image_set(names: list[str]) -> ImageSet:
    images = torch.arange(len(names), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return ImageSet("x", images, torch.arange(len(names) + 1), tuple(names))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_hold_out_is_disjoint_and_keeps_rotations_together(share: float):
    images = image_set([f"s/c{i}" for i in range(20)]).with_rotations()
    rest, held = hold_out(images, share, seed=5)
    assert sorted([*rest.classes, *held.classes]) == sorted(images.classes)
    families = [{c.partition("@")[0] for c in side.classes} for side in (rest, held)]
    assert not families[0] & families[1]
    assert len(families[1]) == round(share * 20)
    # Images move with their classes.
    for side in (rest, held):
        for number, name in enumerate(side.classes):
            original = images.classes.index(name)
            assert torch.equal(side.images[number], images.images[original])


def test_hold_out_is_fixed_by_its_seed():
    images = image_set([f"c{i}" for i in range(30)])
    assert hold_out(images, 0.3, 1)[1].classes == hold_out(images, 0.3, 1)[1].classes
    assert hold_out(images, 0.3, 1)[1].classes != hold_out(images, 0.3, 2)[1].classes


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1.5, 0.97, float("nan")])
def test_hold_out_leaves_classes_on_both_sides(share: float):
    with pytest.raises(InputError, match="cannot be held out"):
        hold_out(image_set([f"c{i}" for i in range(30)]), share, 0)


def test_heads_and_backbones_do_not_mix(outcome: Outcome):
    other = run(("lt-di",), seed=9)
    a, b = (o.methods["lt-di"].generator for o in (outcome, other))
    with pytest.raises(MismatchError, match="was trained on backbone"):
        a.check_backbone(b.backbone)


def test_several_shapes_share_a_run(outcome: Outcome, monkeypatch):
    """The same figures as in runs of their own, from one backbone and one trained generator."""
    trained = []
    real = fewshot_methods.train_generator

    def spy(*args, **kwargs):
        trained.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(fewshot_methods, "train_generator", spy)
    both = run(("lt-di", "protonet"), settings="3w1s, 4w2s").result
    assert len(trained) == 1
    assert [(r.method, r.dataset) for r in both.rows] == [
        ("lt-di", "3w1s"),
        ("protonet", "3w1s"),
        ("lt-di", "4w2s"),
        ("protonet", "4w2s"),
    ]
    alone = {r.method: r.mean for r in outcome.result.rows}
    assert [r.mean for r in both.rows[:2]] == [alone["lt-di"], alone["protonet"]]
    other = run(("protonet",), way=4, shot=2).result
    assert both.rows[3].mean == other.rows[0].mean
    assert set(both.settings["paired"]) == {"3w1s", "4w2s"} == set(both.settings["nll"])
    assert both.settings["paired"]["3w1s"] == {
        "protonet": outcome.result.settings["paired"]["protonet"]
    }


def test_a_trained_backbone_is_kept(tmp_path: Path, monkeypatch):
    first = run(("protonet",), cache=str(tmp_path))
    monkeypatch.setattr(episodes, "train_backbone", lambda *_, **__: pytest.fail("trained again"))
    again = run(("protonet",), cache=str(tmp_path))
    assert again.result.rows[0].mean == first.result.rows[0].mean
    # Views are no matter of training: with them the same net is another backbone.
    seen = run(
        ("protonet",), cache=str(tmp_path), preset=replace(TINY, wiggle=True, flip=True)
    ).world
    views = seen.backbone.transform
    plain = replace(views, wiggle=False, flip=False)
    assert views.wiggle and views.flip and plain == first.world.backbone.transform
    assert digest(seen.backbone.tensors()) == digest(first.world.backbone.tensors())
    assert not torch.allclose(seen.test.features, first.world.test.features, rtol=0.01)


def test_a_pretrained_backbone_sees_the_side_that_is_asked_for(outcome: Outcome, tmp_path: Path):
    outcome.world.backbone.save(tmp_path)
    given = replace(TINY, backbone=str(tmp_path))
    own, larger = (run(("protonet",), preset=given, **at) for at in ({}, {"side": 40}))
    assert [o.result.settings["side"] for o in (own, larger)] == [28, 40]
    assert torch.equal(own.world.test.features, outcome.world.test.features)
    assert not torch.allclose(larger.world.test.features, own.world.test.features, rtol=0.01)
    with pytest.raises(InputError, match="is trained here") as caught:
        run(("protonet",), side=40)
    assert "--backbone" in caught.value.fix


def test_nothing_that_is_learnt_or_chosen_depends_on_test_images(few_classes, monkeypatch):
    """Blank test images change scores alone: no class of theirs is seen before the last step."""

    def state(outcome: Outcome) -> dict[str, str]:
        ours = outcome.methods["lt-di"]
        assert isinstance(ours, Generated) and ours.generator is not None
        out = {"lt-di": ours.generator.revision + repr(ours.generator.parts.sampling)}
        support = outcome.world.valid.episodes(way=3, shot=1, query=4, episodes=6, seed=1)
        features = outcome.world.valid.features
        for name, method in outcome.methods.items():
            logits = method.predict(features[support.support], features[support.query])
            out[name + " predicts"] = digest({"logits": logits})
        return out

    names = ("lt-di", "lt-di-16", "anchor", "protonet", "maml", "meta-baseline", "finetune")
    seen = run(names)
    blank = replace(few_classes["test"], images=torch.zeros_like(few_classes["test"].images))
    parts = {**few_classes, "test": blank}
    monkeypatch.setattr(episodes, "load_data", lambda *_, **__: parts)
    unseen = run(names)
    assert state(seen) == state(unseen)
    assert seen.result.rows[0].mean != unseen.result.rows[0].mean


def test_class_ids_are_tracked_from_images_to_solved_tasks(few_classes, monkeypatch):
    """Every sample of a solved task, support or query, is an image of a held-out training class."""
    tasks: list[dict[str, torch.Tensor]] = []
    real = fewshot_methods.train_generator

    def spy(data, *args, **kwargs):
        tasks.extend(group.read() for group in data.zoo.groups())
        return real(data, *args, **kwargs)

    monkeypatch.setattr(fewshot_methods, "train_generator", spy)
    world = run(("lt-di",)).world
    classes = world.train.classes
    label = torch.arange(len(classes)).repeat_interleave(world.train.offsets.diff())
    assert tasks
    for held in tasks:
        own = label[held["support"]]
        assert (own == own[..., :1]).all()  # one class per label
        assert (label[held["query"]] == own[..., :1]).all()
        assert all(len(set(task)) == len(task) for task in own[..., 0].tolist())
    # The bank that these numbers point into is that of the held-out training classes' images.
    images = few_classes["train"].select([few_classes["train"].classes.index(c) for c in classes])
    assert torch.equal(world.backbone.bank(images).features, world.train.features)
    pixels = {x.tobytes() for x in images.images.numpy()}
    for part in ("val", "test"):
        assert not set(classes) & set(few_classes[part].classes)
        assert not pixels & {x.tobytes() for x in few_classes[part].images.numpy()}


def test_a_folder_is_tested_beside_the_set_with_methods_that_never_saw_it(few_classes, tmp_path):
    folder = write_folders(tmp_path / "mine", few_classes["test"])
    result = run(("anchor", "linear-probe"), elsewhere=str(folder)).result
    rows = {(row.dataset, row.method): row for row in result.rows}
    own, mine = "glyphs 3w1s", "mine 3w1s"
    assert set(rows) == {(d, m) for d in (own, mine) for m in ("anchor", "linear-probe")}
    # The folder holds the images of the test classes: the same scores, to the last bit.
    for method in ("anchor", "linear-probe"):
        assert rows[own, method].mean == rows[mine, method].mean
        assert rows[own, method].ci95 == rows[mine, method].ci95
    assert result.settings["nll"][own] == result.settings["nll"][mine]


def test_two_folders_of_one_name_are_refused_before_work(few_classes, tmp_path):
    """Rows go by that name: one of them would be lost without a word."""
    one, two, own = (
        str(write_folders(tmp_path / place, few_classes["test"]))
        for place in ("a/mine", "b/mine", "glyphs")
    )
    for given, both in ((f"{one}, {two}", "b/mine and .*a/mine"), (own, "glyphs and --dataset")):
        with pytest.raises(InputError, match=rf"{both} are both called"):
            run(("anchor",), elsewhere=given, progress=lambda *_: pytest.fail("work began"))


def test_a_folder_that_is_too_small_is_refused_before_work(few_classes, tmp_path):
    folder = write_folders(tmp_path / "mine", few_classes["test"].select([0, 1]))
    with pytest.raises(
        InputError, match=r"needs 3 classes, the data have 2\n  where: --elsewhere .*mine"
    ):
        run(("anchor",), elsewhere=str(folder), progress=lambda *_: pytest.fail("work began"))
    with pytest.raises(InputError, match="whole nets"):
        run(("lt-di",), elsewhere=str(folder), target="net")
