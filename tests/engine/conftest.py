"""A zoo of one number a task, and jobs that workers find by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from ltdi.weights import WeightSpace
from ltdi.zoo import Zoo

SPACE = WeightSpace.from_shapes({"w": (2,)})


def make(zoo: str, number: int) -> None:
    """A shard of three tasks that are all `number`."""
    theta = torch.full((3, 1, SPACE.size), float(number))
    Zoo.open(zoo).append(f"s{number:03d}", {"theta": theta})


def make_after_a_kill(zoo: str, number: int) -> None:
    """Shard 2 takes its worker down the first time."""
    mark = Path(zoo) / "killed"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    make(zoo, number)


def always_killed(zoo: str, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refused(zoo: str, number: int) -> None:
    raise ValueError(f"shard {number} cannot be")


def tell_and_sleep(zoo: str, number: int) -> None:
    (Path(zoo) / f"pid-{number}").write_text(str(os.getpid()))
    time.sleep(60)


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo.create(tmp_path / "zoo", SPACE, {})
