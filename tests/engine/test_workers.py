"""`ltdi.engine.workers`: every shard is made once, whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltdi.engine import Engine
from ltdi.errors import InputError, LtdiError
from ltdi.zoo import Zoo
from tests.engine.conftest import always_killed, make, make_after_a_kill, refused

ROOT = Path(__file__).resolve().parents[2]


def run(engine: Engine, job, zoo: Zoo, numbers: list[int]) -> list[int]:
    made = []
    with engine.start(job, str(zoo.path), numbers) as running:
        while running.left:
            made += running.poll()
    return made


def contents(zoo: Zoo) -> list[float]:
    return Zoo.open(zoo.path).groups()[0].read()["theta"][:, 0, 0].tolist()


def test_this_process_makes_them_in_order(zoo: Zoo) -> None:
    assert run(Engine(), make, zoo, [3, 1, 2]) == [3, 1, 2]
    assert contents(zoo) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_processes_make_every_one_though_a_worker_is_killed(zoo: Zoo) -> None:
    made = run(Engine(workers=2), make_after_a_kill, zoo, list(range(6)))
    assert sorted(made) == list(range(6)) and (zoo.path / "killed").exists()
    assert contents(zoo) == [float(n) for n in range(6) for _ in range(3)]


def test_workers_that_only_die_are_given_up(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.engine.workers.PATIENCE", 1)
    with pytest.raises(LtdiError, match="died 1 times"):
        run(Engine(workers=1), always_killed, zoo, [7])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_raises_is_raised(zoo: Zoo, workers: int) -> None:
    with pytest.raises(ValueError, match="shard 4 cannot be"):
        run(Engine(workers=workers), refused, zoo, [4, 5])


ALONE = """
import sys
sys.path.insert(0, {root!r})
from ltdi.engine import Engine
from tests.engine.conftest import tell_and_sleep
if __name__ == "__main__":
    Engine(workers=1).start(tell_and_sleep, {zoo!r}, [0]).poll()
"""


def test_workers_end_with_the_process_that_started_them(zoo: Zoo, tmp_path: Path) -> None:
    """However it ends: a SIGKILL leaves it no time to tell them."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE.format(root=str(ROOT), zoo=str(zoo.path)))
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = zoo.path / "pid-0"
    until = time.monotonic() + 60
    while not (told.is_file() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    worker = int(told.read_text())
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="did you mean 'ray'"):
        Engine("rey")
    with pytest.raises(InputError, match="workers = -1"):
        Engine(workers=-1)


def test_without_ray_the_extra_is_named(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"'\.\[ray\]'"):
        run(Engine("ray", 1), make, zoo, [0])


@pytest.mark.slow
def test_a_local_ray_cluster_makes_every_one_though_a_worker_is_killed(zoo: Zoo) -> None:
    pytest.importorskip("ray", reason="RAY NOT TESTED: pip install -e '.[ray]'")
    made = run(Engine("ray", 2), make_after_a_kill, zoo, list(range(6)))
    assert sorted(made) == list(range(6)) and (zoo.path / "killed").exists()
    assert contents(zoo) == [float(n) for n in range(6) for _ in range(3)]
