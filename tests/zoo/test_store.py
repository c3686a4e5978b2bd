"""`ltdi.zoo.store`: solved tasks come back by setting, and what they share is kept once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.weights import WeightSpace, head_space
from ltdi.zoo import BANK, FRAMES, Zoo
from tests.zoo.made import (
    NET,
    ROOT,
    D,
    Solved,
    append,
    assert_same,
    assert_same_frames,
    create,
    load,
    make_bank,
    make_frames,
    make_tasks,
    net_columns,
)


def test_what_is_appended_is_loaded_by_way_and_shot(zoo: Zoo) -> None:
    small, large = load(Zoo.open(zoo.path))
    assert (small.way, small.shot, len(small)) == (2, 1, 4)
    assert (large.way, large.shot, len(large)) == (3, 2, 8)
    assert_same(small, make_tasks(1, way=2, shot=1))
    both = [vars(make_tasks(number)) for number in (0, 2)]
    assert_same(large, Solved(**{n: torch.cat([b[n] for b in both]) for n in both[0]}))


def test_tasks_of_another_shot_or_frame_are_groups_of_their_own(zoo: Zoo) -> None:
    other = {"d": make_tasks(3, frame=2), "e": make_tasks(4, shot=1)}
    for name, tasks in other.items():
        append(zoo, name, tasks)
    groups = load(Zoo.open(zoo.path))
    found = [(g.way, g.shot, int(g.frame[0]), len(g)) for g in groups]
    assert found == [(2, 1, 0, 4), (3, 1, 0, 4), (3, 2, 0, 8), (3, 2, 2, 4)]
    assert_same(groups[3], other["d"])
    assert_same(groups[1], other["e"])


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


def test_the_bank_comes_back(zoo: Zoo) -> None:
    bank, wanted = Zoo.open(zoo.path).bank(), make_bank()
    assert torch.equal(bank.features, wanted.features)
    assert torch.equal(bank.offsets, wanted.offsets) and bank.classes == wanted.classes


def test_a_lost_bank_is_written_again(zoo: Zoo) -> None:
    (zoo.path / BANK).unlink()
    create(zoo.path)
    assert torch.equal(Zoo.open(zoo.path).bank().features, make_bank().features)


def test_tasks_of_another_weight_space_are_not_appended(zoo: Zoo) -> None:
    zoo.check(head_space(D, 9))
    with pytest.raises(MismatchError, match="the zoo holds"):
        zoo.check(head_space(D + 1, 3))


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
