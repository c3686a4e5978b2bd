"""`ltdi collect`."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ltdi import data as sources
from ltdi.anchor import make_empty_anchor
from ltdi.backbone import (
    Backbone,
    FeatureMap,
    FeatureMapping,
    InputTransform,
    ProtoTraining,
    pretrained_backbone,
    train_backbone,
)
from ltdi.collect import Preparation
from ltdi.commands.common import OUT, run_in
from ltdi.commands.nets import collect_nets
from ltdi.data import ImageSet
from ltdi.errors import InputError, unknown
from ltdi.meta import MetaConfig
from ltdi.nets import InitialTraining, NetConfig, NetHost
from ltdi.pipeline import (
    check_start,
    make_anchor,
    prepare_zoo,
    save_shared,
    start_zoo,
)
from ltdi.progress import Bars
from ltdi.recipe import NET_RECIPE, Recipe, Tasks
from ltdi.tasks import sample_episodes
from ltdi.tracks import fewshot
from ltdi.zoo import Zoo


def collect(
    out: str,
    data: str = "glyphs",
    data_dir: str | None = None,
    split: str | None = None,
    download: bool = False,
    backbone: str | None = None,
    held_out: float = 0.3,
    anchor: str = "gaussian",
    start: str = "anchor",
    seed: int = 0,
    tasks: Tasks = Tasks(),
    prepare: Preparation = Preparation(lr=0.05, steps=24, segments=4),
    training: ProtoTraining = ProtoTraining(),
    mapping: FeatureMapping = FeatureMapping(),
    target: str = "head",
    net: NetConfig = NetConfig(),
    initial: InitialTraining = InitialTraining(),
    resolved: str = "",
) -> None:
    """Solve many tasks and keep their optimisation trajectories in a zoo.

    Args:
        out: Directory of the zoo; collecting again goes on where it was stopped.
        data: "glyphs", "omniglot", or a folder or zip of <class>/<image>.
        data_dir: Where a named data set lies.
        split: The data set's split, such as "official" for Omniglot.
        download: Whether to fetch what Omniglot's --data-dir lacks from its official place first.
        backbone: A directory of a saved backbone, "efficientnet-lite0", "timm:NAME" or
            "transformers:NAME_OR_PATH"; a small conv net is trained on part of the classes when it
            is not given.
        held_out: Share of the training classes that a trained backbone does not see.
        anchor: "gaussian", "prototype" or "none".
        start: theta_0 of a task: "anchor" or "gaussian".
        seed: Fixes everything.
        tasks: Which tasks are solved.
        prepare: How they are solved.
        training: How a conv backbone is trained.
        mapping: What is done to the features of a pretrained backbone.
        target: "head", or "net" for all weights of a small net.
        net: Architecture of the net.
        initial: How the net's shared initialisation is meta-learned.
        resolved: The command's options, saved beside the run.
    """
    if target not in ("head", "net"):
        raise unknown("target", target, ("head", "net"), where="--target")
    if target == "net":  # what suits heads does not suit nets
        tasks = NET_RECIPE.tasks if tasks == Tasks() else replace(tasks, folds=0)
        prepare = NET_RECIPE.prepare if prepare == Recipe().prepare else prepare
    recipe = Recipe(
        tasks=tasks, prepare=prepare, anchor=anchor, start=start, meta=MetaConfig(seed=seed)
    )
    if download:
        sources.fetch(data, data_dir)
    named = data in sources.SOURCES
    with run_in(out, "zoo", "collect.yaml", resolved) as (path, progress, log):
        body = None if target == "net" else _given_backbone(backbone, path)
        transform = body.transform if body else InputTransform()
        if target == "net":
            transform = InputTransform(
                net.size, net.channels, "ink" if net.channels == 1 else "keep"
            )
        parts = sources.load(
            data,
            data_dir,
            size=transform.size,
            channels=transform.channels,
            split=split or (None if named else "random"),
            seed=0 if named else seed,
        )
        about = {"data": data, "split": split, "held_out": held_out}
        held = parts["train"]
        if backbone is None:
            _, held = fewshot.hold_out(held, held_out, seed)
        _check_tasks(recipe, held.offsets)
        if target == "net":
            zoo = collect_nets(
                path,
                parts,
                recipe,
                NetHost(net, transform),
                initial,
                held_out=held_out,
                about=about,
                progress=progress,
            )
        else:
            zoo = _collect_heads(
                path,
                parts,
                recipe,
                body,
                named=backbone is not None,
                held_out=held_out,
                training=training,
                mapping=mapping,
                about=about,
                progress=progress,
            )
        for shard in zoo.shards:
            log({"event": "shard", **shard})
    zoo.groups()  # says so if there is no task
    table = Table("way", "shot", "tasks", "dropped", "final loss", "final accuracy")
    for (way, shot), shards in groupby(sorted(zoo.shards, key=_setting), key=_setting):
        entries = list(shards)
        tasks = sum(e["tasks"] for e in entries)
        dropped = sum(e["dropped"] for e in entries)
        table.add_row(
            *map(str, (way, shot, tasks, dropped)),
            f"{_mean(entries, 'loss'):.5f}",
            f"{_mean(entries, 'accuracy'):.4f}",
        )
    OUT.print(table)
    OUT.print(f"zoo  {path}\nnext: ltdi train --zoo {path} --out DIR", soft_wrap=True)


def _collect_heads(
    path: Path,
    parts: dict[str, ImageSet],
    recipe: Recipe,
    net: Backbone | None,
    *,
    named: bool,
    held_out: float,
    training: ProtoTraining,
    mapping: FeatureMapping,
    about: dict[str, Any],
    progress: Bars,
) -> Zoo:
    """Train a backbone where none was named, and solve head tasks on its features into a zoo."""
    train = parts["train"]
    if not named:
        rest, train = fewshot.hold_out(train, held_out, recipe.meta.seed)
    if net is None:
        net = train_backbone(
            rest,
            replace(training, seed=recipe.meta.seed),
            transform=InputTransform(),
            progress=lambda i, n, loss: progress("backbone", i, n, f"loss {loss:.3f}"),
        )
        net.save(path / "backbone")
    bank = net.bank(train, progress=lambda i, n: progress("features", i, n, ""))
    if named and net.config["kind"] not in ("conv", "mapped"):
        learned = FeatureMap(bank.width, mapping).fit(bank.features)
        net, bank = net.mapped(learned), learned.bank(bank)
    valid = net.bank(parts["val"])
    fitted = make_anchor(recipe, bank, valid)
    # Refuses other settings before anything of theirs is written.
    start_zoo(path, bank, recipe, net, about=about)
    save_shared(path, fitted, net, valid)
    return prepare_zoo(path, bank, fitted, recipe, net, about=about, progress=progress)


def _setting(entry: dict[str, Any]) -> tuple[int, int]:
    return entry["setting"]["way"], entry["setting"]["shot"]


def _mean(entries: list[dict[str, Any]], column: str) -> float:
    """Over tasks, from the means of shards."""
    known = [e for e in entries if e["tasks"]]
    tasks = sum(e["tasks"] for e in known)
    return sum(e["mean"][column] * e["tasks"] for e in known) / tasks if tasks else math.nan


def _check_tasks(recipe: Recipe, offsets: torch.Tensor) -> None:
    """Refuse tasks that the classes cannot give, before time is spent on a backbone."""
    t = recipe.tasks
    for name in ("ways", "shots"):
        if not getattr(t, name):
            raise InputError(
                f"no {name} were given", where=f"tasks.{name}", fix="name at least one"
            )
    for name in ("per_setting", "shard"):
        if getattr(t, name) < 1:
            raise InputError(
                f"{name} must be at least 1, got {getattr(t, name)}", where=f"tasks.{name}"
            )
    check_start(recipe)
    make_empty_anchor(recipe.anchor, 1)
    for way in t.ways:
        for shot in t.shots:
            sample_episodes(
                offsets, way=way, shot=shot, query=t.query + t.probe, episodes=1, seed=0
            )


def _given_backbone(name: str | None, zoo: Path) -> Backbone | None:
    """The named backbone, or the one that an interrupted collection trained."""
    if name is None:
        kept = zoo / "backbone"
        return Backbone.load(kept) if (kept / "backbone.json").is_file() else None
    return pretrained_backbone(name)
