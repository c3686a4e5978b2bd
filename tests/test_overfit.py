"""`benchmarks/overfit.py`: what each row of the study is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import overfit
from ltdi.data import ImageSet
from ltdi.nets import NetConfig
from ltdi.samples import Trainings, collect_checkpoints, predictions, standing
from ltdi.tracks.checkpoints import PRESETS

SMOKE = PRESETS["smoke"].recipe
RECIPE = replace(
    SMOKE,
    network=replace(SMOKE.network, width=16, heads=2),
    # Too little to move the network from where it starts.
    meta=replace(SMOKE.meta, iterations=1, tasks=2, warmup=0, meta_lr=1e-9),
)
TRAININGS = Trainings(NetConfig(1, 12, (4, 8), (5, 3), (2, 2)), 2, 20, 3, 40, images=40, wrong=0.4)


def test_rows_are_of_the_last_local_target_or_of_the_best(one_task: dict[str, ImageSet]):
    zoo = collect_checkpoints(one_task, TRAININGS, RECIPE, seed=0, progress=lambda *_: None)
    images, labels = zoo.validation()
    found = list(standing(zoo).values())
    best = max(range(4), key=lambda i: found[i]) + 1
    nets = overfit.Nets(zoo, 2, images, labels)

    def right(theta: torch.Tensor) -> torch.Tensor:
        return (predictions(theta, zoo, images) == labels).float().mean(0)

    def last(method: str) -> dict:
        row = overfit.measure(nets, method, RECIPE, 0)[-1]
        assert row["mean"] == pytest.approx(sum(row["accuracy"]) / len(labels), abs=1e-3)
        return row

    expected = {
        "nets": zoo.theta[:, 3],
        "nets-waypoint": zoo.theta[:, 1],
        "average-run": zoo.path()[3],
        "average-run-waypoint": zoo.path()[1],
        # A network that adds nothing draws in one step, without noise, the mean of a training.
        "single-waypoint": zoo.path()[1],
        "mv-di-matched": zoo.path()[3],
        "lt-di": zoo.path()[best - 1],
    }
    for method, theta in expected.items():
        assert last(method)["accuracy"] == pytest.approx(right(theta).tolist(), abs=1e-3), method
    assert last("lt-di")["end"] == best / 4 and last("mv-di-matched")["end"] == 1.0
