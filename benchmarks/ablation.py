"""What each idea is worth: training efficiency, and the ablations over k and the size of the zoo.

    python benchmarks/ablation.py efficiency --dataset cifar-fs --data-dir DIR --json out.json
    python benchmarks/ablation.py segments zoo --seeds 3 --dataset fc100 --data-dir DIR
    python benchmarks/ablation.py overfit --seeds 3 --dataset cifar10 --data-dir DIR

Every variant is trained from the same zoo, judged on the same episodes, and compared pairwise with
the matched control, whose only difference from `lt-di` is that it never sees a local target. The
sampling is fixed, not chosen: one step, and five, at full strength. With
`--targets honest`, tasks are solved gently on 60 images a class and the loss is measured on 15
others, so that local targets differ in what they predict; with `--targets solved` (the presets')
they are solved to the end on 15 images a class. `overfit` has nets in place of heads, and ends the
chain where validation says; see `overfit.py`. `few` does so with heads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import overfit
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ltdi.data import load as load_data
from ltdi.evaluate import Summary, score, summarise
from ltdi.pipeline import tuned
from ltdi.recipe import Recipe, named_recipe
from ltdi.report.figure import plot_curves
from ltdi.tracks.episodes import load_parts
from ltdi.tracks.fewshot import build_world
from ltdi.tracks.fewshot_methods import World
from ltdi.tracks.fewshot_presets import NAMES, preset_of
from ltdi.weights import query_logits

METHODS = ("lt-di", "mv-di-matched", "mv-di", "tw-di", "mc-di-paper")
MATCHED = "mv-di-matched"
# What is varied, its value, and the recipe that methods vary.
Setting = tuple[str, int, Recipe]


@dataclass(frozen=True)
class Case:
    """One training run: a study's setting, a recipe's name, and the seed of the training."""

    study: str
    axis: str
    value: int
    method: str
    seed: int
    recipe: Recipe = field(repr=False)

    @property
    def about(self) -> dict[str, Any]:
        """For its rows."""
        return {k: v for k, v in vars(self).items() if k != "recipe"}


def compared(row: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """What the methods of one comparison share."""
    return row["study"], row["axis"], row["value"], row["seed"]


def lean(base: Recipe, targets: str) -> Recipe:
    """The preset's recipe at a budget that a hundred trainings can afford.

    Args:
        base: The preset's.
        targets: "solved" or "honest"; see the module.
    """
    tasks = replace(base.tasks, ways=(5,), per_setting=512, folds=8, alike=0.0)
    prepare = replace(base.prepare, steps=24, segments=4)
    if targets == "honest":
        tasks = replace(tasks, query=60, probe=15)
        prepare = replace(prepare, lr=0.015)
    return replace(
        base,
        tasks=tasks,
        prepare=prepare,
        meta=replace(base.meta, tasks=2, iterations=150, warmup=10, ema=0.9),
        refine=(),
    )


def efficiency(base: Recipe) -> Iterator[Setting]:
    """Accuracy against iterations, and against T."""
    for value in (10, 30, 100, 300):
        meta = replace(base.meta, iterations=value, warmup=value // 10)
        yield "iterations", value, replace(base, meta=meta)
    for value in (1, 2, 5, 10, 20):
        # k must divide T.
        prepare = replace(base.prepare, steps=30, segments=min(value, 5))
        chain = replace(base.diffusion, steps=value)
        yield "T", value, replace(base, diffusion=chain, prepare=prepare)


def segments(base: Recipe) -> Iterator[Setting]:
    """K = 1, 2, 3, 5 local targets, at a T that all of them divide."""
    for value in (1, 2, 3, 5):
        prepare = replace(base.prepare, steps=30, segments=value)
        chain = replace(base.diffusion, steps=30)
        yield "k", value, replace(base, diffusion=chain, prepare=prepare)


def zoo(base: Recipe) -> Iterator[Setting]:
    """Zoos of 50 to 4,000 solved tasks."""
    for value in (50, 200, 1000, 4000):
        tasks = replace(base.tasks, per_setting=value // len(base.tasks.shots))
        yield "tasks", value, replace(base, tasks=tasks)


def few(base: Recipe) -> Iterator[Setting]:
    """Heads solved to the end on 5 and 10 images a class; what others look like tells the loss."""
    prepare = replace(base.prepare, lr=0.05, steps=40, segments=5)
    for value in (5, 10):
        tasks = replace(base.tasks, query=value, probe=15)
        yield "images", value, replace(base, prepare=prepare, tasks=tasks)


def memorised(base: Recipe) -> Iterator[Setting]:
    """Nets trained to the end on few images, and on wrong labels; `base` is that of heads."""
    for axis, values in overfit.VALUES.items():
        for value in values:
            yield axis, value, overfit.recipe(axis, value)


STUDIES = {
    "efficiency": efficiency,
    "segments": segments,
    "zoo": zoo,
    "few": few,
    "overfit": memorised,
}
OWN_METHODS = {
    "few": ("lt-di", "mv-di-matched", "mv-di", "anchored-regression"),
    "overfit": overfit.METHODS,
}


def planned(options: argparse.Namespace, base: Recipe) -> Iterator[Case]:
    """All cases; those of one zoo follow each other."""
    for study in options.studies:
        own = OWN_METHODS.get(study, METHODS)
        methods = options.methods.split(",") if options.methods else own
        for seed in range(options.seeds):
            for axis, value, recipe in STUDIES[study](base):
                for method in methods:
                    yield Case(study, axis, value, method, seed, recipe)


def measure(case: Case, world: World, shot: int, episodes: int) -> list[dict[str, Any]]:
    """Train one case and score it on the test episodes.

    In one step and in five; or, where targets are over-fitted, as validation chooses.
    """
    recipe = replace(case.recipe, meta=replace(case.recipe.meta, seed=case.seed))
    recipe = named_recipe(case.method, recipe)
    # T is that of the case, whatever the paper's recipe says; regression has no chain.
    regression = case.method == "anchored-regression"
    steps = 1 if regression else case.recipe.diffusion.steps
    chain = replace(recipe.diffusion, steps=steps)
    sampling = replace(recipe.sampling, steps=1)
    recipe = replace(recipe, diffusion=chain, sampling=sampling)
    generator, _, train_s = world.train_once(recipe, None)
    tests = world.test.episodes(way=5, shot=shot, query=15, episodes=episodes, seed=77_000)
    about, out = case.about, []
    whole = generator.parts.diffusion.steps
    readings: list[dict[str, Any]] = [{"steps": s} for s in dict.fromkeys((1, min(5, whole)))]
    if case.study == "few":
        generator = tuned(generator, world.valid, recipe, [(5, shot)])
        chosen = asdict(generator.parts.sampling)
        readings, about = [{}], {**about, "chosen": chosen}
    for reading in readings:

        def predict(support: Tensor, query: Tensor, options: Any = reading) -> Tensor:
            return query_logits(generator.weights(support, **options), query)

        scores = score(predict, world.test, tests)
        summary = summarise(scores.accuracy)
        out.append(
            {
                **about,
                "shot": shot,
                "steps": reading.get("steps", 0),
                "mean": summary.mean,
                "ci95": summary.ci95,
                "nll": float(scores.nll.mean()),
                "train_s": train_s,
                "accuracy": [round(float(a), 4) for a in scores.accuracy],
            }
        )
    # Seeds and values are many, and none is asked for twice.
    world.trained.clear()
    return out


class Heads:
    """Measures the cases of heads on one backbone."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        # Photographs at 112 pixels, as published: features take a quarter of the time.
        preset = replace(preset_of(options.dataset, options.preset), side=None)
        parts = load_parts(
            options.dataset,
            options.data_dir,
            size=preset.size,
            channels=preset.channels,
            rotations=preset.rotations,
            split=None,
            seed=0,
        )
        self.options = options
        self.world = build_world(
            parts,
            preset,
            seed=0,
            directory=scratch,
            cache=Path(options.cache) if options.cache else None,
            progress=lambda *given: None,
        )

    def __call__(self, case: Case) -> list[dict[str, Any]]:
        """The rows of a case."""
        return measure(case, self.world, self.options.shot, self.options.episodes)


