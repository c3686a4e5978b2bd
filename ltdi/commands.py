"""What each command does; `cli` turns their signatures into options."""

from __future__ import annotations

import json as jsonlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ltdi import data as sources
from ltdi import demonstration
from ltdi.anchor import make_empty_anchor
from ltdi.backbone import Backbone, InputTransform, ProtoTraining, train_backbone
from ltdi.backbone import transformers_backbone as from_transformers
from ltdi.collect import Preparation
from ltdi.data import folder, omniglot
from ltdi.errors import InputError, LtdiError, MismatchError, unknown
from ltdi.evaluate import latency_ms, paired, score, summarise
from ltdi.files import (
    MARKER,
    claim_file,
    own_directory,
    read_metadata,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from ltdi.generator import Generator
from ltdi.memory import peak_mb
from ltdi.meta import MetaConfig
from ltdi.pipeline import (
    TrainingSet,
    check_start,
    load_shared,
    make_anchor,
    prepare_zoo,
    save_shared,
    start_zoo,
    train_generator,
)
from ltdi.progress import Bars, JsonLog, bars
from ltdi.recipe import Diffusion, Network, Recipe, Sampling, Tasks
from ltdi.report.table import Result, Row, show
from ltdi.tasks import Support, sample_episodes
from ltdi.tracks import TRACKS, fewshot
from ltdi.weights import prototype_head

# Paths may hold what rich takes for markup.
OUT = Console(highlight=False, markup=False, emoji=False)
ERR = Console(stderr=True, highlight=False, markup=False, emoji=False)


def version() -> str:
    """Version of the installed package."""
    try:
        return _version("ltdi")
    except PackageNotFoundError:
        return "0+unknown"


def demo(out: str = "runs/demo", seed: int = 0, resolved: str = "") -> None:
    """Train a generator on the embedded glyphs and use it on scripts it has never seen.

    Args:
        out: Directory for the generator, generated weights, table and figure.
        seed: Fixes data, training and episodes.
        resolved: The command's options, saved beside the run.
    """
    with _run(out, "demo", "demo.yaml", resolved) as (path, progress, log):
        result = demonstration.run(path, seed=seed, progress=progress, log=log)
    show(result, OUT)
    made = shlex.quote(str(path / "generator"))
    OUT.print(
        f"\ngenerator   {path / 'generator'}\nweights     {path / 'weights'}\n"
        f"table       {path / 'result.json'}\nfigure      {path / 'chains.png'}\n\n"
        f"next: ltdi evaluate --generator {made} --data-dir FOLDER_OR_ZIP --way 5 --shot 1",
        soft_wrap=True,
    )


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
    prepare: Preparation = Preparation(lr=0.01, steps=60, segments=4),
    training: ProtoTraining = ProtoTraining(),
    resolved: str = "",
) -> None:
    """Solve many tasks and keep their optimisation trajectories in a zoo.

    Args:
        out: Directory of the zoo; collecting again goes on where it was stopped.
        data: "glyphs", "omniglot", or a folder or zip of <class>/<image>.
        data_dir: Where a named data set lies.
        split: The data set's split, such as "official" for Omniglot.
        download: Whether to fetch what Omniglot's --data-dir lacks from its official place first.
        backbone: A directory of a saved backbone, or "transformers:NAME_OR_PATH"; a small conv net
            is trained on part of the classes when it is not given.
        held_out: Share of the training classes that a trained backbone does not see.
        anchor: "gaussian", "prototype" or "none".
        start: theta_0 of a task: "anchor" or "gaussian".
        seed: Fixes everything.
        tasks: Which tasks are solved.
        prepare: How they are solved.
        training: How a conv backbone is trained.
        resolved: The command's options, saved beside the run.
    """
    recipe = Recipe(
        tasks=tasks, prepare=prepare, anchor=anchor, start=start, meta=MetaConfig(seed=seed)
    )
    if download:
        _fetch(data, data_dir)
    named = data in sources.SOURCES
    with _run(out, "zoo", "collect.yaml", resolved) as (path, progress, log):
        net = _given_backbone(backbone, path)
        transform = net.transform if net else InputTransform()
        parts = sources.load(
            data,
            data_dir,
            size=transform.size,
            channels=transform.channels,
            split=split or (None if named else "random"),
            seed=0 if named else seed,
        )
        train = parts["train"]
        if backbone is None:
            rest, train = fewshot.hold_out(train, held_out, seed)
        _check_tasks(recipe, train.offsets)
        if net is None:
            net = train_backbone(
                rest,
                replace(training, seed=seed),
                transform=transform,
                progress=lambda i, n, loss: progress("backbone", i, n, f"loss {loss:.3f}"),
            )
            net.save(path / "backbone")
        bank = net.bank(train, progress=lambda i, n: progress("features", i, n, ""))
        valid = net.bank(parts["val"])
        fitted = make_anchor(recipe, bank, valid)
        about = {"data": data, "split": split, "held_out": held_out}
        # Refuses other settings before anything of theirs is written.
        start_zoo(path, bank, recipe, net, about=about)
        save_shared(path, fitted, net, valid)
        zoo = prepare_zoo(path, bank, fitted, recipe, net, about=about, progress=progress)
        for shard in zoo.shards:
            log({"event": "shard", **shard})
    table = Table("way", "shot", "tasks", "dropped", "final loss", "final accuracy")
    for group in zoo.load():
        dropped = sum(
            s["dropped"] for s in zoo.shards if (s["way"], s["shot"]) == (group.way, group.shot)
        )
        table.add_row(
            *map(str, (group.way, group.shot, len(group), dropped)),
            f"{float(group.loss.mean()):.5f}",
            f"{float(group.accuracy.mean()):.4f}",
        )
    OUT.print(table)
    OUT.print(f"zoo  {path}\nnext: ltdi train --zoo {path} --out DIR", soft_wrap=True)


