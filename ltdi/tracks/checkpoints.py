"""New samples of nets for a task that was seen: generated checkpoints against plain generators."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ltdi.baselines.samples import plain_samples
from ltdi.collect import Preparation
from ltdi.data import load as load_data
from ltdi.errors import InputError
from ltdi.evaluate import summarise
from ltdi.generator.samples import SampleGenerator
from ltdi.memory import peak_mb, reset_peak
from ltdi.meta import MetaConfig
from ltdi.nets import NetConfig
from ltdi.nets.novelty import nearest, within, wrong_iou
from ltdi.progress import Log, Progress
from ltdi.recipe import Diffusion, Network, Recipe, Sampling, Tasks, named_recipe
from ltdi.report.table import Result, Row
from ltdi.samples import (
    BATCH,
    JUDGED,
    Checkpoints,
    Trainings,
    chosen_sampler,
    collect_checkpoints,
    descended,
    predictions,
    train_sampler,
    transformed,
)
from ltdi.tracks.episodes import one_thread
from ltdi.tracks.track import check_methods, chosen_preset

# Without the loss in function space; and plain generators after gradient descent on that loss.
_WEIGHTS, _DESCENT = "weight-loss", "+sgd"
_RECIPES = ("lt-di", "mv-di", "tw-di", "mv-di-matched", "single-level", _WEIGHTS)
_GAUSSIAN = ("gaussian", "gaussian-run", "gaussian-full")
_PEERS = ("noise", "average-2", "average-run", "average", *_GAUSSIAN)
_DESCENDED = ("average-run" + _DESCENT, "gaussian-run" + _DESCENT)
ALL_METHODS = ("originals", *_RECIPES, *_PEERS, *_DESCENDED)


@dataclass(frozen=True)
class CheckpointPreset:
    """What is spent.

    Attributes:
        trainings: How checkpoints are made.
        recipe: Of `lt-di`.
        generated: Nets of every method.
        tests: Test images.
    """

    trainings: Trainings
    recipe: Recipe
    generated: int = 64
    tests: int = 2000


_NET = NetConfig(3, 16, (16, 32, 32), (5, 3, 3), (2, 2, 2))
_RECIPE = Recipe(
    tasks=Tasks(folds=0),
    prepare=Preparation(lr=2e-3, steps=40, segments=4, batch=64),
    diffusion=Diffusion(20, "cosine", "trajectory", "x0", "predictive", plus_weight=3.0),
    network=Network("rows", width=64, depth=1),
    meta=MetaConfig(
        iterations=600, meta_batch=2, inner_steps=2, tasks=8, meta_lr=2e-3, warmup=20, ema=0.97
    ),
    sampling=Sampling(steps=20, temperature=1.0),
    anchor="shared",
)
PRESETS: Mapping[str, CheckpointPreset] = {
    "smoke": CheckpointPreset(
        Trainings(_NET, 2, 80, 25, 8),
        replace(_RECIPE, meta=replace(_RECIPE.meta, iterations=24, warmup=4)),
        16,
        500,
    ),
    "standard": CheckpointPreset(Trainings(_NET, 4, 1200, 50, 40), _RECIPE),
    "paper": CheckpointPreset(
        Trainings(NetConfig(3, 32, (32, 64, 64), (5, 3, 3), (2, 2, 2)), 8, 40_000, 100, 400),
        replace(_RECIPE, meta=replace(_RECIPE.meta, iterations=6000, tasks=32)),
        200,
        10_000,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """A finished benchmark.

    Attributes:
        result: Table and JSON.
        generators: Trained, by method.
    """

    result: Result
    generators: dict[str, SampleGenerator] = field(default_factory=dict)

    def publish(self, path: Path) -> None:
        """Write our generator."""
        if "lt-di" in self.generators:
            self.generators["lt-di"].save(path / "generator")


def _recipe(name: str, base: Recipe, seed: int) -> Recipe:
    """The recipe of a row, with a seed."""
    base = replace(base, meta=replace(base.meta, seed=seed))
    if name == _WEIGHTS:
        d = replace(base.diffusion, loss="weight", plus_weight=0.0)
        return replace(base, diffusion=d)
    return named_recipe(name, base)


def _descended(
    zoo: Checkpoints, p: CheckpointPreset, seed: int
) -> tuple[Tensor, dict[str, float], float]:
    """The centres after gradient descent on as many images as meta-training shows its nets.

    Returns:
        [C, n] nets, the validation accuracy of each candidate, and the seconds that it took.
    """
    start = time.perf_counter()
    m = p.recipe.meta
    nets = m.iterations * m.meta_batch * m.inner_steps * m.tasks
    steps = max(1, nets * JUDGED // (p.trainings.runs * BATCH))
    centres, scores = descended(zoo, steps, torch.Generator().manual_seed(seed + 2))
    named = {f"rate {rate:g}": round(score, 4) for rate, score in scores.items()}
    return centres, named, time.perf_counter() - start


def bench(
    dataset: str = "cifar10",
    data_dir: str | None = None,
    *,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | CheckpointPreset = "standard",
    temperature: float | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome:
    """New nets for a task that was seen (as in p-diff), against plain generators.

    Args:
        dataset: "cifar10", or another set with the parts "train" and "test" of the same classes.
        data_dir: Where it lies.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        temperature: Scale of the noise that nets are generated from; by default the largest of 1,
            0.7, 0.5 and 0.3 whose nets are as good as the checkpoints on images that no net was
            trained on.
        seed: Fixes everything.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or the data do not suffice.
    """
    label, p = chosen_preset(preset, PRESETS)
    check_methods(methods, ALL_METHODS)
    net = p.trainings.net
    parts = load_data(dataset, data_dir, size=net.size, channels=net.channels, seed=seed)
    if not {"train", "test"} <= set(parts) or parts["train"].classes != parts["test"].classes:
        raise InputError(
            f"{dataset!r} has no training and test images of the same classes",
            where="--dataset",
            fix="choose a data set for ordinary classification, such as cifar10",
        )
    generators: dict[str, SampleGenerator] = {}
    rows: list[Row] = []
    novelty: dict[str, dict[str, float]] = {}
    tried: dict[str, dict[str, float]] = {}
    moved: tuple[Tensor, dict[str, float], float] | None = None
    with one_thread():
        start = time.perf_counter()
        zoo = collect_checkpoints(parts, p.trainings, p.recipe, seed=seed, progress=progress)
        prepare_s = time.perf_counter() - start
        images, labels = transformed(parts["test"], zoo.host, p.tests, seed)
        originals = predictions(zoo.last, zoo, images)
        rng = torch.Generator().manual_seed(seed + 1)
        away = partial(nearest, others=zoo.last, run=zoo.run, space=zoo.space)
        distance = float(away(zoo.last[:1], skip=torch.zeros(1, dtype=torch.long)))
        ordered = sorted(methods, key=ALL_METHODS.index)  # noise is measured by lt-di's distance
        for name in ordered:
            reset_peak()
            start = time.perf_counter()
            skip, train_s, latency = None, 0.0, 0.0
            if name == "originals":
                skip = torch.randperm(len(zoo.last), generator=rng)[: p.generated]
                theta = zoo.last[skip]
            elif name in _RECIPES:
                recipe = _recipe(name, p.recipe, seed)
                made = train_sampler(zoo, recipe, progress)
                generators[name], tried[name] = chosen_sampler(made, zoo, temperature)
                train_s = time.perf_counter() - start
                start = time.perf_counter()
                theta = generators[name].draws(p.generated, seed=seed)
                latency = 1000 * (time.perf_counter() - start) / p.generated
            else:
                centres = None
                if name in _DESCENDED:
                    centres, scores, train_s = moved or _descended(zoo, p, seed)
                    moved = centres, scores, train_s
                    tried[name] = scores
                plain = name.removesuffix(_DESCENT)
                theta = plain_samples(plain, zoo, p.generated, rng, distance, centres)
            guess = predictions(theta, zoo, images)
            far = away(theta, skip=skip)
            if name == "lt-di":
                distance = float(far.mean())
            score = summarise((guess == labels).float().mean(1))
            iou = wrong_iou(guess, originals, labels, skip)
            run = zoo.run[torch.cdist(theta, zoo.last).argmin(1)]
            novelty[name] = {
                "distance": round(float(far.mean()), 5),
                "wrong-set IoU": round(float(iou.mean()), 5),
                "spread": round(float((theta - theta.mean(0)).norm(dim=1).mean()), 5),
                "within": round(within(theta, run), 5),
                "trainings": len(run.unique()),
                "vote": round(float((guess.mode(0).values == labels).float().mean()), 5),
            }
            kind = "ours" if name == "lt-di" else "peer" if name in _PEERS else "control"
            rows.append(
                Row(
                    name,
                    kind,
                    "accuracy",
                    score.mean,
                    score.ci95,
                    score.episodes,
                    latency,
                    prepare_s if name in _RECIPES else 0.0,
                    train_s,
                    peak_mb(),
                )
            )
            log({"event": "method", **asdict(rows[-1]), **novelty[name]})
    accuracy = (originals == labels).float().mean(1)
    settings = {
        "net": asdict(net),
        "weights": zoo.space.size,
        "checkpoints": len(zoo.last),
        "runs": p.trainings.runs,
        "originals": {
            "mean": round(float(accuracy.mean()), 5),
            "std": round(float(accuracy.std()), 5),
        },
        "novelty": novelty,
        "sampling": {n: asdict(g.parts.sampling) for n, g in generators.items()},
        "validation accuracy": tried,
        "recipe": asdict(p.recipe),
        "temperature": temperature,
    }
    return Outcome(Result("checkpoints", dataset, label, seed, settings, rows), generators)
