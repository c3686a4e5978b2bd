"""The llm track: LoRA adapters of a language model, generated and fitted, on text tasks.

Three settings. *Known tasks*: the zoo has runs of the task, and the generator is to give its
adapter at once. *Unseen tasks*: a generator that has learnt from all other tasks. *Unseen slices*:
a topic of a known task that no run has seen a row of. Metrics are on dev rows, of unseen tasks also
on training rows that nothing else uses, of slices on half of their rows. Choices are made on
validation rows of the training part. `ltdi.tracks.llm_presets` has budgets and settings,
`ltdi.tracks.llm_methods` the methods, `llm_choice` their choices, `llm_scores` the measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ltdi.adapters.collect import begin_runs, reader
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.kept import Kept
from ltdi.adapters.source import Source, prepare_source
from ltdi.data import text
from ltdi.errors import InputError, unknown
from ltdi.generator import Generator
from ltdi.lora import LoraSpec, load_base
from ltdi.memory import peak_mb
from ltdi.progress import Log, Progress
from ltdi.report.table import Result
from ltdi.tracks.llm_choice import choose_head, choose_sampling
from ltdi.tracks.llm_methods import FITTED, GENERATED, MADE, METHODS, NOTES, Bench
from ltdi.tracks.llm_presets import (
    PRESETS,
    SETTINGS,
    SLICE,
    UNSEEN,
    Preset,
    Setting,
    settings_of,
)
from ltdi.tracks.llm_scores import Trial, rounded
from ltdi.tracks.measured import with_card
from ltdi.tracks.track import Outcome, check_methods, chosen_preset

DEFAULT = ("lt-di", "mv-di", "anchored-regression", "hypernetwork", *MADE)
ALL_METHODS = (*DEFAULT, *FITTED)


def label(options: Mapping[str, Any]) -> str:
    """Names a run from its options."""
    return Path(str(options["base"] or "default")).name


def bench(
    data_dir: str | None = None,
    tasks: str | None = None,
    unlabelled: str | None = None,
    base: str | None = None,
    work: str | None = None,
    settings: str = "known,unseen,slices",
    seeds: int = 3,
    rank: int = 4,
    alpha: float = 8.0,
    target_modules: str = "query,value",
    trunks: int | None = None,
    branches: int | None = None,
    warm: bool = True,
    seed: int = 0,
    *,
    methods: Sequence[str],
    preset: str,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome[Bench]:
    """Compare generated and fitted LoRA adapters on text tasks.

    Args:
        data_dir: Where GLUE lies, in its official layout.
        tasks: Comma-separated GLUE tasks, tasks by rule such as rule:tone, or JSONL, CSV or TSV
            files with columns text and label; the preset's by default (smoke: by rule; standard
            and paper: six of GLUE).
        unlabelled: Comma-separated names of tasks that are made of texts without their labels,
            such as intact:texts.csv; they help unseen tasks. The preset's by default with its own
            tasks (standard and paper: intact:qnli), none with others.
        base: Base model, a name or a path; the preset's by default (smoke: tiny and random;
            standard: minilm; paper: roberta-base).
        work: Directory where finished pieces are kept: an interrupted run goes on from them.
        settings: Comma-separated, of known, unseen and slices.
        seeds: Seeds of every method. One varies what the method draws: the batches of a fit;
            support rows, network and noise of what is generated.
        rank: r of the adapters.
        alpha: Their scale.
        target_modules: Comma-separated linear layers with factors, by the ends of their names.
        trunks: Long runs of each task; the preset's number by default.
        branches: Runs of each task that branch from them; the preset's number by default.
        warm: Whether LoRA is also started from generated adapters of unseen tasks and slices.
        seed: Fixes everything.
        methods: Names of methods.
        preset: How much is spent.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: For an unknown name, or data that cannot be used.
    """
    check_methods(methods, METHODS)
    _, p = chosen_preset(preset, PRESETS)
    p = _with(p, trunks, branches, warm)
    names = p.tasks if tasks is None else _listed(tasks)
    wanted = _checked(_listed(settings), names, seeds)
    if unlabelled is not None:
        names = (*names, *_unlabelled(_listed(unlabelled)))
    elif tasks is None:
        names = (*names, *p.unlabelled)
    if data_dir is not None and not any(text.glue.is_task(n.rpartition(":")[2]) for n in names):
        raise InputError(
            f"none of the tasks is one of GLUE: {', '.join(names)}",
            where="--data-dir",
            fix="leave it out, or name GLUE tasks by --tasks or another --preset",
        )
    spec = LoraSpec(rank, alpha, _listed(target_modules))
    with TemporaryDirectory() if work is None else nullcontext(work) as place:
        sources, host = prepare(p, names, data_dir, base or p.base, spec, seed)
        described = [text.description(name) for name in names]
        shared, zoo = _shared(p, Path(place), preset, sources, host, described, seed, progress)
        # In every run, so that a piece means the same whatever is measured.
        valid = _choose(shared, methods, settings_of(sources, ("known",), p))
        trial = Trial(shared, methods, seeds, sum(zoo["seconds"]), progress, log)
        for setting in settings_of(sources, wanted, p):
            trial.measure(setting)
        facts = {**_compared(shared, methods, seeds), "zoo": zoo, "chosen": valid, **_found(trial)}
        here = peak_mb()
        # Kept pieces tell of the processes that made them, and these of the code of their day.
        facts |= {"peak MB": round(max(here, shared.kept.peak_mb)), "peak MB here": round(here)}
        rows = [*trial.rows, *trial.means()]
        result = Result("llm", host.known["name"], preset, seed, facts, rows)
        return Outcome(result, shared, {}, _kept(result, shared))


def _kept(result: Result, shared: Bench) -> dict[str, Generator]:
    """Our generator, of the first seed and all tasks."""
    metrics = {
        f"{row.dataset}, {row.metric}": {"mean": row.mean, "ci95": row.ci95}
        for row in result.rows
        if row.method == "lt-di"
    }
    if not metrics:
        return {}
    return {"generator": with_card(shared.generator("lt-di", shared.labelled, 0), metrics=metrics)}


def _with(p: Preset, trunks: int | None, branches: int | None, warm: bool) -> Preset:
    """A preset with what was given in place of its own."""
    given = {"trunks": trunks, "branches": branches}
    runs = replace(p.recipe.runs, **{n: v for n, v in given.items() if v is not None})
    steps = p.warm_steps if warm else 0
    return replace(p, recipe=replace(p.recipe, runs=runs), warm_steps=steps)


def _checked(settings: Sequence[str], tasks: Sequence[str], seeds: int) -> Sequence[str]:
    """The settings, if they can be measured."""
    for name in settings:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS, where="--settings")
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}", where="--seeds")
    if len(tasks) < 2 and "unseen" in settings:
        raise InputError(
            f"an unseen task needs others to learn from, got {len(tasks)} task",
            where="--tasks",
            fix="name two tasks or more, or leave unseen out of --settings",
        )
    return settings


def _unlabelled(names: Sequence[str]) -> Sequence[str]:
    """The names, if they are of tasks without labels."""
    for name in names:
        if not text.origin(name):
            raise InputError(
                f"{name!r} is a task with labels",
                where="--unlabelled",
                fix=f"write {text.INTACT}{name} for its texts alone, or name it in --tasks",
            )
    return names


def _compared(shared: Bench, methods: Sequence[str], seeds: int) -> dict[str, Any]:
    """What was compared, and on what."""
    sources = shared.sources
    return {
        "seeds": seeds,
        "a seed varies": "batches of a fit; support rows, network and noise of what is "
        "generated (of unseen tasks: support rows and noise)",
        "base": shared.host.describe(),
        "tasks": [s.name for s in sources],
        "rows": {s.name: [len(s.fit), len(s.valid), len(s.unseen), len(s.dev)] for s in sources},
        "recipe": asdict(shared.p.recipe),
        "threads": torch.get_num_threads(),
        "notes": {n: NOTES[n] for n in methods if n in NOTES},
    }


def _found(trial: Trial) -> dict[str, Any]:
    """What was found besides the rows of the table."""
    out: dict[str, Any] = {"paired": trial.paired, "scores": trial.each()}
    known = [place for place in trial.places if not place.kind]
    again = [place for place in trial.places if place.kind in (UNSEEN, SLICE)]
    if "lt-di" in trial.methods and known:
        out["speed"] = trial.speed(known)
    if "lt-di" in trial.methods and again and trial.bench.p.warm_steps:
        out["warm start"] = trial.warm(again)
    if "full-finetune" in trial.methods and known:
        out["full fine-tuning"] = {
            place.name: {
                f"{rate:g}": rounded(run["valid"].tolist(), 4)
                for rate, run in trial.bench.full_runs(place, 0).items()
            }
            for place in known
        }
    return out


def _shared(
    p: Preset,
    work: Path,
    preset: str,
    sources: list[Source],
    host: LanguageHost,
    described: Sequence[str],
    seed: int,
    progress: Progress,
) -> tuple[Bench, dict[str, Any]]:
    """What methods share, once all runs of the zoo are made; and what the zoo cost."""
    said = dict(zip([s.name for s in sources], described, strict=True))
    collection = begin_runs(work / "zoo", host, sources, said, p.recipe, seed=seed)
    collection.fill(progress=progress)
    zoo = collection.zoo
    seconds = [
        sum(float(e["mean"]["seconds"]) for e in zoo.shards if e["setting"]["task"] == t)
        for t in range(len(sources))
    ]
    about = {"support": p.support, "held": p.held, "spent": p.spent}
    kept = Kept(work / "pieces", {"zoo": zoo.about, "preset": preset, **about})
    runs = reader(zoo, host)(zoo.groups())
    shared = Bench(host, sources, described, runs, zoo, p, kept, seed, progress)
    return shared, {"runs": sum(e["tasks"] for e in zoo.shards), "seconds": rounded(seconds)}


def _choose(shared: Bench, methods: Sequence[str], known: Sequence[Setting]) -> dict[str, Any]:
    """Sampling and head of known tasks, by validation rows; what these said."""
    out: dict[str, Any] = {}
    for name in methods:
        if name in GENERATED:
            steps = choose_sampling(shared, name, known)
            out[name] = {"steps": steps, "sampling": asdict(shared.sampling[name])}
        if name in (*GENERATED, "nearest"):
            scores = choose_head(shared, name, known)
            chosen = {s.name: shared.heads[name][s.task] for s in known}
            out.setdefault(name, {}).update({"head": chosen, "heads": scores})
    return out


def prepare(
    p: Preset, names: Sequence[str], data_dir: str | None, base: str, spec: LoraSpec, seed: int
) -> tuple[list[Source], LanguageHost]:
    """Tasks and host of a run."""
    loaded = {name: text.find(name, data_dir) for name in names}
    model = load_base(base)
    host = LanguageHost.of(model, spec, base)
    sources = [
        prepare_source(
            model,
            text.short_name(name),
            parts,
            rows=p.rows,
            dev=p.dev,
            valid=p.valid,
            max_length=host.max_length,
            # Nothing is measured on a slice of such a task.
            **({"topics": 0} if text.origin(name) else {}),
            seed=seed,
            origin=text.origin(name),
        )
        for name, parts in loaded.items()
    ]
    return sources, host


def _listed(names: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in names.split(",") if n.strip())
