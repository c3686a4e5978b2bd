"""`benchmarks/run.py`: its arithmetic; the figures themselves are for a quiet machine."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import run


def test_a_cost_that_is_linear_is_found() -> None:
    rows = [[1.0, a, b] for a in (1.0, 10.0, 100.0) for b in (2.0, 30.0)]
    times = [3.0 + 0.5 * a + 2.0 * b for _, a, b in rows]
    found = run._fitted(rows, times)
    assert found == pytest.approx([3.0, 0.5, 2.0])
    assert run._error(rows, times, found) == pytest.approx(0, abs=1e-9)


def test_no_coefficient_is_negative() -> None:
    rows = [[1.0, a] for a in (1.0, 2.0, 4.0)]
    found = run._fitted(rows, [1.0, 2.5, 5.5])  # best with -0.5 + 1.5 a
    assert found[0] == 0.0 and found[1] > 0


def test_runs_are_timed_in_turns_and_the_middle_is_taken() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("a")
        time.sleep(0.05)  # takes no processor
        start = time.process_time()
        while time.process_time() < start + 0.01:
            pass

    seconds = run.in_turns({"a": slow, "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert 0.05 > seconds["a"] >= 0.01 > seconds["b"]


def test_operations_of_a_product_are_counted(tmp_path) -> None:
    collection = run.begun(
        tmp_path / "zoo", run.Recipe(tasks=run.Tasks(per_setting=8, folds=0), anchor="prototype")
    )
    collection.fill()
    data = run.TrainingSet.of(collection.zoo)
    few = run.flops_of(run.trainer(data, run.Network("transformer", 32, 1), run.MetaConfig()))
    more = run.flops_of(run.trainer(data, run.Network("transformer", 32, 3), run.MetaConfig()))
    assert 0 < few < more < 3 * few
    assert run.matmul_rate(5) > 1e8 and torch.get_num_threads() == 1
