"""Which shards meta-training sees at which iteration, while workers fill the zoo.

Shards count in the order of the plan, not in that in which they are finished, so that one number
says what is visible. Two rules give that number:

- "planned": it grows with the iteration alone, from 5 % of the shards, or what training cannot
  begin without, to all of them at 95 % of the iterations. Training waits where the workers are
  behind. A run depends on nothing but its seed: interrupted and resumed, or with other workers, it
  is the same bit for bit.
- "landed": everything that is there. What was seen from which iteration on is written to a journal
  before it is used. A resumed run first follows the journal; so does a new run that is given it,
  which is then the same bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltdi.engine.workers import Running
from ltdi.errors import DamagedFileError, LtdiError, unknown
from ltdi.zoo import Group, Zoo

RULES = ("planned", "landed")
JOURNAL = "arrivals.jsonl"
FIRST, ALL = 0.05, 0.95


def planned(step: int, iterations: int, shards: int, least: int = 1) -> int:
    """How many shards are visible at an iteration, under the rule "planned"; `least` at first."""
    first = max(least, round(FIRST * shards))
    share = min(1.0, step / max(1, math.floor(ALL * iterations)))
    return min(shards, first + math.floor(share * (shards - first)))


class Arrivals:
    """Waits for shards and hands them to training.

    Args:
        zoo: The zoo that is being filled.
        plan: Names of all its shards, in the order of the plan.
        iterations: Of the training.
        rule: "planned" or "landed".
        journal: File for the rule "landed"; what is in it is followed.
        running: The workers; None where the zoo is already full.
        least: Shards that training cannot begin without.
    """

    def __init__(
        self,
        zoo: Zoo,
        plan: Sequence[str],
        iterations: int,
        *,
        rule: str = "planned",
        journal: Path | None = None,
        running: Running | None = None,
        least: int = 1,
    ) -> None:
        if rule not in RULES:
            raise unknown("rule", rule, RULES, where="--arrivals")
        self.zoo, self.plan, self.iterations = zoo, list(plan), iterations
        self.rule, self.journal, self.running = rule, journal, running
        self.least = least
        self.visible = self.there = 0
        self.record = _read(journal) if journal and rule == "landed" else []

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {"arrivals": self.rule, "shards": len(self.plan)}

    def at(self, step: int) -> list[Group] | None:
        """The visible tasks at an iteration, or None where they are those of the one before.

        Raises:
            LtdiError: What a worker raised, or that shards are missing and no one makes them.
        """
        number = self._number(step)
        while not self._enough(number):
            self._wait(number)
        if number == self.visible:
            return None
        self.visible = number
        return self.zoo.groups(self.plan[:number])

    def end(self) -> None:
        """Training is over: a run that is given this journal sees no more than this one did."""
        if self.rule == "landed" and (not self.record or self.record[-1][0] < self.iterations):
            self._write(self.iterations, self.visible)

    def _number(self, step: int) -> int:
        if self.rule == "planned":
            return self._planned(step)
        known = [n for s, n in self.record if s <= step]
        if self.record and self.record[-1][0] >= step:  # followed
            return known[-1] if known else self.record[0][1]
        self._count()
        if self.running is not None and self.running.left:
            self.running.poll(0)
        least = known[-1] if known else self._planned(0)
        while not self._enough(least):
            self._wait(least)
        number = max(least, self.there)
        if not known or number != known[-1]:
            self._write(step, number)
        return number

    def _planned(self, step: int) -> int:
        return planned(step, self.iterations, len(self.plan), self.least)

    def _count(self) -> None:
        self.zoo.refresh()
        while self.there < len(self.plan) and self.zoo.has(self.plan[self.there]):
            self.there += 1

    def _enough(self, number: int) -> bool:
        if self.there < number:
            self._count()
        return self.there >= number

    def _wait(self, number: int) -> None:
        if self.running is None or not self.running.left:
            self._count()
            if self.there < number:
                raise LtdiError(
                    f"training needs {number} shards, {self.there} are there and no one makes more",
                    where=str(self.zoo.path),
                    fix="run the same command again: missing shards are made anew",
                )
            return
        self.running.poll(0.5)

    def _write(self, step: int, number: int) -> None:
        self.record.append((step, number))
        if self.journal is None:
            return
        with self.journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "shards": number}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _read(path: Path) -> list[tuple[int, int]]:
    """A journal; half a line at the end is none."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    try:
        return [(e["step"], e["shards"]) for e in map(json.loads, whole.splitlines())]
    except (ValueError, KeyError, TypeError):
        raise DamagedFileError(
            f"{path.name} is not a journal of arrivals",
            where=str(path),
            fix="restore it from a copy, or train into a new directory",
        ) from None
