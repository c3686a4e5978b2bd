"""Transfer without labels: heads for the classes of a set never seen, from names and raw images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.backbone.wrapped import EFFICIENTNET
from ltdi.baselines.unseen import UNSEEN_PEERS, Adapted, UnseenMethod
from ltdi.baselines.unseen.method import NamedBanks, UnseenBudget
from ltdi.data.transfer import TARGETS
from ltdi.errors import InputError, unknown
from ltdi.files import plain
from ltdi.memory import reset_peak
from ltdi.meta import MetaConfig
from ltdi.progress import Log, Progress
from ltdi.recipe import VARIANTS, Diffusion, Network
from ltdi.report.table import Result, Row
from ltdi.tracks.episodes import check_counts, one_thread
from ltdi.tracks.measured import kept, sampling_of
from ltdi.tracks.track import Outcome, check_methods, chosen_preset, side_of
from ltdi.tracks.transfer_data import Scene, TransferData, load, subtasks_of
from ltdi.tracks.transfer_methods import (
    ANCHOR,
    CEILING,
    GeneratedUnseen,
    Supervised,
    TransferWorld,
    make_method,
)
from ltdi.tracks.transfer_scores import Gate, Predict, measure, paired
from ltdi.unseen import NamedBank, UnseenRecipe, sample_tasks

CONDITIONS = ("unlabeled", "text")
_PLAIN = (*VARIANTS, ANCHOR, CEILING, *UNSEEN_PEERS)
ALL_METHODS = (*_PLAIN, *(f"{peer}+em" for peer in UNSEEN_PEERS))


@dataclass(frozen=True)
class TransferPreset:
    """What is spent.

    Attributes:
        recipe: Of `lt-di`; controls change one idea of it.
        peer_iterations: Of gradient descent, for peers that have it.
        valid_tasks: Validation tasks of each way that every choice is made on.
        valid_ways: Their ways.
        subtasks: Sub-tasks of 5 classes drawn from every target.
        thorough: Whether the prior's settings are searched.
        side: Side in pixels that EfficientNet-lite0 sees; its own by default.
    """

    recipe: UnseenRecipe
    peer_iterations: int
    valid_tasks: tuple[int, ...] = (40, 24, 12, 6)
    valid_ways: tuple[int, ...] = (5, 10, 20, 37)
    subtasks: int = 600
    thorough: bool = True
    side: int | None = None


_META = MetaConfig(
    iterations=300, meta_batch=4, inner_steps=3, tasks=3, meta_lr=2e-3, warmup=20, ema=0.97
)
_STANDARD = UnseenRecipe(tasks=480, meta=_META)
PRESETS: Mapping[str, TransferPreset] = {
    "smoke": TransferPreset(
        replace(
            _STANDARD,
            ways=(5,),
            pool=(4, 8),
            query=4,
            tasks=16,
            folds=4,
            diffusion=Diffusion(steps=4),
            network=Network(kind="naming", width=32, depth=1),
            meta=replace(_META, iterations=6, tasks=2, warmup=2, ema=0.9),
        ),
        20,
        valid_tasks=(6, 2),
        valid_ways=(5, 10),
        subtasks=100,
        thorough=False,
    ),
    "standard": TransferPreset(_STANDARD, 400, side=224),
    "paper": TransferPreset(
        replace(
            _STANDARD,
            tasks=20_000,
            folds=64,
            network=Network(kind="naming", width=128, depth=3),
            meta=replace(_META, iterations=6000, tasks=16, ema=0.99),
        ),
        6000,
        side=224,
    ),
}


def label(options: Mapping[str, Any]) -> str:
    """Names a run: "text" or "unlabeled", and the targets where they are not all."""
    chosen = "" if options["targets"] == "all" else "-" + options["targets"].replace(",", "-")
    return f"{options['condition']}{chosen}"


def bench(
    data_dir: str | None = None,
    *,
    condition: str = "unlabeled",
    targets: str = "all",
    encoder: str = "minilm",
    revision: str | None = None,
    backbone: str = EFFICIENTNET,
    side: int | None = None,
    pool: int = 50,
    subtasks: int | None = None,
    cache: str | None = None,
    seed: int = 0,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | TransferPreset = "standard",
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome[TransferWorld]:
    """Generate heads for sets without a labelled image of them, and measure them.

    Args:
        data_dir: Directory with cifar10/, cifar100/, tiny-imagenet/, oxford_pets/,
            office_caltech10/ and pacs/; without it glyphs and their names stand in, which shows
            that everything runs and nothing else.
        condition: "unlabeled" (names, and images without labels) or "text" (names alone).
        targets: Comma-separated target sets, or "all".
        encoder: Sentence encoder of class names: "minilm", or any encoder of transformers.
        revision: Of the encoder on the hub.
        backbone: A pretrained backbone.
        side: Side in pixels that it sees; the preset's for EfficientNet-lite0, its own for others.
        pool: Most unlabelled images, in units of the number of classes. They are drawn from all
            unlabelled images of a target, and are never test images.
        subtasks: Tasks of 5 classes drawn from every target; the preset's number by default.
        cache: Directory where features are kept.
        seed: Of everything.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or data are missing.
    """
    text, p = chosen_preset(preset, PRESETS)
    if condition not in CONDITIONS:
        raise unknown("condition", condition, CONDITIONS, where="--condition")
    wanted = tuple(TARGETS) if targets == "all" else tuple(t.strip() for t in targets.split(","))
    for name in wanted:
        if name not in TARGETS:
            raise unknown("target set", name, TARGETS, where="--targets")
    chosen = _allowed(methods, condition)
    subtasks = p.subtasks if subtasks is None else subtasks
    check_counts(pool=pool, subtasks=subtasks)
    p = _conditioned(p, condition, seed)
    side = side_of(side, p.side, backbone if data_dir is not None else None)
    with tempfile.TemporaryDirectory(prefix="ltdi-bench-") as scratch, one_thread():
        found = load(
            data_dir,
            wanted,
            encoder=encoder,
            revision=revision,
            backbone=backbone,
            side=side,
            pool=pool,
            cache=cache,
            seed=seed,
            progress=progress,
        )
        world = _world(found, p, seed, Path(scratch))
        gate = Gate.fit(found.train, found.held, world.valid)
        scenes = found.scenes
        budget = UnseenBudget(p.peer_iterations, p.recipe.pool, p.recipe.ways, seed)
        if condition == "text":
            scenes = [replace(s, batch=s.batch.named_only()) for s in scenes]
        runs = [subtasks_of(s, subtasks, seed) for s in scenes]
        fitted: dict[str, UnseenMethod] = {}
        final: dict[str, UnseenMethod] = {}
        scores: dict[str, dict[str, Tensor]] = {}
        rows: list[Row] = []
        for name in chosen:
            kind, predict, seconds = _fit(name, world, budget, fitted, final, progress)
            scores[name], new = measure(
                name, kind, predict, scenes, runs, gate, seconds, seed, progress
            )
            rows += new
            for row in new:
                log({"event": "method", **asdict(row)})
    settings = {
        "condition": condition,
        **_targets(scenes),
        "gate": {"seen accuracy": round(float(gate.seen.double().mean()), 5)},
        **found.about,
        "again": f"every method chose on the {len(found.valid.names)} validation classes, and then "
        f"learned once more from all {len(world.whole.names)} source classes; a generated one took "
        "the start from them, its network is that of the training classes",
        "recipe": plain(asdict(p.recipe)),
        "prior": asdict(world.prior().settings) if world.priors else None,
        **_chosen(fitted),
        "peer_iterations": p.peer_iterations,
        "paired": paired(scores),
        "notes": {name: m.note for name, m in fitted.items()},
    }
    dataset = "+".join(s.name for s in scenes) if len(scenes) < len(TARGETS) else "all"
    result = Result("transfer", dataset, text, seed, settings, rows)
    return Outcome(result, world, final, kept(final, result, lambda row: str(row.dataset)))


def _targets(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Sizes of the targets, and where their pools are from."""
    return {
        "targets": {
            s.name: {
                "classes": list(s.pool.names),
                "pool": int(s.batch.mask.sum()),
                "test": len(s.test),
            }
            for s in scenes
        },
        "pool": "unlabelled images are drawn from images that are not test images; their labels "
        "are seen by the row 'supervised' alone",
    }


