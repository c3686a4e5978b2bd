"""`ltdi.tracks.measured`: rows, paired differences, and what a card tells."""

from __future__ import annotations

import pytest
import torch

from ltdi.evaluate import Scores
from ltdi.tracks.measured import in_words, leads, metrics_of, scored


def scores(*accuracy: float) -> Scores:
    values = torch.tensor(accuracy, dtype=torch.double)
    return Scores(
        values, torch.zeros(len(values)), 0.0, 1.0, torch.arange(5).expand(len(values), 5)
    )


def test_a_row_has_the_mean_and_its_interval():
    row = scored("a", "peer", scores(0.2, 0.4, 0.6), latency_ms=1.0, dataset="d")
    assert (row.mean, row.episodes, row.dataset) == (0.4, 3, "d")
    assert row.ci95 == pytest.approx(1.96 * 0.2 / 3**0.5, abs=1e-6)
    assert row.peak_mb > 0


def test_leads_are_paired_not_differences_of_intervals():
    # The episodes vary by 0.4, the difference not at all.
    found = leads({"lt-di": scores(0.3, 0.7), "b": scores(0.2, 0.6), "c": scores(0.7, 0.3)})
    assert found["b"] == {"mean": 0.1, "ci95": 0.0, "classes_ci95": None}
    assert found["c"]["mean"] == 0 and found["c"]["ci95"] > 0.5
    assert leads({"b": scores(1.0)}) == {}


def test_leads_in_words_go_by_the_interval():
    pairs = {name: {"mean": mean, "ci95": 0.1} for name, mean in (("a", 0.2), ("b", -0.05))}
    assert in_words(pairs, 30) == "On these images lt-di is above a; level with b."
    below = {"c": {"mean": -0.2, "ci95": 0.1}}
    assert in_words(below, 600) == "On these images lt-di is below c."


def test_of_too_few_episodes_nothing_is_said():
    # The interval of a single episode is zero, which any difference is above.
    found = leads({"lt-di": scores(0.3), "b": scores(0.2)})
    assert in_words(found, 1) == "Too few episodes to say what lt-di is above: 1, and it takes 30."
    assert in_words(found, 29).startswith("Too few")


def test_a_card_tells_of_every_row_but_the_controls():
    rows = [
        scored(name, kind, scores(0.5), latency_ms=1.0, dataset="d")
        for name, kind in (("lt-di", "ours"), ("x", "peer"), ("y", "control"))
    ]
    told = metrics_of(rows, lambda row: f"{row.dataset} 5w1s")
    assert list(told) == ["d 5w1s, lt-di", "d 5w1s, x"]
    assert told["d 5w1s, x"] == {"mean": 0.5, "ci95": 0.0, "episodes": 1}
