"""Kills, full disks, read-only places, clocks: a run goes on, or says what is wrong.

`benchmarks/recovery.py` does the same fifty times of each kind.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import recovery
from ltdi.engine import Engine
from ltdi.pipeline import HeadObjective
from ltdi.zoo import Zoo

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="RECOVERY NOT TESTED: no fork")


@pytest.mark.parametrize("kind", ["collect", "train", "overlap"])
def test_a_few_kills_change_nothing(kind: str) -> None:
    """Of processes of their own; the shards of `overlap` are made where training needs them."""
    run = recovery.KINDS[kind]
    run = partial(recovery.overlap, engine=Engine()) if kind == "overlap" else run
    report = recovery.killed_runs(kind, run, kills=2, seed=3)
    assert report.good and report.kills == 2, report


@pytest.mark.slow
@pytest.mark.parametrize("kind", recovery.KINDS)
def test_fifty_kills_change_nothing(kind: str) -> None:
    report = recovery.killed_runs(kind, recovery.KINDS[kind], kills=50, seed=0)
    assert report.good and report.kills == 50, report


@pytest.mark.slow
def test_fifty_killed_ray_workers_change_nothing() -> None:
    pytest.importorskip("ray", reason="RAY NOT TESTED: pip install -e '.[ray]'")
    report = recovery.killed_workers(kills=50, seed=0)
    assert report.good and report.kills == 50, report


# Namespaces of one's own need no rights: nothing is mounted for anyone else.
APART = "mount -t tmpfs -o size={size} none {place} && {then}"


def apart(place: Path, size: str, then: str) -> subprocess.CompletedProcess[str]:
    """Run with a small disk of its own mounted at a place."""
    place.mkdir()
    command = ["unshare", "-rm", "sh", "-c", APART.format(size=size, place=place, then=then)]
    probe = ["unshare", "-rm", "sh", "-c", APART.format(size=size, place=place, then="true")]
    try:
        able = subprocess.run(probe, capture_output=True).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("FULL DISKS NOT TESTED: this system mounts nothing for its users")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


FULL = """
import sys, shutil, pathlib
from benchmarks import recovery
place, out = map(pathlib.Path, sys.argv[1:])
for run in (recovery.collect, recovery.train):
    ballast = place / "ballast"
    try:
        # Room for the beginning only.
        ballast.write_bytes(bytes(shutil.disk_usage(place).free - 60_000))
        run(place)
    except OSError as error:
        print("full:", error.errno)
    else:
        print("not full")
    ballast.unlink()
    run(place)
shutil.copytree(place, out)
"""


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(tmp_path: Path) -> None:
    place, out = tmp_path / "disk", tmp_path / "out"
    (tmp_path / "full.py").write_text(FULL)
    run = apart(place, "3m", f"{sys.executable} {tmp_path / 'full.py'} {place} {out}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["full: 28"] * 2
    whole = tmp_path / "whole"
    whole.mkdir()
    recovery.collect(whole)
    recovery.train(whole)
    assert recovery.outcome(out) == recovery.outcome(whole)


def test_a_read_only_place_is_the_users_error(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    then = f"mount -o remount,ro {place} && {sys.executable} -m ltdi collect --out {place}/zoo"
    run = apart(place, "3m", then)
    assert run.returncode == 2
    assert "Read-only file system" in run.stderr and "Traceback" not in run.stderr
    assert "to do: check the path, its permissions and the free space" in run.stderr


def test_a_zoo_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    """Reading takes no lock and leaves no file."""
    recovery.collect(tmp_path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    zoo = Zoo.open(tmp_path / "zoo")
    assert list(zoo.verify()) == [] and len(zoo.groups()) == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == files


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the system's clock nor the times of files are asked what is newer."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    recovery.collect(tmp_path / "a")
    recovery.train(tmp_path / "a")
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.random() * 1e10)
    recovery.collect(tmp_path / "b")

    class Stop(Exception):
        pass

    drawn, draw = [0], HeadObjective.draw

    def counted(self: HeadObjective, rng: torch.Generator, tasks: int) -> Any:
        drawn[0] += 1
        if drawn[0] == 100:
            raise Stop
        return draw(self, rng, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(HeadObjective, "draw", counted)
        with pytest.raises(Stop):
            recovery.train(tmp_path / "b")
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (chance.random() * 1e9,) * 2)
    recovery.train(tmp_path / "b")
    assert recovery.outcome(tmp_path / "b") == recovery.outcome(tmp_path / "a")


def test_a_damaged_shard_is_named_and_made_again(tmp_path: Path) -> None:
    recovery.collect(tmp_path)
    before = recovery.outcome(tmp_path)
    shard = tmp_path / "zoo" / "shard-000005.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    (problem,) = Zoo.open(tmp_path / "zoo").verify()
    assert "shard-000005" in problem.what
    shard.unlink()
    recovery.collect(tmp_path)
    assert recovery.outcome(tmp_path) == before