def _chosen(fitted: Mapping[str, UnseenMethod]) -> dict[str, Any]:
    """What methods chose on validation tasks."""
    generated = {n: m for n, m in fitted.items() if isinstance(m, GeneratedUnseen)}
    return {
        "sampling": sampling_of(fitted),
        "steps": {
            n: {k: [round(x, 5) for x in v] for k, v in m.steps.items()}
            for n, m in generated.items()
        },
        "adapted": {n: asdict(m.plan) for n, m in fitted.items() if isinstance(m, Adapted)},
    }


def _conditioned(p: TransferPreset, condition: str, seed: int) -> TransferPreset:
    recipe = replace(p.recipe, meta=replace(p.recipe.meta, seed=seed))
    if condition == "text":
        recipe = replace(recipe, pool=(0, 0))
    return replace(p, recipe=recipe)


def _world(found: TransferData, p: TransferPreset, seed: int, directory: Path) -> TransferWorld:
    """What the methods share, with tasks of the validation classes."""
    tasks = [
        sample_tasks(
            found.valid,
            way=way,
            pool=p.recipe.pool,
            query=p.recipe.query,
            tasks=count,
            seed=seed + 77_000 + way,
        ).view(found.valid)
        for way, count in zip(p.valid_ways, p.valid_tasks, strict=True)
        if way <= len(found.valid.names)
    ]
    whole = NamedBank.joined([found.train, found.valid])
    return TransferWorld(
        found.backbone, found.encoder, found.train, whole, tasks, p.recipe, p.thorough, directory
    )