class Nets:
    """Measures the cases of nets; those of one value and seed follow each other."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        size = overfit.PRESETS["standard"].trainings.net.size
        self.parts = load_data(options.dataset, options.data_dir, size=size, channels=3, seed=0)
        self.made: dict[tuple[str, int, int], overfit.Nets] = {}

    def __call__(self, case: Case) -> list[dict[str, Any]]:
        """The rows of a case."""
        key = (case.axis, case.value, case.seed)
        if key not in self.made:
            self.made = {key: overfit.Nets.of(self.parts, *key)}
        found = overfit.measure(self.made[key], case.method, case.recipe, case.seed)
        return [{**case.about, **row} for row in found]


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--data-dir")
    parser.add_argument("--preset", default="standard", choices=NAMES)
    parser.add_argument("--methods", help="names, with commas between; all of a study by default")
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--targets", default="honest", choices=("honest", "solved"))
    parser.add_argument("--cache")
    parser.add_argument("--json")
    parser.add_argument("--figure", help="prefix of PNG files, one per axis")
    return parser.parse_args()


def main() -> None:
    """Run the studies; cases that the JSON file has already are not run again.

    Nets that are trained anew are not the same to the last bit, so that of those on one zoo all or
    none are kept.
    """
    torch.set_num_threads(1)
    options = parse()
    path = Path(options.json) if options.json else None
    rows: list[dict[str, Any]] = []
    if path and path.is_file():
        rows = json.loads(path.read_text())
    base = lean(preset_of(options.dataset, options.preset).recipe, options.targets)
    had = {(*compared(r), r["method"]) for r in rows}
    cases = list(planned(options, base))
    lacking = [c for c in cases if (*compared(c.about), c.method) not in had]
    begun = {compared(c.about) for c in lacking if c.study == "overfit"}
    cases = [c for c in cases if c in lacking or compared(c.about) in begun]
    rows = [r for r in rows if compared(r) not in begun]
    with tempfile.TemporaryDirectory() as scratch:
        ready: dict[type, Heads | Nets] = {}
        for case in cases:
            kind = Nets if case.study == "overfit" else Heads
            if kind not in ready:
                ready[kind] = kind(options, Path(scratch))
            for row in ready[kind](case):
                rows.append(row)
                print(
                    f"{case.axis} {case.value} {case.method} seed {case.seed}, "
                    f"{row['steps']} steps: {row['mean']:.4f}",
                    file=sys.stderr,
                    flush=True,
                )
            if path:
                path.write_text(json.dumps(rows))
    show(rows)
    if options.figure:
        draw(rows, options.figure)


@dataclass(frozen=True)
class Point:
    """All seeds of one method at one value, read in one number of steps.

    Attributes:
        rows: One per seed.
        gaps: Per-episode differences to the matched control, one tensor [episodes] per seed.
    """

    rows: list[dict[str, Any]]
    gaps: list[Tensor]

    @property
    def gap(self) -> Summary | None:
        """Their mean, with an interval over the seeds' episodes together."""
        return summarise(torch.cat(self.gaps)) if self.gaps else None