def train(
    zoo: str,
    out: str,
    diffusion: Diffusion = Diffusion(),
    network: Network = Network(),
    meta: MetaConfig = MetaConfig(),
    sampling: Sampling = Sampling(),
    backbone: str | None = None,
    resolved: str = "",
) -> None:
    """Meta-train a generator on a zoo; an interrupted run goes on from its checkpoint.

    Args:
        zoo: Directory that `ltdi collect` made.
        out: Directory of the generator.
        diffusion: Chain, objective and loss.
        network: Denoiser.
        meta: REPTILE or single-level training.
        sampling: Defaults of generation; the number of steps is chosen on validation classes when
            the temperature is 0.
        backbone: A saved backbone that must be the zoo's own; a check for scripts.
        resolved: The command's options, saved beside the run.
    """
    from ltdi.zoo import Zoo

    store = Zoo.open(zoo)
    shared = load_shared(store)
    if backbone is not None:
        other = Backbone.load(Path(backbone))
        if other.fingerprint != store.about["backbone"]:
            raise MismatchError(
                f"the zoo was collected on backbone {store.about['backbone'][:12]}, "
                f"{backbone} is {other.fingerprint[:12]}",
                where="--backbone",
                fix="leave --backbone out, or collect a zoo on this backbone",
            )
    about = store.about
    recipe = Recipe(
        tasks=Tasks(**_tuples(about["tasks"])),
        prepare=Preparation(**about["prepare"]),
        diffusion=diffusion,
        network=network,
        meta=meta,
        sampling=sampling,
        anchor=about["anchor"],
        start=about["start"],
    )
    solved = TrainingSet.of(store)
    with _run(out, "generator", "train.yaml", resolved) as (path, progress, log):
        generator = train_generator(
            solved,
            shared.anchor,
            shared.backbone,
            recipe,
            out=path,
            valid=shared.valid,
            about={"data": about["data"], "zoo": about},
            progress=progress,
            log=log,
        )
        generator.save(path)
    OUT.print(f"generator  {path}  revision {generator.revision}", soft_wrap=True)


def generate(
    generator: str,
    support: str,
    out: str,
    steps: int | None = None,
    temperature: float | None = None,
    samples: int | None = None,
    sampler: str | None = None,
    strength: float | None = None,
    seed: int = 0,
    resolved: str = "",
) -> None:
    """Generate the classifier head of one task from a folder of labelled images.

    Args:
        generator: Directory of a generator, or a name on the hub.
        support: Folder or zip of <class>/<image>; each class folder is one label, in the order of
            their names.
        out: The safetensors file to write.
        steps: Denoising steps; the generator's own number by default.
        temperature: Scale of the noise; 0 is the most accurate.
        samples: Weights drawn and averaged.
        sampler: "ddim" or "ddpm".
        strength: Factor of what is generated beyond the anchor; 0 returns the anchor.
        seed: Of the noise.
        resolved: The command's options.
    """
    target = claim_file(out, "weights")
    gen = Generator.from_pretrained(generator)
    t = gen.backbone.transform
    images = folder.load(support, size=t.size, channels=t.channels)
    labels = torch.arange(len(images.classes)).repeat_interleave(images.counts)
    given = {
        "steps": steps,
        "temperature": temperature,
        "samples": samples,
        "sampler": sampler,
        "strength": strength,
    }
    options = {k: v for k, v in given.items() if v is not None}
    head = gen.generate(Support(images.images, labels), seed=seed, **options)
    gen.save_weights(target, head, classes=images.classes, seed=seed)
    OUT.print(
        f"{len(images.classes)}-way head from {len(labels)} images  ->  {target}", soft_wrap=True
    )


