"""`ltdi.zoo`: solved tasks come back, and damage or a kill costs at most one shard."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
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
from ltdi.weights import WeightSpace, head_space
from ltdi.zoo import BANK, FRAMES, HEADER, SolvedTasks, Zoo, merge
from ltdi.zoo.index import NAME as INDEX

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


def create(
    path: Path,
    space: WeightSpace = SPACE,
    bank: FeatureBank | None = None,
    about: dict[str, Any] = ABOUT,
) -> Zoo:
    zoo = Zoo.create(path, space, about)
    zoo.keep_bank(bank or make_bank())
    return zoo


def append(zoo: Zoo, name: str, tasks: SolvedTasks, finite: torch.Tensor | None = None) -> Any:
    return zoo.append(name, vars(tasks), finite, setting=tasks.setting)


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
    out = create(tmp_path / "zoo")
    for name, tasks in (
        ("a", make_tasks(0)),
        ("b", make_tasks(1, way=2, shot=1)),
        ("c", make_tasks(2)),
    ):
        append(out, name, tasks)
    return out


def test_what_is_appended_is_loaded_by_way_and_shot(zoo: Zoo) -> None:
    small, large = Zoo.open(zoo.path).load()
    assert (small.way, small.shot, len(small)) == (2, 1, 4)
    assert (large.way, large.shot, len(large)) == (3, 2, 8)
    assert_same(small, make_tasks(1, way=2, shot=1))
    assert_same(large, SolvedTasks.concat([make_tasks(0), make_tasks(2)]))


def test_tasks_of_two_frames_are_groups_of_their_own(zoo: Zoo) -> None:
    tasks = make_tasks(3, frame=2)
    append(zoo, "d", tasks)
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
    again = create(zoo.path)
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
        other = create(tmp_path / "other")
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
    append(zoo, "d", tasks)
    groups = Zoo.open(zoo.path).load()
    assert [(g.way, g.shot, len(g)) for g in groups] == [(2, 1, 4), (3, 1, 4), (3, 2, 8)]
    assert_same(groups[1], tasks)


def test_the_index_tells_what_is_inside(zoo: Zoo) -> None:
    again = Zoo.open(zoo.path)
    assert again.about == ABOUT and again.space == SPACE
    assert [s["name"] for s in again.shards] == ["a", "b", "c"]
    entry, tasks = again.shards[1], make_tasks(1, way=2, shot=1)
    assert entry["setting"] == {"way": 2, "shot": 1, "frame": 0}
    assert (entry["tasks"], entry["dropped"]) == (4, 0)
    assert entry["bytes"] == (zoo.path / "b.safetensors").stat().st_size
    assert entry["mean"]["loss"] == pytest.approx(float(tasks.loss.mean()), abs=1e-6)
    assert entry["mean"]["accuracy"] == pytest.approx(float(tasks.accuracy.mean()), abs=1e-6)


def test_the_bank_comes_back(zoo: Zoo) -> None:
    bank, wanted = Zoo.open(zoo.path).bank(), make_bank()
    assert torch.equal(bank.features, wanted.features)
    assert torch.equal(bank.offsets, wanted.offsets) and bank.classes == wanted.classes


def test_tasks_that_are_not_finite_are_dropped_and_counted(zoo: Zoo) -> None:
    tasks = make_tasks(5, way=4)
    tasks.theta[1, 0, 2] = float("nan")
    tasks.loss[3] = float("inf")
    finite = torch.tensor([True, False, True, False])
    entry = append(zoo, "d", tasks, finite)
    assert (entry["tasks"], entry["dropped"]) == (2, 2)
    group = next(g for g in Zoo.open(zoo.path).load() if g.way == 4)
    assert_same(group, tasks.keep(finite))
    line = json.loads((zoo.path / INDEX).read_text().splitlines()[-1])
    assert {k: v for k, v in line.items() if k != "sum"} == entry


def test_a_shard_may_be_empty_but_a_zoo_may_not(tmp_path: Path) -> None:
    zoo = create(tmp_path / "zoo")
    with pytest.raises(InputError, match="no solved task"):
        zoo.load()
    tasks = make_tasks(0)
    entry = append(zoo, "a", tasks, ~all_of(tasks))
    assert (entry["tasks"], entry["dropped"], entry["mean"]["loss"]) == (0, 4, None)
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
        patch.setattr("ltdi.zoo.index.Index.append", killed)
        append(zoo, "d", extra)
    assert (zoo.path / "d.safetensors").is_file()
    again = create(zoo.path)
    assert not again.has("d") and all(again.has(name) for name in "abc")
    assert sum(len(g) for g in again.load()) == 12
    append(again, "d", extra)
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
    again = create(zoo.path)
    append(again, "a", make_tasks(0))
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
    create(zoo.path)
    assert torch.equal(Zoo.open(zoo.path).bank().features, make_bank().features)


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", "null", '"zoo"', '{"schema": 1}', '{"schema": 1, "shards": []}']
)
def test_a_damaged_header_is_named(zoo: Zoo, content: str) -> None:
    (zoo.path / HEADER).write_text(content)
    with pytest.raises(DamagedFileError, match=r"zoo\.json"):
        Zoo.open(zoo.path)


def test_another_schema_is_refused(zoo: Zoo) -> None:
    header = json.loads((zoo.path / HEADER).read_text())
    (zoo.path / HEADER).write_text(json.dumps({**header, "schema": 99}))
    with pytest.raises(MismatchError, match="schema 99, this version reads 3"):
        Zoo.open(zoo.path)


def test_a_directory_that_is_not_a_zoo(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a zoo"):
            Zoo.open(path)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="left as it is"):
        create(tmp_path)
    own_directory(tmp_path / "g", "generator")
    with pytest.raises(InputError, match="holds a generator"):
        create(tmp_path / "g")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["thesis.tex"]


def test_the_same_settings_take_a_zoo_up(zoo: Zoo) -> None:
    assert create(zoo.path).shards == zoo.shards
    # The way may differ.
    assert create(zoo.path, head_space(D, 10)).shards == zoo.shards


def test_other_settings_weight_space_or_features_do_not(zoo: Zoo) -> None:
    before = {p.name: p.read_bytes() for p in zoo.path.iterdir()}
    with pytest.raises(MismatchError, match="seed = 1, now 2"):
        create(zoo.path, SPACE, None, {**ABOUT, "seed": 2})
    with pytest.raises(MismatchError, match=r"prepare = \{'lr': 0.1\}, now \{'lr': 0.2\}"):
        create(zoo.path, SPACE, None, {**ABOUT, "prepare": {"lr": 0.2}})
    with pytest.raises(MismatchError, match=r"weight\[3, 4\].*not weight\[3, 7\]"):
        create(zoo.path, head_space(7, 3))
    renamed = replace(make_bank(), classes=("x", "c1", "c2", "c3", "c4"))
    moved = replace(make_bank(), offsets=torch.tensor([0, 9, 16, 24, 32, 40]))
    for bank in (make_bank(seed=1), make_bank(classes=6), renamed, moved):
        with pytest.raises(MismatchError, match="other images"):
            create(zoo.path, SPACE, bank)
    assert before == {p.name: p.read_bytes() for p in zoo.path.iterdir()}


def test_features_that_only_round_differently_are_the_same(zoo: Zoo) -> None:
    bank = make_bank()
    create(zoo.path, SPACE, replace(bank, features=bank.features * (1 + 1e-3)))


def test_tasks_of_another_weight_space_are_not_appended(zoo: Zoo) -> None:
    zoo.check(head_space(D, 9))
    with pytest.raises(MismatchError, match="the zoo holds"):
        zoo.check(head_space(D + 1, 3))


@pytest.mark.parametrize("name", [HEADER, INDEX])
def test_every_flipped_bit_of_the_index_is_found(zoo: Zoo, name: str) -> None:
    """One of eight bits of each byte, at random; of the schema's number, it is another schema."""
    path, rng = zoo.path / name, random.Random(0)
    whole = path.read_bytes()
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with pytest.raises((DamagedFileError, MismatchError), match=r"zoo|shards"):
            Zoo.open(zoo.path)


