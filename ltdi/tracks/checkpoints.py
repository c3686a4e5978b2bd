"""New samples of nets for a task that was seen: generated checkpoints against plain generators."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ltdi.collect import Preparation
from ltdi.data import ImageSet
from ltdi.data import load as load_data
from ltdi.errors import InputError
from ltdi.evaluate import Summary, summarise
from ltdi.memory import peak_mb, reset_peak
from ltdi.meta import MetaConfig
from ltdi.nets import NetConfig
from ltdi.nets.novelty import within, wrong_iou
from ltdi.progress import Log, Progress
from ltdi.recipe import Diffusion, Network, Recipe, Sampling, Tasks
from ltdi.report.table import Result, Row
from ltdi.samples import Trainings, collect_checkpoints, predictions, transformed
from ltdi.tracks.checkpoint_methods import ALL_METHODS, RECIPES, CheckpointWorld, Drawn, kind_of
from ltdi.tracks.episodes import one_thread
from ltdi.tracks.measured import generators_of, sampling_of
from ltdi.tracks.track import Outcome, check_methods, chosen_preset


@dataclass(frozen=True)
class CheckpointPreset:
    """What is spent.

    Attributes:
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
        iterations=600,
        meta_batch=2,
        inner_steps=2,
        inner_lr=2e-3,
        tasks=8,
        meta_lr=2e-3,
        warmup=20,
        ema=0.97,
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


class Judge:
    """Measures nets on test images, and how new they are beside the checkpoints."""

    def __init__(self, world: CheckpointWorld, test: ImageSet, most: int) -> None:
        self.world, zoo = world, world.zoo
        self.images, self.labels = transformed(test, zoo.host, most, world.seed)
        self.originals = predictions(zoo.last, zoo, self.images)

    def __call__(self, drawn: Drawn) -> tuple[Summary, dict[str, float]]:
        """Accuracy over nets, and what is told of novelty (docs/reproduce.md)."""
        zoo, theta = self.world.zoo, drawn.theta
        guess = predictions(theta, zoo, self.images)
        run = zoo.run[torch.cdist(theta, zoo.last).argmin(1)]
        iou = wrong_iou(guess, self.originals, self.labels, drawn.skip)
        vote = (guess.mode(0).values == self.labels).float().mean()
        novelty = {
            "distance": round(float(self.world.away(theta, drawn.skip).mean()), 5),
            "wrong-set IoU": round(float(iou.mean()), 5),
            "spread": round(float((theta - theta.mean(0)).norm(dim=1).mean()), 5),
            "within": round(within(theta, run), 5),
            "trainings": len(run.unique()),
            "vote": round(float(vote), 5),
        }
        return summarise((guess == self.labels).float().mean(1)), novelty

    def checkpoints(self) -> dict[str, float]:
        """Accuracy of all checkpoints."""
        accuracy = (self.originals == self.labels).float().mean(1)
        return {
            "mean": round(float(accuracy.mean()), 5),
            "std": round(float(accuracy.std()), 5),
        }


def _parts(dataset: str, data_dir: str | None, net: NetConfig, seed: int) -> dict[str, ImageSet]:
    """Training and test images of the same classes."""
    parts = load_data(dataset, data_dir, size=net.size, channels=net.channels, seed=seed)
    if not {"train", "test"} <= set(parts) or parts["train"].classes != parts["test"].classes:
        raise InputError(
            f"{dataset!r} has no training and test images of the same classes",
            where="--dataset",
            fix="choose a data set for ordinary classification, such as cifar10",
        )
    return parts


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
) -> Outcome[CheckpointWorld]:
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
    parts = _parts(dataset, data_dir, p.trainings.net, seed)
    with one_thread():
        start = time.perf_counter()
        zoo = collect_checkpoints(parts, p.trainings, p.recipe, seed=seed, progress=progress)
        prepare_s = time.perf_counter() - start
        world = CheckpointWorld(zoo, p.recipe, p.generated, seed, temperature, progress)
        judge = Judge(world, parts["test"], p.tests)
        rows: list[Row] = []
        made: dict[str, Drawn] = {}
        novelty: dict[str, dict[str, float]] = {}
        for name in sorted(methods, key=ALL_METHODS.index):
            reset_peak()
            made[name] = drawn = world.draw(name)
            score, novelty[name] = judge(drawn)
            if name == "lt-di":
                world.distance = novelty[name]["distance"]
            spent = prepare_s if name in RECIPES else 0.0
            costs = (drawn.latency_ms, spent, drawn.train_s, peak_mb())
            found = (score.mean, score.ci95, score.episodes)
            rows.append(Row(name, kind_of(name), "accuracy", *found, *costs))
            log({"event": "method", **asdict(rows[-1]), **novelty[name]})
    settings: dict[str, Any] = {
        "net": asdict(p.trainings.net),
        "weights": zoo.space.size,
        "checkpoints": len(zoo.last),
        "runs": p.trainings.runs,
        "originals": judge.checkpoints(),
        "novelty": novelty,
        "sampling": sampling_of(made),
        "validation accuracy": {name: d.tried for name, d in made.items() if d.tried},
        "recipe": asdict(p.recipe),
        "temperature": temperature,
    }
    result = Result("checkpoints", dataset, label, seed, settings, rows)
    ours = generators_of(made).get("lt-di")
    return Outcome(result, world, made, {"generator": ours} if ours else {})