def _fit(
    name: str,
    world: TransferWorld,
    budget: UnseenBudget,
    fitted: dict[str, UnseenMethod],
    final: dict[str, UnseenMethod],
    progress: Progress,
) -> tuple[str, Predict, tuple[float, float]]:
    """Fit a method: its kind, its logits, and its seconds of preparation and training."""
    reset_peak()
    start = time.perf_counter()
    if name == CEILING:
        predict = Supervised(world.whole).logits
        return "control", predict, (0.0, time.perf_counter() - start)
    method = make_method(name, world, fitted)
    method.fit(NamedBanks(world.train, world.valid), budget, partial(progress, name))
    fitted[name], final[name] = method, method.again(world.whole, budget)
    train_s = method.train_s or time.perf_counter() - start
    return method.kind, _blind(final[name]), (method.prepare_s, train_s)


def _blind(method: UnseenMethod) -> Predict:
    """A method does not see the labels of the pool."""
    return lambda batch, labels, images: method.logits(batch, images)


def _allowed(methods: Sequence[str], condition: str) -> list[str]:
    """The methods that a condition allows.

    Raises:
        InputError: If there is none, or one is unknown or needs what the condition lacks.
    """
    check_methods(methods, ALL_METHODS)
    adapted = [name for name in methods if name.endswith("+em")]
    if condition == "text" and adapted and tuple(methods) != ALL_METHODS:
        raise InputError(
            f"{adapted[0]} adapts to unlabelled images, and the condition is 'text'",
            where="--methods",
            fix=f"name {adapted[0].removesuffix('+em')}, or choose --condition unlabeled",
        )
    # Without a pool there is nothing to adapt to, and no ceiling.
    absent = (*adapted, CEILING) if condition == "text" else ()
    return [name for name in methods if name not in absent]
