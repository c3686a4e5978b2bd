"""`ltdi.report.table`: the JSON is the interface's, and no number is lost on its way."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ltdi.errors import InputError
from ltdi.report import Result, Row, show
from ltdi.report.table import KINDS, ordered

TOP = ["track", "dataset", "preset", "seed", "settings", "rows"]
COLUMNS = [
    "method", "kind", "metric", "mean", "ci95", "episodes",
    "latency_ms", "prepare_s", "train_s", "peak_mb",
]  # fmt: skip
NUMBERS = st.floats(-1e6, 1e6)


def row(method: str, kind: str, mean: float, **other: object) -> Row:
    base = Row(method, kind, "accuracy", mean, 0.0021, 1000, 1.95, 12.04, 80.3, 900)
    return replace(base, **other)  # type: ignore[arg-type]


def example() -> Result:
    rows = [
        row("protonet", "peer", 0.97, latency_ms=0.31),
        row("mv-di", "control", 0.96),
        row("linear-probe", "peer", 0.98),
        row("lt-di", "ours", 0.985),
        row("mv-di-matched", "control", 0.984),
    ]
    paired = {"protonet": {"mean": 0.015, "ci95": 0.0012}, "mv-di": {"mean": -0.025, "ci95": 0.002}}
    return Result("fewshot", "omniglot", "standard", 0, {"paired": paired}, rows)


def printed(result: Result, *, width: int | None = None, encoding: str = "utf-8") -> str:
    """What a file gets, or a terminal of some width."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    terminal = width is not None
    show(result, Console(file=stream, width=width, force_terminal=terminal, no_color=True))
    stream.flush()
    return re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode(encoding))


def test_the_json_has_the_keys_of_the_interface_in_order(tmp_path: Path) -> None:
    example().write_json(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(data) == TOP
    assert all(list(r) == COLUMNS for r in data["rows"])
    assert data == example().to_dict()


def test_a_row_names_its_dataset_only_if_it_has_one() -> None:
    assert list(row("lt-di", "ours", 0.9, dataset="pets").to_dict()) == [*COLUMNS, "dataset"]


@given(NUMBERS, st.floats(0, 1e6), st.integers(0, 10**6), st.none() | st.text(max_size=5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_json_round_trip_is_the_identity(
    mean: float, cost: float, episodes: int, dataset: str | None
) -> None:
    first = Row("m", "peer", "accuracy", mean, 0.1, episodes, cost, cost, cost, cost, dataset)
    result = Result("t", "d", "smoke", 3, {"a": [1, 2]}, (first,))
    (kept,) = json.loads(json.dumps(result.to_dict()))["rows"]
    assert Row(**kept) == first


def test_numbers_are_rounded() -> None:
    data = Row("m", "peer", "a", 1 / 3, 1 / 7, 5, 1 / 3, 1 / 3, 2 / 3, 899.6).to_dict()
    assert list(data.values())[3:] == [0.333333, 0.142857, 5, 0.333, 0.33, 0.67, 900]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="row 'm'"):
        row("m", "peer", value)


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'peer'"):
        row("m", "peers", 0.5)


@given(st.permutations(example().rows))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_rows_are_ordered_by_kind_then_mean(rows: list[Row]) -> None:
    names = [r.method for r in ordered(rows)]
    assert names == ["lt-di", "mv-di-matched", "mv-di", "linear-probe", "protonet"]


@pytest.mark.parametrize("width", [None, 40, 80, 200])
def test_every_number_is_printed_at_every_width(width: int | None) -> None:
    text = printed(example(), width=width)
    for r in example().rows:
        assert f"{r.mean:.4f} ± {r.ci95:.4f}" in text
        assert f"{r.latency_ms:.2f}" in text
    for number in ("+0.0150 ± 0.0012", "-0.0250 ± 0.0020", "1000", "12.0", "80.3", "900"):
        assert number in text
    assert "…" not in text


def test_what_is_not_a_terminal_gets_plain_text_with_a_line_per_method() -> None:
    raw = io.StringIO()
    show(example(), Console(file=raw))
    lines = [line for line in raw.getvalue().splitlines() if "0.0021" in line]
    assert len(lines) == len(example().rows)
    assert "\x1b" not in raw.getvalue()


def test_a_console_without_unicode_gets_ascii() -> None:
    assert "0.9850 +/- 0.0021" in printed(example(), encoding="ascii")


@pytest.mark.parametrize("width", [None, 40])
def test_only_the_best_peer_is_marked(width: int | None) -> None:
    text = printed(example(), width=width)
    assert "linear-probe *" in text
    assert re.findall(r"(\S+) \*", text) == ["linear-probe"]


def test_every_dataset_has_its_best_peer() -> None:
    rows = [
        row(name, "peer", mean, dataset=data)
        for name, mean, data in [("a", 0.9, "x"), ("b", 0.8, "x"), ("a", 0.5, "y"), ("b", 0.6, "y")]
    ]
    assert re.findall(r"(\S+) \*", printed(replace(example(), rows=rows))) == ["a", "b"]


def test_a_difference_is_shown_only_where_it_surely_belongs() -> None:
    pair = {"a": {"mean": 0.1, "ci95": 0.01}}
    rows = [row("a", "peer", 0.9, dataset="x"), row("a", "peer", 0.8, dataset="y")]
    both = replace(example(), settings={"paired": pair}, rows=rows)
    assert "+0.1000" not in printed(both)
    named = replace(both, settings={"paired": {"y": pair}})
    (line,) = [text for text in printed(named).splitlines() if "+0.1000" in text]
    assert "0.8000" in line


def test_markup_in_a_name_is_printed_as_it_is() -> None:
    rows = [row("lora[r=4]", "peer", 0.5)]
    assert "lora[r=4] *" in printed(replace(example(), rows=rows))


def test_a_result_without_rows_is_an_empty_table() -> None:
    assert "omniglot" in printed(replace(example(), rows=()))
    assert KINDS == ("ours", "control", "peer")