def evaluate(
    generator: str,
    data_dir: str,
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int = 1000,
    steps: int | None = None,
    temperature: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    json: str | None = None,
    backbone: str | None = None,
    resolved: str = "",
) -> None:
    """Measure a generator on few-shot episodes from any folder or zip of images.

    Args:
        generator: Directory of a generator, or a name on the hub.
        data_dir: Folder or zip of <class>/<image>; the classes need not be known to anyone.
        way: Classes per episode.
        shot: Support images per class.
        query: Query images per class; lowered, with a note, where a class has too few images.
        episodes: Number of episodes.
        steps: Denoising steps; the generator's own number by default.
        temperature: Scale of the noise.
        samples: Weights drawn and averaged.
        seed: Of the episodes and the noise.
        json: File for the result.
        backbone: A saved backbone that must be the generator's own; a check for scripts.
        resolved: The command's options.
    """
    fewshot.check_counts(shot=shot, query=query, episodes=episodes)
    target = claim_file(json, "result") if json else None
    gen = Generator.from_pretrained(generator)
    if backbone is not None:
        gen.check_backbone(Backbone.load(Path(backbone)))
    t = gen.backbone.transform
    images = folder.load(data_dir, size=t.size, channels=t.channels, min_per_class=shot + 1)
    room = int(images.counts.min()) - shot
    if room < query:
        ERR.print(f"note: the smallest class leaves {room} query images, not {query}")
        query = room
    with bars(ERR) as progress:
        bank = gen.backbone.bank(images, progress=lambda i, n: progress("features", i, n, ""))
    tasks = bank.episodes(way=way, shot=shot, query=query, episodes=episodes, seed=seed)
    given = {"steps": steps, "temperature": temperature, "samples": samples}
    options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}

    def ours(s: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return fewshot.head_logits(gen.weights(s, seed=seed, **options), q)

    def prototypes(s: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        head = prototype_head(s.mean(2), 1.0)
        return fewshot.head_logits(gen.space(s.shape[1]).flatten(head), q)

    rows, scores = [], {}
    for name, kind, predict in (("lt-di", "ours", ours), ("protonet", "peer", prototypes)):
        scores[name] = score(predict, bank, tasks)
        summary = summarise(scores[name].accuracy)
        rows.append(
            Row(
                name,
                kind,
                "accuracy",
                summary.mean,
                summary.ci95,
                episodes,
                latency_ms(predict, bank, tasks),
                0.0,
                0.0,
                peak_mb(),
            )
        )
    difference = asdict(paired(scores["lt-di"].accuracy, scores["protonet"].accuracy))
    settings = {
        "way": way,
        "shot": shot,
        "query": query,
        "classes": len(images.classes),
        "generator": gen.revision,
        "sampling": asdict(gen.sampling(**options)),
        "paired": {"protonet": difference},
        "nll": float(scores["lt-di"].nll.mean()),
        "ece": scores["lt-di"].ece,
    }
    result = Result("evaluate", images.name, "none", seed, settings, rows)
    show(result, OUT)
    if target:
        result.write_json(target)


def export(
    generator: str,
    weights: str,
    out: str,
    format: str = "safetensors",
    resolved: str = "",
) -> None:
    """Join a generated head with its backbone into one classifier on disk.

    Args:
        generator: Directory of the generator that made the head, or a name on the hub.
        weights: File written by `ltdi generate`.
        out: Directory of the classifier.
        format: "safetensors", or "npz" for numpy.
        resolved: The command's options.
    """
    if format not in ("safetensors", "npz"):
        raise unknown("format", format, ("safetensors", "npz"), where="--format")
    gen = Generator.from_pretrained(generator)
    path = Path(weights)
    head, metadata = read_tensors(path), read_metadata(path)
    if metadata.get("backbone") != gen.backbone.fingerprint:
        raise MismatchError(
            f"these weights belong to backbone {metadata.get('backbone', 'unknown')[:12]}, the "
            f"generator has {gen.backbone.fingerprint[:12]}",
            where=str(path),
            fix=f"use the generator with revision {metadata.get('generator', 'unknown')}",
        )
    gen.check_head(head)
    folder_out = own_directory(out, "classifier")
    tensors = {f"backbone.{k}": v for k, v in gen.backbone.net.state_dict().items()}
    tensors |= {f"head.{k}": v for k, v in head.items()}
    if format == "safetensors":
        write_tensors(folder_out / "model.safetensors", tensors, {"format": "pt"})
    else:
        import numpy as np

        np.savez(folder_out / "model.npz", **{k: v.numpy() for k, v in tensors.items()})
    write_json(
        folder_out / "config.json",
        {
            "classes": jsonlib.loads(metadata.get("task", "[]")),
            "backbone": gen.backbone.config,
            "transform": asdict(gen.backbone.transform),
            "generator": metadata.get("generator"),
            "logits": "backbone(transform(images)) @ head.weight.T + head.bias",
        },
    )
    numbers = sum(t.numel() for t in tensors.values())
    OUT.print(f"classifier  {folder_out}  ({numbers} numbers)", soft_wrap=True)


def bench(
    dataset: str,
    track: str = "fewshot",
    data_dir: str | None = None,
    methods: str = "all",
    preset: str = "standard",
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int | None = None,
    split: str | None = None,
    download: bool = False,
    seed: int = 0,
    json: str | None = None,
    out: str | None = None,
    resolved: str = "",
) -> None:
    """Compare methods on the same test episodes, and write table, JSON and our generator.

    Args:
        dataset: "glyphs", "omniglot", or a folder or zip of <class>/<image>.
        track: "fewshot".
        data_dir: Where a named data set lies.
        methods: Comma-separated names, or "all".
        preset: "smoke" (60 s), "standard" (30 minutes) or "paper", on two cores.
        way: Classes per test episode.
        shot: Support images per class.
        query: Query images per class.
        episodes: Test episodes; the preset's number by default.
        split: The data set's split, such as "official" for Omniglot.
        download: Whether to fetch what Omniglot's --data-dir lacks from its official place first.
        seed: Fixes everything.
        json: File for the result.
        out: Directory for the generator, log and resolved options; by default
            runs/bench/TRACK-DATASET-WAYwSHOTs-PRESET-SEED.
        resolved: The command's options, saved beside the run.
    """
    if track not in TRACKS:
        raise unknown("track", track, TRACKS, where="bench")
    if download:
        _fetch(dataset, data_dir)
    target = claim_file(json, "result") if json else None
    label = Path(dataset).name.removesuffix(".zip")
    default = f"runs/bench/{track}-{label}-{way}w{shot}s-{preset}-{seed}"
    names = tuple(fewshot.ALL_METHODS) if methods == "all" else tuple(methods.split(","))
    with _run(out or default, "bench", "bench.yaml", resolved) as (path, progress, log):
        outcome = TRACKS[track](
            dataset,
            data_dir,
            methods=[n.strip() for n in names],
            preset=preset,
            way=way,
            shot=shot,
            query=query,
            episodes=episodes,
            split=split,
            seed=seed,
            progress=progress,
            log=log,
        )
        ours = outcome.methods.get("lt-di")
        if isinstance(ours, fewshot.Generated):
            ours.publish(outcome.result, path / "generator")
        outcome.result.write_json(path / "result.json")
    show(outcome.result, OUT)
    if target:
        outcome.result.write_json(target)
    OUT.print(f"run  {path}", soft_wrap=True)


@contextmanager
def _run(out: str, kind: str, name: str, resolved: str) -> Iterator[tuple[Path, Bars, JsonLog]]:
    """A directory of ours with the resolved options, bars, and a log.

    A command that is refused leaves the directory as it was: options that an earlier run saved are
    replaced only by a run that ends, and a directory that holds nothing but options and log goes.

    Args:
        out: The directory.
        kind: See `own_directory`.
        name: File for the options.
        resolved: The options.
    """
    kept = {p for p in (Path(out), *Path(out).parents) if p.exists()}
    path = own_directory(out, kind)
    options = path / name
    fresh = not options.exists()
    if fresh:
        write_text(options, resolved)
    try:
        with JsonLog(path / "log.jsonl") as log, bars(ERR) as progress:
            yield path, progress, log
    except LtdiError:
        ours = {options, path / MARKER, path / "log.jsonl"}
        if fresh and set(path.iterdir()) <= ours:
            for file in path.iterdir():
                file.unlink()
            for folder_made in (path, *path.parents):
                if folder_made in kept or any(folder_made.iterdir()):
                    break
                folder_made.rmdir()
        raise
    write_text(options, resolved)


def _fetch(dataset: str, data_dir: str | None) -> None:
    """Download what a data set's directory lacks; only ever done when asked for."""
    if dataset != "omniglot" or data_dir is None:
        raise InputError(
            "only Omniglot can be downloaded, into a directory of your choice",
            where="--download",
            fix="give --data-dir DIR with omniglot, or leave --download out",
        )
    omniglot.download(data_dir)


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
            sample_episodes(offsets, way=way, shot=shot, query=t.query, episodes=1, seed=0)


def _given_backbone(name: str | None, zoo: Path) -> Backbone | None:
    """The named backbone, or the one that an interrupted collection trained."""
    if name is None:
        kept = zoo / "backbone"
        return Backbone.load(kept) if (kept / "backbone.json").is_file() else None
    if name.startswith("transformers:"):
        return from_transformers(name.partition(":")[2])
    if not Path(name).is_dir():
        raise InputError(
            f"there is no backbone at {name!r}",
            where="--backbone",
            fix="give a directory with backbone.json, or transformers:NAME",
        )
    return Backbone.load(Path(name))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
