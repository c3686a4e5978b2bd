"""Training beside collection, and collection by several workers: both need idle cores."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.speed.common import Figure, begun, world
from ltdi.collect import Preparation
from ltdi.engine import Engine, Runtime
from ltdi.evaluate import score
from ltdi.meta import MetaConfig
from ltdi.pipeline import train_generator
from ltdi.recipe import Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.weights import query_logits

# Solved and trained in about the same time on one core each.
BOTH = Recipe(
    tasks=Tasks(per_setting=7000, shard=125, folds=0),
    prepare=Preparation(lr=0.02, steps=48, segments=4),
    meta=MetaConfig(iterations=75, tasks=16, warmup=10, ema=0.9),
    anchor="prototype",
)


def overlap(repeats: int) -> list[Figure]:
    """Training beside collection, against one after the other."""
    _, backbone = world()
    held, _ = world(classes=96)
    valid = FeatureBank(
        held.features[int(held.offsets[64]) :], torch.arange(33) * 30, held.classes[64:]
    )
    episodes = valid.episodes(way=5, shot=1, query=15, episodes=600, seed=1)
    seconds: dict[str, list[float]] = {n: [] for n in ("prepare", "train", "both")}
    accuracy: dict[str, float] = {}
    recipe, one = BOTH, Engine(workers=1)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            collection = begun(Path(folder) / "a", recipe)
            start = time.perf_counter()
            collection.fill(one)
            seconds["prepare"].append(time.perf_counter() - start)
            start = time.perf_counter()
            after = train_generator(collection, backbone, recipe)
            seconds["train"].append(time.perf_counter() - start)

            collection = begun(Path(folder) / "b", recipe)
            start = time.perf_counter()
            with collection.start(one) as running:
                seen = collection.arrivals(recipe.meta.iterations, running)
                beside = train_generator(
                    collection, backbone, recipe, runtime=Runtime(arrivals=seen)
                )
                seconds["both"].append(time.perf_counter() - start)
    for name, generator in (("after", after), ("beside", beside)):
        found = score(lambda s, q, g=generator: query_logits(g.weights(s), q), valid, episodes)
        accuracy[name] = float(found.accuracy.mean())
    middle = {n: sorted(s)[len(s) // 2] for n, s in seconds.items()}
    longer = max(middle["prepare"], middle["train"])
    return [
        Figure("overlap", "prepare, s", middle["prepare"]),
        Figure("overlap", "train, s", middle["train"]),
        Figure("overlap", "overlapped, s", middle["both"]),
        Figure("overlap", "overlapped / max(prepare, train)", middle["both"] / longer, "<= 1.10"),
        Figure(
            "overlap",
            "overlapped / (prepare + train)",
            middle["both"] / (middle["prepare"] + middle["train"]),
        ),
        Figure("overlap", "accuracy, one after the other", accuracy["after"]),
        Figure("overlap", "accuracy, overlapped", accuracy["beside"]),
    ]


def workers(repeats: int) -> list[Figure]:
    """Shards a second of one worker and of two, once they run."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    recipe = replace(BOTH, tasks=replace(BOTH.tasks, per_setting=6000))
    for _ in range(repeats):
        for number, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                collection = begun(Path(folder) / "zoo", recipe)
                landed: list[float] = []
                with collection.start(Engine(workers=number)) as running:
                    while running.left:
                        now = running.poll()
                        landed += [time.perf_counter()] * len(now)
                # Without the start of the processes, and the end when one has nothing to do.
                inner = landed[4:-2]
                found.append((len(inner) - 1) / (inner[-1] - inner[0]))
    one, two = (sorted(r)[len(r) // 2] for r in rates.values())
    return [
        Figure("workers", "one worker, tasks/s", one * recipe.tasks.shard),
        Figure("workers", "two workers, tasks/s", two * recipe.tasks.shard),
        Figure("workers", "two / one", two / one, ">= 1.8"),
    ]