def test_an_index_cut_anywhere_loses_no_line_before_the_cut(zoo: Zoo) -> None:
    """What a kill leaves: the shard of the line that was cut is made again, the others stay."""
    path = zoo.path / INDEX
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position])
        cut = Zoo.open(zoo.path)
        lost = [n for n in "abc" if not cut.has(n)]
        kept = whole[:position].count(b"\n") + (whole[position : position + 1] == b"\n")
        assert lost == list("abc")[kept:]
        for number, name in enumerate("abc"):
            way, shot = ((3, 2), (2, 1), (3, 2))[number]
            append(cut, name, make_tasks(number, way=way, shot=shot))
        assert path.read_bytes() == whole


def tiny_zoo(path: Path, recipe: Recipe = TINY, progress: Any = None) -> Zoo:
    """Eight shards; the backbone is a stand-in, only its fingerprint is read."""
    backbone = Backbone(nn.Identity(), InputTransform(), {"kind": "none"})
    anchor = PrototypeAnchor(0.5)
    return prepare_zoo(path, make_bank(), anchor, recipe, backbone, progress=progress)


def files(zoo: Zoo) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in zoo.path.iterdir() if not p.name.endswith(".tmp")}


def test_collecting_again_changes_nothing(tmp_path: Path) -> None:
    before = files(tiny_zoo(tmp_path))
    assert len(before) == 8 + 7
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


