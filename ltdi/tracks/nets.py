"""Whole networks for unseen tasks: ours against gradient descent from meta-learned starts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ltdi.backbone import InputTransform
from ltdi.baselines import Budget
from ltdi.baselines.whole import NetMethod
from ltdi.data import ImageSet
from ltdi.evaluate import median_ms
from ltdi.nets import InitialTraining, NetConfig, NetHost, learn_initial
from ltdi.progress import Log, Progress
from ltdi.recipe import NET_RECIPE, Recipe
from ltdi.report.table import Result
from ltdi.tasks import Episodes, FeatureBank, sample_episodes
from ltdi.tracks.episodes import check_counts, hold_out, load_parts, one_thread
from ltdi.tracks.measured import kept
from ltdi.tracks.net_methods import (
    ALL_METHODS,
    NetWorld,
    methods_of,
)
from ltdi.tracks.run import run_methods
from ltdi.tracks.track import Outcome, check_methods, chosen_preset


@dataclass(frozen=True)
class NetPreset:
    """What is spent.

    Attributes:
        recipe: Of `lt-di`; controls change one idea of it.
        peer_iterations: Further meta-training of each peer.
        episodes: Test episodes.
        valid_episodes: Episodes that a method makes its choices on.
        held_out: Share of the training classes that the initialisation does not see and that tasks
            are solved on.
        rotations: Whether rotated characters are classes of their own.
    """

    net: NetConfig
    initial: InitialTraining
    recipe: Recipe
    peer_iterations: int
    episodes: int
    valid_episodes: int = 150
    held_out: float = 0.3
    rotations: bool = True


_SMOKE = replace(
    NET_RECIPE,
    tasks=replace(NET_RECIPE.tasks, per_setting=64, shard=32),
    prepare=replace(NET_RECIPE.prepare, steps=12),
    meta=replace(NET_RECIPE.meta, iterations=8, warmup=2, ema=0.9),
)
_PAPER = replace(
    NET_RECIPE,
    tasks=replace(NET_RECIPE.tasks, per_setting=10_000),
    meta=replace(NET_RECIPE.meta, iterations=6000, tasks=16, ema=0.99),
)
PRESETS: Mapping[str, NetPreset] = {
    "smoke": NetPreset(
        NetConfig(), InitialTraining(iterations=600), _SMOKE, 4, 200, 24, rotations=False
    ),
    "standard": NetPreset(NetConfig(), InitialTraining(), NET_RECIPE, 120, 1000),
    "paper": NetPreset(NetConfig(), InitialTraining(iterations=60_000), _PAPER, 6000, 10_000),
}


def build_world(
    parts: dict[str, ImageSet], preset: NetPreset, *, seed: int, directory: Path, progress: Progress
) -> NetWorld:
    """Learn the shared initialisation on some training classes, and transform the other images."""
    seen, held = hold_out(parts["train"], preset.held_out, seed)
    host = NetHost(preset.net, InputTransform(preset.net.size, preset.net.channels))

    def step(i: int, n: int, loss: float) -> None:
        progress("initialisation", i, n, f"loss {loss:.3f}")

    initial = learn_initial(seen, host, replace(preset.initial, seed=seed), step)
    train, valid, test = (host.bank(i) for i in (held, parts["val"], parts["test"]))
    return NetWorld(directory, train, valid, test, host, initial)


def bench(
    dataset: str,
    data_dir: str | None = None,
    *,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | NetPreset = "standard",
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int | None = None,
    split: str | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome[NetWorld]:
    """Whole networks for tasks of unseen classes: methods on the same test episodes.

    Args:
        dataset: "glyphs", "omniglot", or a folder or archive of drawings as <class>/<image>.
        data_dir: Where a named data set lies.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        way: Classes per test episode.
        shot: Support images per class.
        query: Query images per class.
        episodes: Test episodes; the preset's number by default.
        split: The named set's split, such as "official" for Omniglot.
        seed: Fixes everything.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or the data do not suffice.
    """
    label, p = chosen_preset(preset, PRESETS)
    check_methods(methods, ALL_METHODS)
    count = p.episodes if episodes is None else episodes
    check_counts(query=query, episodes=count)
    images = {"size": p.net.size, "channels": p.net.channels}
    parts = load_parts(dataset, data_dir, **images, rotations=p.rotations, split=split, seed=seed)
    sample_episodes(parts["test"].offsets, way=way, shot=shot, query=query, episodes=1, seed=seed)
    recipe = replace(
        p.recipe,
        tasks=replace(p.recipe.tasks, ways=(way,), shots=(shot,)),
        meta=replace(p.recipe.meta, seed=seed),
    )
    with tempfile.TemporaryDirectory(prefix="ltdi-bench-") as scratch, one_thread(), flushed():
        start = time.perf_counter()
        world = build_world(parts, p, seed=seed, directory=Path(scratch), progress=progress)
        initial_s = time.perf_counter() - start
        log({"event": "initialisation", "seconds": initial_s})
        budget = Budget(p.peer_iterations, way, shot, query, p.valid_episodes, seed)
        made = methods_of(methods, recipe, world)
        run = run_methods(made, world, budget, count, progress, log)
        tests = world.tests(budget, count)
        # One after another, so that all are timed in the same minute.
        adapt = {name: adapt_ms(method, world.test, tests) for name, method in made.items()}
        settings = {
            "target": "net",
            "way": way,
            "shot": shot,
            "query": query,
            "net": asdict(p.net),
            "weights": world.host.space(way).size,
            "classes": world.classes("initialisation", parts),
            "initial": asdict(p.initial),
            "initial_s": round(initial_s, 2),
            "recipe": asdict(recipe),
            "peer_iterations": p.peer_iterations,
            "adapt_ms": {name: round(ms, 3) for name, ms in adapt.items()},
            **run.measured(),
            "notes": {name: m.note for name, m in made.items()},
        }
    result = Result("nets", dataset, label, seed, settings, run.rows)
    generators = kept(made, result, lambda row: f"{dataset} {way}-way {shot}-shot")
    return Outcome(result, world, made, generators)


@contextmanager
def flushed() -> Iterator[None]:
    """Denormal numbers are zero: gradients of a solved support are full of them.

    Arithmetic on them takes five times as long, which would flatter whoever takes no gradient.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def adapt_ms(method: NetMethod, bank: FeatureBank, episodes: Episodes) -> float:
    """Median wall time in milliseconds from one task's support to its weights."""
    tasks = episodes[:30].chunks(1)
    return median_ms(partial(method.adapt, bank.features[part.support]) for part in tasks)
