"""`ltdi.tracks.world`: what is shared is made once, and its seconds are those of its making."""

from __future__ import annotations

import time

from ltdi.tracks.world import Once


def test_a_value_is_made_once_and_its_seconds_are_remembered():
    made: Once[list[int]] = Once()

    def make() -> list[int]:
        time.sleep(0.02)
        return []

    value, seconds = made.once("a", make)
    assert seconds >= 0.02
    again, remembered = made.once("a", make)
    assert again is value and remembered == seconds
    other, _ = made.once("b", make)
    assert other is not value and list(made) == ["a", "b"]


def test_what_could_not_be_made_is_tried_again():
    made: Once[int] = Once()
    try:
        made.once("a", lambda: 1 // 0)
    except ZeroDivisionError:
        assert "a" not in made
    assert made.once("a", lambda: 3)[0] == 3
