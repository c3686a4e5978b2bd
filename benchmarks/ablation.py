"""What each idea is worth: training efficiency, and the ablations over k and the size of the zoo.

    python benchmarks/ablation.py efficiency --dataset cifar-fs --data-dir DIR --json out.json
    python benchmarks/ablation.py segments zoo --seeds 3 --dataset fc100 --data-dir DIR

Every variant is trained from the same zoo, judged on the same episodes, and compared pairwise with
the matched control, whose only difference from `lt-di` is that it never sees a local target.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ltdi.baselines import Budget
from ltdi.evaluate import paired, score, summarise
from ltdi.recipe import Recipe
from ltdi.report.figure import plot_curves
from ltdi.tracks.fewshot import build_world, load_parts
from ltdi.tracks.generated import Generated, World
from ltdi.tracks.presets import NAMES, preset_of

METHODS = ("lt-di", "mv-di-matched", "mv-di", "tw-di", "single-level", "mc-di-paper")
MATCHED = "mv-di-matched"


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        study: Name of the study.
        axis: What is varied.
        value: Its value.
        method: A recipe's name.
        seed: Of the training.
        recipe: The base that the method varies.
    """

    study: str
    axis: str
    value: int
    method: str
    seed: int
    recipe: Recipe


def efficiency(base: Recipe, methods: list[str], seeds: int) -> Iterator[Case]:
    """Accuracy against iterations, and against T."""
    for seed in range(seeds):
        for value in (10, 30, 100, 300):
            recipe = replace(base, meta=replace(base.meta, iterations=value, warmup=value // 10))
            for method in methods:
                yield Case("efficiency", "iterations", value, method, seed, recipe)
        few = replace(base.meta, iterations=100, warmup=10)
        for value in (1, 2, 5, 10, 20):
            # k must divide T.
            prepare = replace(base.prepare, steps=30, segments=min(value, 5))
            sampling = replace(base.sampling, steps=min(base.sampling.steps, value))
            chain = replace(base.diffusion, steps=value)
            recipe = replace(base, meta=few, diffusion=chain, sampling=sampling, prepare=prepare)
            for method in methods:
                yield Case("efficiency", "T", value, method, seed, recipe)


def segments(base: Recipe, methods: list[str], seeds: int) -> Iterator[Case]:
    """K = 1, 2, 3, 5 local targets, at a T that all of them divide."""
    few = replace(base.meta, iterations=100, warmup=10)
    for seed in range(seeds):
        for value in (1, 2, 3, 5):
            recipe = replace(
                base,
                meta=few,
                prepare=replace(base.prepare, steps=30, segments=value),
                diffusion=replace(base.diffusion, steps=30),
            )
            for method in methods:
                yield Case("segments", "k", value, method, seed, recipe)


def zoo(base: Recipe, methods: list[str], seeds: int) -> Iterator[Case]:
    """Zoos of 50 to 4,000 solved tasks."""
    few = replace(base.meta, iterations=100, warmup=10)
    for seed in range(seeds):
        for value in (50, 200, 1000, 4000):
            tasks = replace(base.tasks, per_setting=value // len(base.tasks.shots))
            tasks = replace(tasks, folds=min(tasks.folds, max(2, value // 25)))
            for method in methods:
                yield Case(
                    "zoo", "tasks", value, method, seed, replace(base, tasks=tasks, meta=few)
                )


STUDIES = {"efficiency": efficiency, "segments": segments, "zoo": zoo}


def measure(case: Case, world: World, shot: int, episodes: int) -> tuple[dict[str, Any], Tensor]:
    """Train one case and score it on the test episodes."""
    recipe = replace(case.recipe, meta=replace(case.recipe.meta, seed=case.seed))
    method = Generated(case.method, recipe, world, 5)
    method.fit(world.train, world.valid, Budget(0, 5, shot, 15, 200, case.seed))
    tests = world.test.episodes(way=5, shot=shot, query=15, episodes=episodes, seed=77_000)
    scores = score(method.predict, world.test, tests)
    assert method.generator is not None
    about = {k: v for k, v in asdict(case).items() if k != "recipe"}
    summary = summarise(scores.accuracy)
    row = {
        **about,
        "shot": shot,
        "mean": summary.mean,
        "ci95": summary.ci95,
        "nll": float(scores.nll.mean()),
        "train_s": method.train_s,
        "sampling": asdict(method.generator.parts.sampling),
    }
    return row, scores.accuracy


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--data-dir")
    parser.add_argument("--preset", default="standard", choices=NAMES)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cache")
    parser.add_argument("--json")
    parser.add_argument("--figure", help="prefix of PNG files, one per axis")
    return parser.parse_args()


def main() -> None:
    """Run the studies."""
    torch.set_num_threads(1)
    options = parse()
    preset = preset_of(options.dataset, options.preset)
    parts = load_parts(options.dataset, options.data_dir, preset, split=None, seed=0)
    rows: list[dict[str, Any]] = []
    accuracy: dict[tuple[Any, ...], Tensor] = {}
    with tempfile.TemporaryDirectory() as scratch:
        world = build_world(
            parts,
            preset,
            seed=0,
            directory=Path(scratch),
            cache=Path(options.cache) if options.cache else None,
            progress=lambda *given: None,
        )
        for study in options.studies:
            for case in STUDIES[study](preset.recipe, options.methods.split(","), options.seeds):
                row, scores = measure(case, world, options.shot, options.episodes)
                rows.append(row)
                accuracy[case.study, case.axis, case.value, case.seed, case.method] = scores
                print(
                    f"{case.axis} {case.value} {case.method} seed {case.seed}: {row['mean']:.4f}",
                    file=sys.stderr,
                    flush=True,
                )
                if options.json:
                    Path(options.json).write_text(json.dumps(rows, indent=1))
    show(rows, accuracy)
    if options.figure:
        draw(rows, options.figure)


def show(rows: list[dict[str, Any]], accuracy: dict[tuple[Any, ...], Tensor]) -> None:
    """Print means over seeds, and the difference to the matched control on the same episodes."""
    table = Table("study", "axis", "value", "method", "accuracy", "NLL", "minus matched")
    seen: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        seen.setdefault((row["study"], row["axis"], row["value"], row["method"]), []).append(row)
    for (study, axis, value, method), group in seen.items():
        gaps = []
        for row in group:
            ours = accuracy[study, axis, value, row["seed"], method]
            theirs = accuracy.get((study, axis, value, row["seed"], MATCHED))
            if theirs is not None:
                gaps.append(ours - theirs)
        gap = paired(torch.cat(gaps), torch.zeros(sum(map(len, gaps)))) if gaps else None
        table.add_row(
            study,
            axis,
            str(value),
            method,
            f"{sum(r['mean'] for r in group) / len(group):.4f}",
            f"{sum(r['nll'] for r in group) / len(group):.4f}",
            f"{gap.mean:+.4f} ± {gap.ci95:.4f}" if gap else "",
        )
    Console(width=110).print(table)


def draw(rows: list[dict[str, Any]], prefix: str) -> None:
    """One figure per axis: accuracy of every method."""
    for axis in dict.fromkeys(row["axis"] for row in rows):
        mine = [row for row in rows if row["axis"] == axis]
        curves = {}
        for method in dict.fromkeys(row["method"] for row in mine):
            points: dict[int, list[dict[str, Any]]] = {}
            for row in mine:
                if row["method"] == method:
                    points.setdefault(row["value"], []).append(row)
            values = sorted(points)
            means = [sum(r["mean"] for r in points[v]) / len(points[v]) for v in values]
            curves[method] = (values, means, [points[v][0]["ci95"] for v in values])
        plot_curves(f"{prefix}-{axis}.png", curves, axis, "accuracy")


if __name__ == "__main__":
    main()