def points(rows: list[dict[str, Any]]) -> dict[tuple[str, int, str, bool], Point]:
    """(axis, value, method, whether in one step) -> what was measured there."""

    def key(row: dict[str, Any], method: str) -> tuple[str, int, str, bool]:
        return row["axis"], row["value"], method, row["steps"] == 1

    accuracy = {(*key(r, r["method"]), r["seed"]): torch.tensor(r["accuracy"]) for r in rows}
    out: dict[tuple[str, int, str, bool], Point] = {}
    for row in rows:
        point = out.setdefault(key(row, row["method"]), Point([], []))
        point.rows.append(row)
        theirs = accuracy.get((*key(row, MATCHED), row["seed"]))
        if theirs is not None and row["method"] != MATCHED:
            point.gaps.append(torch.tensor(row["accuracy"]) - theirs)
    return out


def show(rows: list[dict[str, Any]]) -> None:
    """Print means over seeds, and the difference to the matched control on the same episodes."""
    table = Table("axis", "value", "method", "steps", "accuracy", "NLL", "minus matched", "by seed")
    for (axis, value, method, _), point in points(rows).items():
        seeds, gap = len(point.rows), point.gap
        table.add_row(
            axis,
            str(value),
            method,
            str(point.rows[0]["steps"] or ""),
            f"{sum(r['mean'] for r in point.rows) / seeds:.4f}",
            f"{sum(r['nll'] for r in point.rows) / seeds:.4f}" if "nll" in point.rows[0] else "",
            f"{gap.mean:+.4f} ± {gap.ci95:.4f}" if gap else "",
            " ".join(f"{float(g.mean()):+.4f}" for g in point.gaps),
        )
    Console(width=130).print(table)


def draw(rows: list[dict[str, Any]], prefix: str) -> None:
    """Two figures per axis: accuracy in one step, and what `lt-di` has over its matched control.

    The paper's recipe is at chance at this budget, and would take the room of all others.
    """
    found = points(rows)
    for axis in dict.fromkeys(axis for axis, *_ in found):
        accuracy: dict[str, list[tuple[float, float, float]]] = {}
        gaps: dict[str, list[tuple[float, float, float]]] = {}
        for (at, value, method, one), point in found.items():
            if at != axis or method == "mc-di-paper":
                continue
            mean = sum(r["mean"] for r in point.rows) / len(point.rows)
            if one:
                accuracy.setdefault(method, []).append((value, mean, 0.0))
            if method == "lt-di" and point.gap:
                name = "one step" if one else "several steps"
                gaps.setdefault(name, []).append((value, point.gap.mean, point.gap.ci95))
        for name, curves, label in (
            ("accuracy", accuracy, "accuracy in one step"),
            ("gap", gaps, "lt-di minus matched control"),
        ):
            if curves:
                columns = {}
                for method, curve in curves.items():
                    x, y, half = zip(*sorted(curve), strict=True)
                    columns[method] = x, y, half
                file = f"{prefix}-{axis.replace(' ', '-')}-{name}.png"
                plot_curves(file, columns, axis, label)


if __name__ == "__main__":
    main()
