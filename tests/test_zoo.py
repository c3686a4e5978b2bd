"""`ltdi.zoo`: solved tasks come back, and damage or a kill costs at most one shard."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ltdi.anchor import PrototypeAnchor
from ltdi.backbone import Backbone, InputTransform
from ltdi.collect import Preparation
from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.files import own_directory
from ltdi.frame import Frame
from ltdi.pipeline import prepare_zoo
from ltdi.recipe import Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.weights import head_space
from ltdi.zoo import BANK, FRAMES, INDEX, SolvedTasks, Zoo

ROOT = Path(__file__).resolve().parents[1]
D = 4
SPACE = head_space(D, 3)
ABOUT: dict[str, Any] = {"seed": 1, "prepare": {"lr": 0.1}}
TINY = Recipe(
    tasks=Tasks(ways=(2, 3), shots=(1, 2), query=3, per_setting=6, shard=3, folds=0),
    prepare=Preparation(lr=0.1, steps=6, segments=2, batch=4),
    anchor="prototype",
)


def make_bank(seed: int = 0, classes: int = 5, width: int = D) -> FeatureBank:
    rng = torch.Generator().manual_seed(seed)
    centre = 2 * torch.randn(classes, 1, width, generator=rng)
    x = centre + torch.randn(classes, 8, width, generator=rng)
    names = tuple(f"c{i}" for i in range(classes))
    return FeatureBank(x.flatten(0, 1), torch.arange(classes + 1) * 8, names)


def make_tasks(
    seed: int, tasks: int = 4, way: int = 3, shot: int = 2, frame: int = 0
) -> SolvedTasks:
    rng = torch.Generator().manual_seed(seed)
    n = head_space(D, way).size
    return SolvedTasks(
        torch.randn(tasks, 2, n, generator=rng),
        torch.randn(tasks, n, generator=rng),
        torch.randint(40, (tasks, way, shot), generator=rng),
        torch.randint(40, (tasks, way, 3), generator=rng),
        torch.full((tasks,), frame),
        torch.rand(tasks, generator=rng),
        torch.rand(tasks, generator=rng),
    )


def all_of(tasks: SolvedTasks) -> torch.Tensor:
    return torch.ones(len(tasks), dtype=torch.bool)


def assert_same(a: SolvedTasks, b: SolvedTasks) -> None:
    for name, value in vars(a).items():
        other = vars(b)[name]
        assert torch.equal(value, other) and value.dtype == other.dtype, name


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """Three shards: two of 3-way 2-shot, one of 2-way 1-shot between them."""
    out = Zoo.create(tmp_path / "zoo", SPACE, make_bank(), ABOUT)
    for name, tasks in (
        ("a", make_tasks(0)),
        ("b", make_tasks(1, way=2, shot=1)),
        ("c", make_tasks(2)),
    ):
        out.append(name, tasks, all_of(tasks))
    return out


def test_what_is_appended_is_loaded_by_way_and_shot(zoo: Zoo) -> None:
    small, large = Zoo.open(zoo.path).load()
    assert (small.way, small.shot, len(small)) == (2, 1, 4)
    assert (large.way, large.shot, len(large)) == (3, 2, 8)
    assert_same(small, make_tasks(1, way=2, shot=1))
    assert_same(large, SolvedTasks.concat([make_tasks(0), make_tasks(2)]))


def test_tasks_of_two_frames_are_groups_of_their_own(zoo: Zoo) -> None:
    tasks = make_tasks(3, frame=2)
    zoo.append("d", tasks, all_of(tasks))
    groups = Zoo.open(zoo.path).load()
    found = [(g.way, g.shot, int(g.frame[0]), len(g)) for g in groups]
    assert found == [(2, 1, 0, 4), (3, 2, 0, 8), (3, 2, 2, 4)]
    assert_same(groups[2], tasks)


def make_frames(seed: int, number: int = 3) -> list[Frame]:
    rng = torch.Generator().manual_seed(seed)
    return [
        Frame(
            torch.randn(D, generator=rng),
            torch.randn(D, D, generator=rng),
            torch.rand(D, generator=rng),
        )
        for _ in range(number)
    ]


def assert_same_frames(found: list[Frame], wanted: list[Frame]) -> None:
    for a, b in zip(found, wanted, strict=True):
        for name, value in vars(b).items():
            assert torch.equal(getattr(a, name), value), name


def test_frames_come_back_and_the_first_ones_are_kept(zoo: Zoo) -> None:
    first, second = make_frames(0), make_frames(1)
    assert_same_frames(zoo.keep_frames(first), first)
    again = Zoo.create(zoo.path, SPACE, make_bank(), ABOUT)
    assert_same_frames(again.keep_frames(second), first)
    assert_same_frames(Zoo.open(zoo.path).frames(), first)


@pytest.mark.parametrize("harm", ["flip", "header", "cut", "swap"])
def test_damaged_frames_are_named(zoo: Zoo, harm: str, tmp_path: Path) -> None:
    zoo.keep_frames(make_frames(0))
    path = zoo.path / FRAMES
    whole = bytearray(path.read_bytes())
    if harm in ("flip", "header"):
        whole[-3 if harm == "flip" else 30] ^= 4
        path.write_bytes(whole)
    elif harm == "cut":
        path.write_bytes(whole[:-1])
    else:
        other = Zoo.create(tmp_path / "other", SPACE, make_bank(), ABOUT)
        other.keep_frames(make_frames(1))
        path.write_bytes((other.path / FRAMES).read_bytes())
    with pytest.raises(DamagedFileError, match=r"frames\.safetensors"):
        Zoo.open(zoo.path).frames()


def test_lost_frames_are_named_and_can_be_stored_again(zoo: Zoo) -> None:
    with pytest.raises(InputError, match=r"frames\.safetensors not found"):
        zoo.frames()
    zoo.keep_frames(make_frames(0))
    (zoo.path / FRAMES).unlink()
    with pytest.raises(InputError, match=r"frames\.safetensors not found"):
        Zoo.open(zoo.path).frames()
    Zoo.open(zoo.path).keep_frames(make_frames(0))
    assert_same_frames(Zoo.open(zoo.path).frames(), make_frames(0))


def test_shots_of_one_way_are_groups_of_their_own(zoo: Zoo) -> None:
    tasks = make_tasks(3, way=3, shot=1)
    zoo.append("d", tasks, all_of(tasks))
    groups = Zoo.open(zoo.path).load()
    assert [(g.way, g.shot, len(g)) for g in groups] == [(2, 1, 4), (3, 1, 4), (3, 2, 8)]
    assert_same(groups[1], tasks)


def test_the_index_tells_what_is_inside(zoo: Zoo) -> None:
    again = Zoo.open(zoo.path)
    assert again.about == ABOUT and again.space == SPACE
    assert [s["name"] for s in again.shards] == ["a", "b", "c"]
    entry, tasks = again.shards[1], make_tasks(1, way=2, shot=1)
    assert (entry["way"], entry["shot"], entry["tasks"], entry["dropped"]) == (2, 1, 4, 0)
    assert entry["loss"] == pytest.approx(float(tasks.loss.mean()), abs=1e-6)
    assert entry["accuracy"] == pytest.approx(float(tasks.accuracy.mean()), abs=1e-6)


def test_the_bank_comes_back(zoo: Zoo) -> None:
    bank, wanted = Zoo.open(zoo.path).bank(), make_bank()
    assert torch.equal(bank.features, wanted.features)
    assert torch.equal(bank.offsets, wanted.offsets) and bank.classes == wanted.classes


def test_tasks_that_are_not_finite_are_dropped_and_counted(zoo: Zoo) -> None:
    tasks = make_tasks(5, way=4)
    tasks.theta[1, 0, 2] = float("nan")
    tasks.loss[3] = float("inf")
    finite = torch.tensor([True, False, True, False])
    entry = zoo.append("d", tasks, finite)
    assert (entry["tasks"], entry["dropped"]) == (2, 2)
    group = next(g for g in Zoo.open(zoo.path).load() if g.way == 4)
    assert_same(group, tasks.keep(finite))
    assert json.loads((zoo.path / INDEX).read_text())["shards"][-1] == entry


def test_a_shard_may_be_empty_but_a_zoo_may_not(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "zoo", SPACE, make_bank(), ABOUT)
    with pytest.raises(InputError, match="no solved task"):
        zoo.load()
    tasks = make_tasks(0)
    entry = zoo.append("a", tasks, ~all_of(tasks))
    assert (entry["tasks"], entry["dropped"], entry["loss"]) == (0, 4, None)
    with pytest.raises(InputError, match="no solved task"):
        Zoo.open(zoo.path).load()


def test_has_is_true_for_finished_shards_that_are_there(zoo: Zoo) -> None:
    assert zoo.has("a") and not zoo.has("d")
    (zoo.path / "a.safetensors").unlink()
    assert not Zoo.open(zoo.path).has("a")
    (zoo.path / "d.safetensors").write_bytes((zoo.path / "b.safetensors").read_bytes())
    assert not Zoo.open(zoo.path).has("d")


def test_a_kill_between_shard_and_index_loses_that_shard_only(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    extra = make_tasks(9)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("ltdi.zoo.write_json", killed)
        zoo.append("d", extra, all_of(extra))
    assert (zoo.path / "d.safetensors").is_file()
    again = Zoo.create(zoo.path, SPACE, make_bank(), ABOUT)
    assert not again.has("d") and all(again.has(name) for name in "abc")
    assert sum(len(g) for g in again.load()) == 12
    again.append("d", extra, all_of(extra))
    assert sum(len(g) for g in Zoo.open(zoo.path).load()) == 16


@pytest.mark.parametrize("harm", ["flip", "header", "cut", "swap", "gone"])
def test_a_damaged_shard_is_named_and_the_others_stay(zoo: Zoo, harm: str) -> None:
    path = zoo.path / "b.safetensors"
    whole = bytearray(path.read_bytes())
    others = {p.name: p.read_bytes() for p in zoo.path.iterdir() if p != path}
    if harm in ("flip", "header"):
        whole[-3 if harm == "flip" else 30] ^= 4
        path.write_bytes(whole)
    elif harm == "cut":
        path.write_bytes(whole[:-1])
    elif harm == "swap":
        path.write_bytes((zoo.path / "a.safetensors").read_bytes())
    else:
        path.unlink()
    with pytest.raises(DamagedFileError, match=r"b\.safetensors") as caught:
        Zoo.open(zoo.path).load()
    assert caught.value.where == str(path) and "collect again" in caught.value.fix
    assert others == {p.name: p.read_bytes() for p in zoo.path.iterdir() if p != path}


def test_a_shard_made_anew_takes_its_old_place(zoo: Zoo) -> None:
    before = Zoo.open(zoo.path).load()
    (zoo.path / "a.safetensors").unlink()
    again = Zoo.create(zoo.path, SPACE, make_bank(), ABOUT)
    again.append("a", make_tasks(0), torch.ones(4, dtype=torch.bool))
    for x, y in zip(before, Zoo.open(zoo.path).load(), strict=True):
        assert_same(x, y)


@pytest.mark.parametrize("position", [20, 200, -1])
def test_a_damaged_bank_is_named(zoo: Zoo, position: int) -> None:
    data = bytearray((zoo.path / BANK).read_bytes())
    data[position] ^= 1
    (zoo.path / BANK).write_bytes(data)
    with pytest.raises(DamagedFileError, match=BANK):
        Zoo.open(zoo.path).bank()


def test_a_lost_bank_is_written_again(zoo: Zoo) -> None:
    (zoo.path / BANK).unlink()
    Zoo.create(zoo.path, SPACE, make_bank(), ABOUT)
    assert torch.equal(Zoo.open(zoo.path).bank().features, make_bank().features)


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", "null", '"zoo"', '{"schema": 1}', '{"schema": 1, "shards": []}']
)
def test_a_damaged_index_is_named(zoo: Zoo, content: str) -> None:
    (zoo.path / INDEX).write_text(content)
    with pytest.raises(DamagedFileError, match=r"zoo\.json"):
        Zoo.open(zoo.path)


def test_another_schema_is_refused(zoo: Zoo) -> None:
    index = json.loads((zoo.path / INDEX).read_text())
    (zoo.path / INDEX).write_text(json.dumps({**index, "schema": 99}))
    with pytest.raises(MismatchError, match="schema 99, this version reads 2"):
        Zoo.open(zoo.path)


def test_a_directory_that_is_not_a_zoo(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a zoo"):
            Zoo.open(path)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="left as it is"):
        Zoo.create(tmp_path, SPACE, make_bank(), ABOUT)
    own_directory(tmp_path / "g", "generator")
    with pytest.raises(InputError, match="holds a generator"):
        Zoo.create(tmp_path / "g", SPACE, make_bank(), ABOUT)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["thesis.tex"]


def test_the_same_settings_take_a_zoo_up(zoo: Zoo) -> None:
    assert Zoo.create(zoo.path, SPACE, make_bank(), ABOUT).shards == zoo.shards
    # The way may differ.
    assert Zoo.create(zoo.path, head_space(D, 10), make_bank(), ABOUT).shards == zoo.shards


def test_other_settings_weight_space_or_features_do_not(zoo: Zoo) -> None:
    before = {p.name: p.read_bytes() for p in zoo.path.iterdir()}
    with pytest.raises(MismatchError, match="seed = 1, now 2"):
        Zoo.create(zoo.path, SPACE, make_bank(), {**ABOUT, "seed": 2})
    with pytest.raises(MismatchError, match=r"prepare = \{'lr': 0.1\}, now \{'lr': 0.2\}"):
        Zoo.create(zoo.path, SPACE, make_bank(), {**ABOUT, "prepare": {"lr": 0.2}})
    with pytest.raises(MismatchError, match=r"weight\[3, 4\].*not weight\[3, 7\]"):
        Zoo.create(zoo.path, head_space(7, 3), make_bank(), ABOUT)
    renamed = replace(make_bank(), classes=("x", "c1", "c2", "c3", "c4"))
    moved = replace(make_bank(), offsets=torch.tensor([0, 9, 16, 24, 32, 40]))
    for bank in (make_bank(seed=1), make_bank(classes=6), renamed, moved):
        with pytest.raises(MismatchError, match="other images"):
            Zoo.create(zoo.path, SPACE, bank, ABOUT)
    assert before == {p.name: p.read_bytes() for p in zoo.path.iterdir()}


def test_features_that_only_round_differently_are_the_same(zoo: Zoo) -> None:
    bank = make_bank()
    Zoo.create(zoo.path, SPACE, replace(bank, features=bank.features * (1 + 1e-3)), ABOUT)


def test_tasks_of_another_weight_space_are_not_appended(zoo: Zoo) -> None:
    zoo.check(head_space(D, 9))
    with pytest.raises(MismatchError, match="the zoo holds"):
        zoo.check(head_space(D + 1, 3))


def test_every_flipped_bit_of_the_index_is_found(zoo: Zoo) -> None:
    """One of eight bits of each byte, at random; of the schema's number, it is another schema."""
    path, rng = zoo.path / INDEX, random.Random(0)
    whole = path.read_bytes()
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with pytest.raises((DamagedFileError, MismatchError), match="zoo"):
            Zoo.open(zoo.path)


