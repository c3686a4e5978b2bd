"""The track of checkpoints: its rows and what it says of novelty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.data import ImageSet
from ltdi.errors import InputError
from ltdi.generator import Generator, SampleGenerator
from ltdi.nets import NetConfig
from ltdi.samples import Trainings
from ltdi.tracks import Outcome
from ltdi.tracks import checkpoints as track

NET = NetConfig(1, 12, (4, 8), (5, 3), (2, 2))
RECIPE = replace(
    track.PRESETS["smoke"].recipe,
    network=replace(track.PRESETS["smoke"].recipe.network, width=16, heads=2),
    meta=replace(track.PRESETS["smoke"].recipe.meta, iterations=6, tasks=4, warmup=1),
)
TRAININGS = Trainings(NET, 2, 40, 4, 8)
TINY = track.CheckpointPreset(TRAININGS, RECIPE, generated=5, tests=60)


@pytest.fixture(scope="module")
def outcome(one_task: dict[str, ImageSet]) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltdi.tracks.checkpoints.load_data", lambda *_, **__: one_task)
        descended = ("average-run+sgd", "gaussian-run+sgd")
        methods = ("originals", "lt-di", "mv-di", "weight-loss", *descended, "noise", "average")
        methods += ("gaussian",)
        return track.bench("glyphs", methods=methods, preset=TINY)


def test_rows_and_novelty(outcome: Outcome, tmp_path: Path):
    rows = {r.method: r for r in outcome.result.rows}
    kinds = {n: r.kind for n, r in rows.items()}
    assert kinds["lt-di"] == "ours" and kinds["originals"] == kinds["mv-di"] == "control"
    assert (
        kinds["weight-loss"] == kinds["average-run+sgd"] == kinds["gaussian-run+sgd"] == "control"
    )
    assert kinds["noise"] == kinds["average"] == kinds["gaussian"] == "peer"
    novelty = outcome.result.settings["novelty"]
    assert set(novelty) == set(rows) and novelty["average"]["spread"] == pytest.approx(0, abs=1e-4)
    assert novelty["average-run+sgd"]["within"] == pytest.approx(0, abs=1e-4)
    assert novelty["gaussian-run+sgd"]["within"] > 0.1 * novelty["originals"]["within"]
    tried = outcome.result.settings["validation accuracy"]
    assert tried["average-run+sgd"] == tried["gaussian-run+sgd"] and len(tried["lt-di"]) > 3
    # Noise is measured by what is generated.
    assert novelty["noise"]["distance"] == pytest.approx(novelty["lt-di"]["distance"], rel=0.2)
    assert rows["originals"].mean > 0.3
    outcome.publish(tmp_path)
    made = Generator.from_pretrained(tmp_path / "generator")
    assert isinstance(made, SampleGenerator)
    one, three = made.generate(None, seed=1), made.generate(3, seed=1)
    assert one["head.bias"].shape == (1, 4) and three["layers.0.weight"].shape == (3, 4, 1, 5, 5)
    assert not torch.allclose(three["head.weight"][0], three["head.weight"][1])
    with pytest.raises(InputError, match="has no condition: give the number of nets"):
        made.generate((torch.zeros(2, 1, 12, 12), torch.tensor([0, 1])))


def test_a_set_of_other_test_classes_is_refused():
    with pytest.raises(InputError, match="no training and test images of the same classes"):
        track.bench("glyphs")
