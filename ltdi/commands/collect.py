"""`ltdi collect`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ltdi import data as sources
from ltdi.adapters.runs import Runs
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
from ltdi.commands.adapters import DEFAULT as ADAPTERS
from ltdi.commands.adapters import TextTasks, begin_adapters
from ltdi.commands.common import OUT, run_in
from ltdi.commands.nets import begin_nets
from ltdi.data import ImageSet
from ltdi.data.text import Columns
from ltdi.engine import Collection, Engine
from ltdi.errors import InputError, check
from ltdi.lora import LoraSpec
from ltdi.meta import MetaConfig
from ltdi.nets import InitialTraining, NetConfig, NetHost
from ltdi.pipeline import HeadCollection, begin_zoo, check_start, make_anchor, save_shared
from ltdi.progress import Bars
from ltdi.recipe import NET_RECIPE, Recipe, Tasks
from ltdi.tasks import sample_episodes
from ltdi.tracks.episodes import hold_out


@dataclass(frozen=True)
class Collecting:
    """What is collected, and how.

    Attributes:
        data: "glyphs", "omniglot", "cifar-fs", "fc100", "tiny-imagenet", or a folder or archive of
            <class>/<image>. For adapters: comma-separated text tasks, each a GLUE task such as
            sst-2, a JSONL, CSV or TSV file, a folder with such files called train and dev, or
            "hub:NAME".
        data_dir: Where a named data set lies.
        split: The data set's split, such as "official" for Omniglot.
        download: Whether to fetch what Omniglot's --data-dir lacks from its official place first.
        backbone: A directory of a saved backbone, "efficientnet-lite0", "timm:NAME" or
            "transformers:NAME_OR_PATH"; a small conv net is trained on part of the classes when it
            is not given.
        side: Side in pixels that a pretrained backbone sees; its own by default. Features take
            time by its square, and small images often gain.
        held_out: Share of the training classes that a trained backbone does not see.
        anchor: "gaussian", "prototype" or "none".
        start: theta_0 of a task: "anchor" or "gaussian".
        seed: Fixes everything.
        tasks: Which tasks are solved.
        prepare: How they are solved.
        training: How a conv backbone is trained.
        mapping: What is done to the features of a pretrained backbone.
        target: "head", "net" for all weights of a small net, or "adapter" for LoRA adapters of a
            language model.
        net: Architecture of the net.
        initial: How the net's shared initialisation is meta-learned.
        texts: Base model of adapters, and how much of a text task is used.
        columns: Which columns of text files hold what.
        lora: Which weights an adapter has.
        runs: Which runs a text task is given.
    """

    data: str = "glyphs"
    data_dir: str | None = None
    split: str | None = None
    download: bool = False
    backbone: str | None = None
    side: int | None = None
    held_out: float = 0.3
    anchor: str = "gaussian"
    start: str = "anchor"
    seed: int = 0
    tasks: Tasks = Tasks()
    prepare: Preparation = Preparation(lr=0.05, steps=24, segments=4)
    training: ProtoTraining = ProtoTraining()
    mapping: FeatureMapping = FeatureMapping()
    target: str = "head"
    net: NetConfig = NetConfig()
    initial: InitialTraining = InitialTraining()
    texts: TextTasks = TextTasks()
    columns: Columns = Columns()
    lora: LoraSpec = LoraSpec()
    runs: Runs = Runs()

    def __post_init__(self) -> None:
        check("collect", self, known={"target": ("head", "net", "adapter")})

    @property
    def recipe(self) -> Recipe:
        """What suits heads does not suit nets."""
        tasks, prepare = self.tasks, self.prepare
        if self.target == "net":
            tasks = NET_RECIPE.tasks if tasks == Tasks() else replace(tasks, folds=0)
            prepare = NET_RECIPE.prepare if prepare == Recipe().prepare else prepare
        return Recipe(
            tasks=tasks,
            prepare=prepare,
            anchor=self.anchor,
            start=self.start,
            meta=MetaConfig(seed=self.seed),
        )


def begin(path: Path, options: Collecting, progress: Bars) -> Collection[Any]:
    """Everything before the shards: backbone, features, anchor and folds; an initialisation; texts.

    Raises:
        InputError: If data do not suffice, or an option is not of this kind of weights.
        MismatchError: If the zoo there was made with other settings.
    """
    o, recipe = options, options.recipe
    if o.side is not None and (o.target != "head" or o.backbone is None):
        raise InputError(
            "only a pretrained backbone sees images of another size",
            where="--side",
            fix="leave it out, or collect heads on one that --backbone names",
        )
    if o.target == "adapter":
        prepare = ADAPTERS.prepare if o.prepare == Recipe().prepare else o.prepare
        wanted = replace(ADAPTERS, runs=o.runs, prepare=prepare)
        return begin_adapters(
            path, o.data, o.data_dir, o.texts, o.lora, o.columns, wanted, seed=o.seed
        )
    if o.download:
        sources.fetch(o.data, o.data_dir)
    named = o.data in sources.SOURCES
    body = None if o.target == "net" else _given_backbone(o.backbone, o.side, path)
    transform = body.transform if body else InputTransform()
    if o.target == "net":
        kept = "ink" if o.net.channels == 1 else "keep"
        transform = InputTransform(o.net.size, o.net.channels, kept)
    parts = sources.load(
        o.data,
        o.data_dir,
        size=transform.size,
        channels=transform.channels,
        split=o.split or (None if named else "random"),
        seed=0 if named else o.seed,
    )
    about = {"data": o.data, "split": o.split, "held_out": o.held_out}
    rest = train = parts["train"]
    if o.backbone is None or o.target == "net":
        rest, train = hold_out(train, o.held_out, o.seed)
    _check_tasks(recipe, train.offsets, sum(len(part.classes) for part in parts.values()))
    parts |= {"rest": rest, "train": train}
    if o.target == "head":
        return _begin_heads(path, parts, o, body, about, progress)
    host = NetHost(o.net, transform)
    return begin_nets(path, parts, recipe, host, o.initial, about=about, progress=progress)


def _begin_heads(
    path: Path,
    parts: dict[str, ImageSet],
    options: Collecting,
    net: Backbone | None,
    about: dict[str, Any],
    progress: Bars,
) -> HeadCollection:
    """Train a backbone on the rest where none was named; then features, anchor and folds."""
    o, recipe = options, options.recipe
    if net is None:
        net = train_backbone(
            parts["rest"],
            replace(o.training, seed=o.seed),
            transform=InputTransform(),
            progress=lambda i, n, loss: progress("backbone", i, n, f"loss {loss:.3f}"),
        )
        net.save(path / "backbone")
    bank = net.bank(parts["train"], progress=lambda i, n: progress("features", i, n, ""))
    if o.backbone is not None and net.config["kind"] not in ("conv", "mapped"):
        learned = FeatureMap(bank.width, o.mapping).fit(bank.features)
        net, bank = net.mapped(learned), learned.bank(bank)
    valid = net.bank(parts["val"])
    fitted = make_anchor(recipe, bank, valid)
    # Refuses other settings before anything of theirs is written.
    collection = begin_zoo(path, bank, fitted, recipe, net, about=about)
    save_shared(path, net, valid)
    return collection


def collect(
    out: str,
    options: Collecting = Collecting(),
    engine: str = "processes",
    workers: int = 0,
    resolved: str = "",
) -> None:
    """Solve many tasks and keep their optimisation trajectories in a zoo.

    Args:
        out: Directory of the zoo; collecting again goes on where it was stopped.
        options: What is collected, and how.
        engine: Who solves: "processes" of this machine, or "ray".
        workers: Number of workers, of one thread each; 0 solves in this process.
        resolved: The command's options, saved beside the run.

    Raises:
        InputError: If an option cannot be, or the data do not suffice.
        MismatchError: If the zoo there was made with other settings.
    """
    made_by = Engine(engine, workers)
    with run_in(out, "zoo", "collect.yaml", resolved) as (path, progress, log):
        collection = begin(path, options, progress)
        collection.fill(made_by, progress)
        zoo = collection.zoo
        for shard in zoo.shards:
            log({"event": "shard", **shard})
    zoo.groups()  # says so if there is no task
    entries = sorted(zoo.shards, key=_setting)
    means = [name for name in entries[0]["mean"] if name != "seconds"]
    kinds = {name: None for e in entries for name in e["setting"] if name != "frame"}
    table = Table(*kinds, "tasks", "dropped", *(f"final {name}" for name in means))
    for setting, shards in groupby(entries, key=_setting):
        some = list(shards)
        sums = (sum(e[name] for e in some) for name in ("tasks", "dropped"))
        table.add_row(*map(str, (*setting, *sums)), *(f"{_mean(some, n):.5g}" for n in means))
    OUT.print(table)
    OUT.print(f"zoo  {path}\nnext: ltdi train --zoo {path} --out DIR", soft_wrap=True)


def _setting(entry: dict[str, Any]) -> tuple[int, ...]:
    return tuple(value for name, value in entry["setting"].items() if name != "frame")


def _mean(entries: list[dict[str, Any]], column: str) -> float:
    """Over tasks, from the means of shards."""
    known = [e for e in entries if e["tasks"]]
    tasks = sum(e["tasks"] for e in known)
    return sum(e["mean"][column] * e["tasks"] for e in known) / tasks if tasks else math.nan


def _check_tasks(recipe: Recipe, offsets: torch.Tensor, classes: int) -> None:
    """Refuse tasks that the classes cannot give, before time is spent on a backbone."""
    t = recipe.tasks
    for name in ("ways", "shots"):
        if not getattr(t, name):
            raise InputError(
                f"no {name} were given", where=f"tasks.{name}", fix="name at least one"
            )
    check("tasks", t, ranges={"per_setting": (1, math.inf), "shard": (1, math.inf)})
    check_start(recipe)
    make_empty_anchor(recipe.anchor, 1)
    for way in t.ways:
        for shot in t.shots:
            try:
                sample_episodes(
                    offsets, way=way, shot=shot, query=t.query + t.probe, episodes=1, seed=0
                )
            except InputError as error:
                raise InputError(
                    error.what,
                    where="--tasks.ways, --tasks.shots and --tasks.query",
                    fix=f"choose smaller ones, or give more: of {classes} classes "
                    f"{len(offsets) - 1} are for tasks, the others are for validation and test, "
                    "and for the backbone where it is trained here",
                ) from None


def _given_backbone(name: str | None, side: int | None, zoo: Path) -> Backbone | None:
    """The named backbone, or the one that an interrupted collection trained."""
    if name is None:
        kept = zoo / "backbone"
        return Backbone.load(kept) if (kept / "backbone.json").is_file() else None
    return pretrained_backbone(name, size=side)