def tiny_zoo(path: Path, recipe: Recipe = TINY, progress: Any = None) -> Zoo:
    """Eight shards; the backbone is a stand-in, only its fingerprint is read."""
    backbone = Backbone(nn.Identity(), InputTransform(), {"kind": "none"})
    anchor = PrototypeAnchor(0.5)
    return prepare_zoo(path, make_bank(), anchor, recipe, backbone, progress=progress)


def files(zoo: Zoo) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in zoo.path.iterdir() if not p.name.endswith(".tmp")}


def test_collecting_again_changes_nothing(tmp_path: Path) -> None:
    before = files(tiny_zoo(tmp_path))
    assert len(before) == 8 + 4
    assert files(tiny_zoo(tmp_path)) == before


def test_only_a_lost_shard_is_collected_again(tmp_path: Path) -> None:
    zoo = tiny_zoo(tmp_path)
    before = files(zoo)
    lost = tmp_path / "shard-000003.safetensors"
    lost.unlink()
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    assert files(tiny_zoo(tmp_path)) == before
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_a_zoo_of_other_settings_is_not_mixed(tmp_path: Path) -> None:
    before = files(tiny_zoo(tmp_path))
    other = replace(TINY, prepare=replace(TINY.prepare, lr=0.2))
    with pytest.raises(MismatchError, match="prepare"):
        tiny_zoo(tmp_path, other)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


KILLED = """
import sys, pathlib
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from test_zoo import tiny_zoo
print("ready", flush=True)
tiny_zoo(pathlib.Path({out!r}), progress=lambda stage, done, *_: print(done, flush=True))
"""


def test_a_killed_collector_ends_with_the_same_shards(tmp_path: Path) -> None:
    """SIGKILL at random moments until a run gets through; then every file is as it should be."""
    whole = files(tiny_zoo(tmp_path / "whole"))
    script = KILLED.format(path=[str(ROOT), str(ROOT / "tests")], out=str(tmp_path / "cut"))
    chance = random.Random(1)
    for lines in (1, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(chance.random() / 50)
        process.kill()
        process.communicate()
    zoo = tiny_zoo(tmp_path / "cut")
    assert files(zoo) == whole
