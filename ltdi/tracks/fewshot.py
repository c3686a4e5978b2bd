"""Few-shot classification: heads on a frozen backbone, ours against peers and controls."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ltdi.backbone import (
    Backbone,
    FeatureMap,
    cached_banks,
    pretrained_backbone,
)
from ltdi.baselines import Budget, Method
from ltdi.data import ImageSet, fetch, folder
from ltdi.errors import InputError, unknown
from ltdi.progress import Log, Progress
from ltdi.report.table import Result
from ltdi.tasks import sample_episodes
from ltdi.tracks import net_methods, nets
from ltdi.tracks.episodes import (
    check_counts,
    hold_out,
    load_parts,
    one_thread,
    shapes_of,
    trained_backbone,
)
from ltdi.tracks.fewshot_methods import ALL_METHODS, World, methods_of
from ltdi.tracks.fewshot_presets import NAMES, Preset, preset_of
from ltdi.tracks.measured import kept
from ltdi.tracks.run import Run, run_elsewhere, run_methods
from ltdi.tracks.track import Outcome, check_methods, chosen_preset, side_of


def build_world(
    parts: dict[str, ImageSet],
    preset: Preset,
    *,
    seed: int,
    directory: Path,
    cache: Path | None = None,
    progress: Progress,
) -> World:
    """Train or load the backbone, and embed the image sets "train", "val" and "test".

    The directory is for zoos; trained backbones and features are kept in `cache`.
    """
    backbone, train = _backbone(parts["train"], preset, seed, cache, progress)
    sets = (train, parts["val"], parts["test"])
    banks = cached_banks(
        backbone, sets, cache, progress=lambda i, n: progress("features", i, n, "")
    )
    if preset.mapping is not None:
        map = FeatureMap(banks[0].width, preset.mapping).fit(banks[0].features)
        backbone, banks = backbone.mapped(map), [map.bank(bank) for bank in banks]
    train_bank, valid_bank, test_bank = banks
    return World(directory, train_bank, valid_bank, test_bank, backbone)


def _backbone(
    images: ImageSet, preset: Preset, seed: int, cache: Path | None, progress: Progress
) -> tuple[Backbone, ImageSet]:
    """A frozen backbone, and the training classes that it has not seen."""
    plan = preset.backbone
    if isinstance(plan, str):
        return pretrained_backbone(plan, size=preset.side), images
    seen, held = hold_out(images, preset.held_out, seed)
    trained = trained_backbone(seen, replace(plan, seed=seed), cache, progress)
    transform = replace(trained.transform, wiggle=preset.wiggle, flip=preset.flip)
    return Backbone(trained.net, transform, trained.config), held


def bench(
    dataset: str,
    data_dir: str | None = None,
    *,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | Preset = "standard",
    way: int = 5,
    shot: int = 1,
    settings: str | None = None,
    query: int = 15,
    episodes: int | None = None,
    split: str | None = None,
    target: str = "head",
    backbone: str | None = None,
    side: int | None = None,
    elsewhere: str | None = None,
    cache: str | None = None,
    download: bool = False,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome[Any]:
    """Heads for tasks of unseen classes: methods on the same test episodes.

    Args:
        dataset: "glyphs", "omniglot", "cifar-fs", "fc100", "tiny-imagenet", or a folder or archive
            of <class>/<image>.
        data_dir: Where a named data set lies.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        way: Classes per test episode.
        shot: Support images per class.
        settings: Several ways and shots in one run, such as "5w1s,5w5s,20w1s", instead of `way`
            and `shot`. Backbone, zoo and generator are shared; peers are fitted for each.
        query: Query images per class.
        episodes: Test episodes; the preset's number by default.
        split: The data set's split, such as "official" for Omniglot.
        target: "head", or "net" for all weights of a small net, with the methods of that track.
        backbone: A pretrained backbone instead of the preset's: "efficientnet-lite0", "timm:NAME",
            "transformers:NAME", or a directory of a saved one.
        side: Side in pixels that a pretrained backbone sees; its own by default. Features take
            time by its square, and small images often gain.
        elsewhere: Folders or archives of <class>/<image>, with commas between, that the methods are
            tested on as well; nothing is fitted or chosen there.
        cache: Directory where trained backbones and features are kept between runs.
        download: Whether to fetch what Omniglot's --data-dir lacks from its official place first.
        seed: Fixes everything.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or the data do not suffice.
    """
    if target == "net":
        if elsewhere is not None:
            raise InputError(
                "whole nets are not tested elsewhere here",
                where="--elsewhere",
                fix="publish the generator with --out, and see `ltdi evaluate`",
            )
        # The same tasks with another kind of weights, which is a track of its own.
        same: dict[str, Any] = {"way": way, "shot": shot, "query": query, "episodes": episodes}
        same |= {"split": split, "seed": seed, "progress": progress, "log": log}
        same |= {"preset": preset, "methods": methods}
        if tuple(methods) == ALL_METHODS:
            same["methods"] = net_methods.ALL_METHODS
        return nets.bench(dataset, data_dir, **same)
    if target != "head":
        raise unknown("target", target, ("head", "net"), where="--target")
    label, p = chosen_preset(preset, {n: preset_of(dataset, n, backbone) for n in NAMES})
    check_methods(methods, ALL_METHODS)
    pretrained = p.backbone if isinstance(p.backbone, str) else None
    p = replace(p, side=side_of(side, p.side, pretrained))
    episodes = p.episodes if episodes is None else episodes
    check_counts(query=query, episodes=episodes)
    shapes = shapes_of(settings, way, shot)
    if download:
        fetch(dataset, data_dir)
    recipe = replace(p.recipe, meta=replace(p.recipe.meta, seed=seed))
    images = {"size": p.size, "channels": p.channels}
    parts = load_parts(dataset, data_dir, **images, rotations=p.rotations, split=split, seed=seed)
    # Impossible episodes are refused before time is spent on a backbone.
    for w, s in shapes:
        sample_episodes(parts["test"].offsets, way=w, shot=s, query=query, episodes=1, seed=seed)
    place = None if cache is None else Path(cache)
    others = _others(elsewhere.split(","), p, shapes, dataset) if elsewhere else []
    with tempfile.TemporaryDirectory(prefix="ltdi-bench-") as scratch:
        start = time.perf_counter()
        world = build_world(
            parts, p, seed=seed, directory=Path(scratch), cache=place, progress=progress
        )
        backbone_s = time.perf_counter() - start
        log({"event": "backbone", "backbone_s": backbone_s})
        banks = cached_banks(
            world.backbone, others, place, progress=lambda i, n: progress("features", i, n, "")
        )
        elsewheres = {other.name: bank for other, bank in zip(others, banks, strict=True)}
        runs: list[Run[Method]] = []
        with one_thread():
            for w, s in shapes:
                shape = f"{w}w{s}s"
                title = f"{dataset} {shape}" if others else shape if len(shapes) > 1 else None
                budget = Budget(p.peer_iterations, w, s, query, p.valid_episodes, seed)
                made = methods_of(methods, recipe, world, w)
                run = run_methods(made, world, budget, episodes, progress, log, title)
                log({"event": "shape", "way": w, "shot": s, **run.measured()})
                runs.append(run)
                for name, bank in elsewheres.items():
                    runs.append(run_elsewhere(run, bank, budget, episodes, f"{name} {shape}"))
    about = {
        "way": shapes[0][0],
        "shot": shapes[0][1],
        "query": query,
        "classes": world.classes("backbone", parts),
        "backbone_s": round(backbone_s, 2),
        "side": world.backbone.transform.size,
        "recipe": asdict(recipe),
        **_told(p, runs),
    }
    rows = [row for run in runs for row in run.rows]
    result = Result("fewshot", dataset, label, seed, about, rows)
    methods_of_one, shape = runs[0].methods, f"{dataset} {shapes[0][0]}w{shapes[0][1]}s"
    generators = kept(methods_of_one, result, lambda row: row.dataset or shape)
    return Outcome(result, world, methods_of_one, generators)


def _others(
    paths: Sequence[str], preset: Preset, shapes: Sequence[tuple[int, int]], dataset: str
) -> list[ImageSet]:
    """Folders to test on; refused in time where rows would have one name, or episodes lack images.

    Rows are named by the last part of a path.
    """
    named: dict[str, str] = {dataset: "--dataset"}
    for path in map(str.strip, paths):
        name = folder.name_of(path)
        if name in named:
            raise InputError(
                f"{path} and {named[name]} are both called {name!r}: their rows could not be told "
                "apart",
                where="--elsewhere",
                fix="rename or link one of them, or test it in a run of its own",
            )
        named[name] = path
    return [_other(path.strip(), preset, shapes) for path in paths]


def _other(path: str, preset: Preset, shapes: Sequence[tuple[int, int]]) -> ImageSet:
    """A folder to test on; see `_others`."""
    size = (preset.side or 224) if isinstance(preset.backbone, str) else preset.size
    images = folder.load(path, size=size, channels=preset.channels)
    for way, shot in shapes:
        try:
            sample_episodes(images.offsets, way=way, shot=shot, query=1, episodes=1, seed=0)
        except InputError as error:
            raise InputError(error.what, where=f"--elsewhere {path}", fix=error.fix) from None
    return images


def _told(preset: Preset, runs: Sequence[Run[Method]]) -> dict[str, Any]:
    """What a result says of its preset, and of the methods beside their rows."""
    plan, mapping = preset.backbone, preset.mapping
    return {
        "threads": torch.get_num_threads(),
        "backbone": plan if isinstance(plan, str) else asdict(plan),
        "mapping": None if mapping is None else asdict(mapping),
        "peer_iterations": preset.peer_iterations,
        "notes": {name: m.note for name, m in runs[0].methods.items()},
        **_measured(runs),
    }


def _measured(runs: Sequence[Run[Method]]) -> dict[str, Any]:
    """What runs tell beside their rows; by shape of the episodes where there are several."""
    if len(runs) == 1:
        return runs[0].measured()
    kept = {run.label: run.measured() for run in runs}
    return {key: {shape: of[key] for shape, of in kept.items()} for key in runs[0].measured()}