# ---- any kind of weights, at any size ------------------------------------------------------------


NET = WeightSpace.from_shapes({"fc.weight": (3, 2), "fc.bias": (3,)})


def net_columns(seed: int, tasks: int = 5) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "theta": torch.randn(tasks, 2, NET.size, generator=rng),
        "condition": torch.randn(tasks, 4, generator=rng).bfloat16(),
        "item": torch.randint(1 << 40, (tasks,), generator=rng),
        "flag": torch.rand(tasks, 1, generator=rng) > 0.5,
        "loss": torch.rand(tasks, generator=rng),
    }


def test_a_zoo_of_other_weights_needs_no_bank_and_keeps_what_is_shared_once(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path, NET, {})
    start = torch.randn(NET.size)
    assert torch.equal(zoo.keep("start", {"theta_0": start}, {"by": "me"})["theta_0"], start)
    # The first one stays.
    assert torch.equal(zoo.keep("start", {"theta_0": start + 1})["theta_0"], start)
    for number in range(3):
        zoo.append(f"s{number}", net_columns(number))
    again = Zoo.open(tmp_path)
    assert torch.equal(again.shared("start")["theta_0"], start)
    assert again.note("start") == {"by": "me"} and again.note("bank") is None
    (group,) = again.groups()
    assert len(group) == 15 and group.setting == {}
    wanted = [net_columns(number) for number in range(3)]
    for name, value in group.read().items():
        both = torch.cat([w[name] for w in wanted])
        assert torch.equal(value, both) and value.dtype == both.dtype, name


@pytest.mark.parametrize("most", [1, 512])
def test_rows_are_those_of_the_whole(tmp_path: Path, most: int) -> None:
    """In any order, repeated or not, from one shard or many, however few files may be open."""
    zoo = Zoo.create(tmp_path, NET, {})
    for number in range(7):
        zoo.append(f"s{number}", net_columns(number, tasks=1 + number % 3))
    zoo.maps.most, zoo.maps.touched = most, 1
    (group,) = zoo.groups()
    whole = group.read()
    rng = torch.Generator().manual_seed(0)
    for size in (1, 3, 40):
        pick = torch.randint(len(group), (size,), generator=rng)
        for name, value in group.read(pick).items():
            assert torch.equal(value, whole[name][pick]), name
    assert list(group.read(pick, ["loss"])) == ["loss"]
    assert len(zoo.maps.open) <= most


def test_theta_must_fit_the_space(zoo: Zoo, tmp_path: Path) -> None:
    nets = Zoo.create(tmp_path / "n", NET, {})
    columns = net_columns(0)
    with pytest.raises(MismatchError, match=r"theta \[E, k, 9\], got \[5, 2, 8\]"):
        nets.append("s", {**columns, "theta": columns["theta"][..., 1:]})
    with pytest.raises(MismatchError, match="got none"):
        nets.append("s", {"loss": columns["loss"]})
    with pytest.raises(InputError, match="'loss' has 4 rows, theta has 5"):
        nets.append("s", {**columns, "loss": columns["loss"][1:]})
    with pytest.raises(MismatchError, match=r"theta \[E, k, 10\], got \[4, 2, 15\]"):
        zoo.append("d", vars(make_tasks(0)), setting={"way": 2})
    assert not nets.shards and not zoo.has("d")


