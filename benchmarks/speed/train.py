"""REPTILE against single-level training, where the time goes, and the floor."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ltdi.meta.reptile
from benchmarks.speed.common import (
    NETWORKS,
    Figure,
    flops_of,
    in_turns,
    matmul_rates,
    solved,
    trainer,
)
from ltdi.meta import MetaConfig
from ltdi.meta.team import Team


def train(repeats: int) -> list[Figure]:
    """REPTILE against single-level training, where the time goes, and the floor."""
    rates = matmul_rates(repeats)
    rate = rates["float32"]
    figures = [Figure("train", f"matmul rate, {n}, GFLOP/s", r / 1e9) for n, r in rates.items()]
    with tempfile.TemporaryDirectory() as folder:
        data = solved(Path(folder) / "zoo", 300)
        for name, network in NETWORKS.items():
            trainers = {m: trainer(data, network, MetaConfig(meta=m)) for m in ("reptile", "none")}
            low = Team(precision="bfloat16")
            trainers["bfloat16"] = trainer(data, network, MetaConfig(), low)
            seconds = in_turns({m: t.iterate for m, t in trainers.items()}, repeats)
            with stop_watch(ltdi.meta.reptile, "_gradient") as inside:
                start = time.process_time()
                for _ in range(repeats):
                    trainers["reptile"].iterate()
                share = sum(inside) / (time.process_time() - start)
            c = trainers["none"].config
            samples = c.meta_batch * c.inner_steps * c.tasks
            floor = samples * flops_of(trainers["none"]) / rate
            figures += [
                Figure("train", f"{name}: REPTILE, samples/s", samples / seconds["reptile"]),
                Figure(
                    "train",
                    f"{name}: REPTILE / single-level, time",
                    seconds["reptile"] / seconds["none"],
                    "<= 1.3",
                ),
                Figure("train", f"{name}: share inside forward and backward", share, ">= 0.85"),
                Figure(
                    "train",
                    f"{name}: floor / single-level, time",
                    floor / seconds["none"],
                    ">= 0.5" if name == "transformer" else "",
                ),
                Figure("train", f"{name}: floor / REPTILE, time", floor / seconds["reptile"]),
                Figure(
                    "train",
                    f"{name}: floor at torch's own rate / single-level, time",
                    floor * rate / rates["torch's own"] / seconds["none"],
                    ">= 0.5" if name == "transformer" else "",
                ),
                Figure(
                    "train",
                    f"{name}: bfloat16 / float32, time of REPTILE",
                    seconds["bfloat16"] / seconds["reptile"],
                ),
            ]
    return figures


@contextmanager
def stop_watch(module: object, name: str) -> Iterator[list[float]]:
    """Replace a function by itself and a stop watch; the list fills with seconds."""
    seconds: list[float] = []
    original = getattr(module, name)

    def watched(*given: object) -> object:
        start = time.process_time()
        out = original(*given)
        seconds.append(time.process_time() - start)
        return out

    setattr(module, name, watched)
    try:
        yield seconds
    finally:
        setattr(module, name, original)
