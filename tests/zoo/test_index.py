"""`ltdi.zoo.index`: a kill or a flipped bit costs at most one shard; writers do not collide."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltdi.errors import DamagedFileError, MismatchError
from ltdi.zoo import HEADER, Zoo
from ltdi.zoo.index import NAME as INDEX
from tests.zoo.made import ABOUT, ROOT, SPACE, append, create, load, make_tasks, net_columns


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
    assert sum(len(g) for g in load(again)) == 12
    append(again, "d", extra)
    assert sum(len(g) for g in load(Zoo.open(zoo.path))) == 16


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
from tests.zoo.made import NET, net_columns
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
            path=[str(ROOT)],
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
    assert len(zoo.index.entries) == 60
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