def test_a_reader_sees_what_a_writer_appends(zoo: Zoo) -> None:
    reader = Zoo.open(zoo.path)
    assert not reader.refresh()
    append(zoo, "d", make_tasks(3))
    assert not reader.has("d") and reader.refresh() and reader.has("d")
    assert sum(len(g) for g in reader.groups()) == 16
    assert sum(len(g) for g in reader.groups(["a", "d"])) == 8


WRITER = """
import sys, pathlib
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from test_zoo import NET, net_columns
from ltdi.zoo import Zoo
zoo = Zoo.create(pathlib.Path({out!r}), NET, {{}})
zoo.keep("start", {{"theta_0": torch.full((3,), {mark}.0)}})
print("ready", flush=True)
sys.stdin.readline()
for number in range({first}, 60, {step}):
    zoo.append(f"s{{number:03d}}", net_columns(number))
"""


def test_two_writers_are_safe(tmp_path: Path) -> None:
    """Two processes write every other shard, and some of them both: none is lost or doubled."""
    processes = []
    for mark, (first, step) in enumerate(((0, 1), (1, 2))):
        script = WRITER.format(
            path=[str(ROOT), str(ROOT / "tests")],
            out=str(tmp_path / "zoo"),
            mark=mark,
            first=first,
            step=step,
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0
    zoo = Zoo.open(tmp_path / "zoo")
    assert [e["name"] for e in zoo.index.entries] != [] and len(zoo.index.entries) == 60
    assert len(set(zoo.shared("start")["theta_0"].tolist())) == 1
    assert list(zoo.verify()) == []
    (group,) = zoo.groups()
    wanted = torch.cat([net_columns(number)["theta"] for number in range(60)])
    assert torch.equal(group.read(None, ["theta"])["theta"], wanted)


def test_compacting_drops_what_was_made_anew(zoo: Zoo) -> None:
    (zoo.path / "a.safetensors").unlink()
    append(zoo, "a", make_tasks(8))  # other content, so a line of its own
    before = Zoo.open(zoo.path).shards
    assert zoo.compact() == 1 and zoo.compact() == 0
    again = Zoo.open(zoo.path)
    assert again.shards == before and len(again.index.entries) == 3
    append(again, "d", make_tasks(9))
    reader = Zoo.open(zoo.path)
    assert [e["name"] for e in reader.shards] == ["a", "b", "c", "d"]


def test_verify_names_every_damage(zoo: Zoo) -> None:
    assert list(zoo.verify()) == []
    flipped = bytearray((zoo.path / "b.safetensors").read_bytes())
    flipped[-3] ^= 4
    (zoo.path / "b.safetensors").write_bytes(flipped)
    (zoo.path / "c.safetensors").unlink()
    (zoo.path / BANK).write_bytes(b"x")
    found = [str(error) for error in Zoo.open(zoo.path).verify()]
    assert len(found) == 3
    for text, name in zip(found, ("bank", "b.safetensors", "c.safetensors"), strict=True):
        assert name in text and "to do" in text


def test_a_zoo_is_read_from_a_url(zoo: Zoo, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(str(zoo.path), "/zoos/one", recursive=True)
    there = Zoo.open("memory://zoos/one", cache=tmp_path / "cache")
    assert there.shards == zoo.shards
    fetched = {p.name for p in there.path.iterdir()}
    assert fetched == {HEADER, INDEX}  # nothing else was needed
    for a, b in zip(there.load(), zoo.load(), strict=True):
        assert_same(a, b)
    # A shard that was made anew there is fetched anew.
    (zoo.path / "a.safetensors").unlink()
    append(zoo, "a", make_tasks(8))
    system.put(str(zoo.path / "a.safetensors"), "/zoos/one/a.safetensors")
    system.put(str(zoo.path / INDEX), f"/zoos/one/{INDEX}")
    again = Zoo.open("memory://zoos/one", cache=tmp_path / "cache")
    for a, b in zip(again.load(), zoo.load(), strict=True):
        assert_same(a, b)
    with pytest.raises(InputError, match="is for reading"):
        Zoo.create("memory://zoos/two", SPACE, ABOUT)
    with pytest.raises(InputError, match="not a zoo"):
        Zoo.open("memory://zoos/none", cache=tmp_path / "cache")
    with pytest.raises(InputError, match="cannot read nosuch://x"):
        Zoo.open("nosuch://x")


def test_merging_two_parts_of_a_collection_is_the_whole(zoo: Zoo, tmp_path: Path) -> None:
    parts = [create(tmp_path / n) for n in ("p", "q")]
    append(parts[0], "a", make_tasks(0))
    for name, number, way, shot in (("a", 0, 3, 2), ("b", 1, 2, 1), ("c", 2, 3, 2)):
        append(parts[1], name, make_tasks(number, way=way, shot=shot))
    merged = merge([p.path for p in parts], tmp_path / "m")
    assert [e["digest"] for e in merged.shards] == [e["digest"] for e in zoo.shards]
    for a, b in zip(merged.load(), zoo.load(), strict=True):
        assert_same(a, b)
    again = merge([p.path for p in parts], tmp_path / "m")
    assert again.shards == merged.shards
    with pytest.raises(InputError, match="at least two"):
        merge([zoo.path], tmp_path / "n")


def test_merging_two_seeds_keeps_each_ones_frames(tmp_path: Path) -> None:
    zoos = []
    for seed in (1, 2):
        zoo = create(tmp_path / str(seed), about={**ABOUT, "seed": seed})
        zoo.keep_frames(make_frames(seed, 2), [[seed], [0]])
        for frame in (0, 1):
            append(zoo, f"s{frame}", make_tasks(10 * seed + frame, frame=frame))
        zoos.append(zoo)
    (zoos[0].path / "extra.txt").write_text("kept")
    merged = merge([z.path for z in zoos], tmp_path / "m")
    assert_same_frames(merged.frames(), make_frames(1, 2) + make_frames(2, 2))
    assert merged.held == [[1], [0], [2], [0]]
    for frame, tasks in enumerate(merged.load()):
        original = make_tasks(10 * (1 + frame // 2) + frame % 2, frame=frame)
        assert_same(tasks, original)
    assert (merged.path / "extra.txt").read_text() == "kept"
    other = create(tmp_path / "o", about={**ABOUT, "prepare": {"lr": 0.5}})
    with pytest.raises(MismatchError, match="prepare is"):
        merge([zoos[0].path, other.path], tmp_path / "n")
    with pytest.raises(MismatchError, match="bank differs"):
        merge([zoos[0].path, create(tmp_path / "b", bank=make_bank(1)).path], tmp_path / "n")


SIZE = """
import sys, time, pathlib, torch
from ltdi.memory import peak_mb, reset_peak
from ltdi.zoo import Zoo
Zoo.open({small!r}).groups()[0].read(torch.zeros(1, dtype=torch.long))
for path in ({small!r}, {large!r}):
    reset_peak()
    start = time.perf_counter()
    zoo = Zoo.open(path)
    (group,) = zoo.groups()
    seconds = time.perf_counter() - start
    rng = torch.Generator().manual_seed(0)
    zoo.maps.touched = 1 << 25
    for _ in range(30):
        group.read(torch.randint(len(group), (64,), generator=rng))
    print(len(group), seconds, peak_mb())
"""


def test_opening_and_sampling_do_not_grow_with_the_zoo(tmp_path: Path) -> None:
    """100,000 tasks of 100 tokens; the shards' content is one file under many names."""
    space = WeightSpace.from_shapes({"w": (100, 8)})  # 100 tokens of 8
    for name, shards in (("small", 2), ("large", 200)):
        zoo = Zoo.create(tmp_path / name, space, {})
        zoo.append("s00000", {"theta": torch.zeros(500, 1, space.size)})
        entry, source = zoo.shards[0], tmp_path / name / "s00000.safetensors"
        for number in range(1, shards):
            os.link(source, tmp_path / name / f"s{number:05d}.safetensors")
            zoo.index.append({**entry, "name": f"s{number:05d}"})
    assert 100 * 500 * len(zoo.index.entries) == 10_000_000
    script = SIZE.format(small=str(tmp_path / "small"), large=str(tmp_path / "large"))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    small, large = (list(map(float, line.split())) for line in run.stdout.splitlines())
    assert (small[0], large[0]) == (1000, 100_000)
    assert large[1] < 1.0
    assert large[2] < small[2] + 64  # of 320 MB on disk
