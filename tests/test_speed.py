"""`benchmarks/run.py`: its arithmetic; the figures themselves are for a quiet machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.speed import common
from benchmarks.speed.common import Figure
from benchmarks.speed.cost import error, fitted
from benchmarks.speed.table import markdown
from benchmarks.speed.train import stop_watch
from ltdi.meta import MetaConfig
from ltdi.recipe import Network


def test_a_cost_that_is_linear_is_found() -> None:
    rows = [[1.0, a, b] for a in (1.0, 10.0, 100.0) for b in (2.0, 30.0)]
    times = [3.0 + 0.5 * a + 2.0 * b for _, a, b in rows]
    found = fitted(rows, times)
    assert found == pytest.approx([3.0, 0.5, 2.0])
    assert error(rows, times, found) == pytest.approx(0, abs=1e-9)


def test_no_coefficient_is_negative() -> None:
    rows = [[1.0, a] for a in (1.0, 2.0, 4.0)]
    found = fitted(rows, [1.0, 2.5, 5.5])  # best with -0.5 + 1.5 a
    assert found[0] == 0.0 and found[1] > 0


def test_runs_are_timed_in_turns_and_the_middle_is_taken() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("a")
        time.sleep(0.05)  # takes no processor
        start = time.process_time()
        while time.process_time() < start + 0.01:
            pass

    seconds = common.in_turns({"a": slow, "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert 0.05 > seconds["a"] >= 0.01 > seconds["b"]


def test_operations_of_a_product_are_counted(tmp_path: Path) -> None:
    data = common.solved(tmp_path / "zoo", 8)

    def flops(depth: int) -> float:
        return common.flops_of(
            common.trainer(data, Network("transformer", 32, depth), MetaConfig())
        )

    assert 0 < flops(1) < flops(3) < 3 * flops(1)
    assert common.matmul_rate(5) > 1e8 and torch.get_num_threads() == 1


def test_a_stop_watch_leaves_the_function_as_it_was() -> None:
    before = common.in_turns
    with stop_watch(common, "in_turns") as seconds:
        common.in_turns({}, 1)
        assert common.in_turns is not before
    assert len(seconds) == 1 and common.in_turns is before


def test_what_is_measured_of_one_thing_stands_in_one_line() -> None:
    figures = [
        Figure("prepare", "heads: ms", 0.1234, ">= 30"),
        Figure("generate", "batch 1: ms", 2.0),
        Figure("generate", "batch 1: tasks/s", 512.3),
        Figure("generate", "batch 1: floor / time", 0.25),
    ]
    assert "| heads: ms | 0.123 | >= 30 |" in markdown(figures)
    assert "| batch 1 | 2 | 512 | 0.25 |" in markdown(figures)


def test_a_part_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "prepping"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no part prepping; there are prepare, train" in capsys.readouterr().err
