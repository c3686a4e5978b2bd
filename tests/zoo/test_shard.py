"""`ltdi.zoo.shard`: rows are those that were written, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.zoo import Zoo
from ltdi.zoo.index import NAME as INDEX
from tests.zoo.made import NET, Solved, append, assert_same, create, load, make_tasks, net_columns


def all_of(tasks: Solved) -> torch.Tensor:
    return torch.ones(len(tasks), dtype=torch.bool)


def test_tasks_that_are_not_finite_are_dropped_and_counted(zoo: Zoo) -> None:
    tasks = make_tasks(5, way=4)
    tasks.theta[1, 0, 2] = float("nan")
    tasks.loss[3] = float("inf")
    finite = torch.tensor([True, False, True, False])
    entry = append(zoo, "d", tasks, finite)
    assert (entry["tasks"], entry["dropped"]) == (2, 2)
    group = next(g for g in load(Zoo.open(zoo.path)) if g.way == 4)
    assert_same(group, Solved(**{n: value[finite] for n, value in vars(tasks).items()}))
    line = json.loads((zoo.path / INDEX).read_text().splitlines()[-1])
    assert {k: v for k, v in line.items() if k != "sum"} == entry


def test_a_shard_may_be_empty_but_a_zoo_may_not(tmp_path: Path) -> None:
    zoo = create(tmp_path / "zoo")
    with pytest.raises(InputError, match="no solved task"):
        load(zoo)
    tasks = make_tasks(0)
    entry = append(zoo, "a", tasks, ~all_of(tasks))
    assert (entry["tasks"], entry["dropped"], entry["mean"]["loss"]) == (0, 4, None)
    with pytest.raises(InputError, match="no solved task"):
        load(Zoo.open(zoo.path))


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
        load(Zoo.open(zoo.path))
    assert caught.value.where == str(path) and "collect again" in caught.value.fix
    assert others == {p.name: p.read_bytes() for p in zoo.path.iterdir() if p != path}


def test_a_shard_made_anew_takes_its_old_place(zoo: Zoo) -> None:
    before = load(Zoo.open(zoo.path))
    (zoo.path / "a.safetensors").unlink()
    again = create(zoo.path)
    append(again, "a", make_tasks(0))
    for x, y in zip(before, load(Zoo.open(zoo.path)), strict=True):
        assert_same(x, y)


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
