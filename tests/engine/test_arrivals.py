"""`ltdi.engine.arrivals`: what training sees is a matter of record, not of chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdi.engine import Arrivals, Engine, planned
from ltdi.engine.arrivals import ALL
from ltdi.errors import DamagedFileError, InputError, LtdiError
from ltdi.zoo import Zoo
from tests.engine.conftest import make

PLAN = [f"s{number:03d}" for number in range(10)]


@given(iterations=st.integers(1, 500), shards=st.integers(1, 300))
def test_the_planned_number_grows_from_a_few_to_all(iterations: int, shards: int) -> None:
    seen = [planned(step, iterations, shards) for step in range(iterations + 1)]
    assert seen[0] == max(1, round(0.05 * shards)) and seen == sorted(seen)
    assert all(n == shards for n in seen[int(ALL * iterations) :][1:])


def watch(arrivals: Arrivals, steps: range, zoo: Zoo, lands: dict[int, list[int]]) -> list[int]:
    """Visible shards at every step, while shards land before some of them."""
    seen = []
    for step in steps:
        for number in lands.get(step, []):
            make(str(zoo.path), number)
        arrivals.at(step)
        seen.append(arrivals.visible)
    return seen


def test_planned_waits_for_what_it_needs_and_sees_no_more(zoo: Zoo) -> None:
    with Engine().start(make, str(zoo.path), list(range(10))) as running:
        arrivals = Arrivals(zoo, PLAN, 20, running=running)
        seen = watch(arrivals, range(20), zoo, {})
        assert seen == [planned(step, 20, 10) for step in range(20)]
        assert running.left == []
    # On a zoo that is full it is the same.
    again = Arrivals(Zoo.open(zoo.path), PLAN, 20)
    assert watch(again, range(20), zoo, {}) == seen
    groups = Arrivals(Zoo.open(zoo.path), PLAN, 20).at(4)
    assert groups is not None
    assert set(groups[0].read()["theta"].flatten().tolist()) == set(range(seen[4]))


def test_landed_sees_what_is_there_in_the_order_of_the_plan(zoo: Zoo, tmp_path: Path) -> None:
    journal = tmp_path / "arrivals.jsonl"
    lands = {0: [0], 2: [2], 3: [1], 5: [4, 5, 3], 7: [9, 8, 7, 6]}
    first = Arrivals(zoo, PLAN, 8, rule="landed", journal=journal)
    seen = watch(first, range(8), zoo, lands)
    assert seen == [1, 1, 1, 3, 3, 6, 6, 10]
    first.end()
    # A run that is given the journal sees the same, though all is there.
    again = Arrivals(Zoo.open(zoo.path), PLAN, 8, rule="landed", journal=journal)
    assert watch(again, range(8), zoo, {}) == seen


def test_a_resumed_run_follows_the_journal_and_goes_on(zoo: Zoo, tmp_path: Path) -> None:
    journal = tmp_path / "arrivals.jsonl"
    first = Arrivals(zoo, PLAN, 9, rule="landed", journal=journal)
    seen = watch(first, range(6), zoo, {0: [0], 3: [1, 2], 5: [3]})
    for number in range(4, 10):
        make(str(zoo.path), number)
    with journal.open("a") as stream:
        stream.write('{"step": 7, "sh')  # killed here
    # Resumed at step 2, where a checkpoint was: three more steps are on record.
    again = Arrivals(Zoo.open(zoo.path), PLAN, 9, rule="landed", journal=journal)
    again.at(0)
    assert watch(again, range(2, 8), zoo, {}) == [*seen[2:], 10, 10]
    again.end()
    assert journal.read_text().count("\n") == 5


def test_a_run_that_ended_early_stays_the_same(zoo: Zoo, tmp_path: Path) -> None:
    journal = tmp_path / "arrivals.jsonl"
    first = Arrivals(zoo, PLAN, 4, rule="landed", journal=journal)
    seen = watch(first, range(4), zoo, {0: [0, 1]})
    first.end()
    make(str(zoo.path), 2)
    again = Arrivals(Zoo.open(zoo.path), PLAN, 4, rule="landed", journal=journal)
    assert watch(again, range(4), zoo, {}) == seen == [2, 2, 2, 2]


def test_shards_that_no_one_makes_are_not_waited_for(zoo: Zoo) -> None:
    make(str(zoo.path), 0)
    with pytest.raises(LtdiError, match="needs 10 shards, 1 are there"):
        Arrivals(zoo, PLAN, 2).at(1)


def test_bad_rules_and_journals_are_named(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'landed'"):
        Arrivals(zoo, PLAN, 2, rule="lande")
    journal = tmp_path / "arrivals.jsonl"
    journal.write_text('{"step": 1}\n')
    with pytest.raises(DamagedFileError, match="not a journal"):
        Arrivals(zoo, PLAN, 2, rule="landed", journal=journal)
