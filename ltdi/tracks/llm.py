"""The llm track: LoRA adapters of a language model, generated and fitted, on text tasks.

Three settings. *Known tasks*: the zoo has runs of the task, and the generator is to give its
adapter at once. *Unseen tasks*: a generator that has learnt from all other tasks. *Unseen slices*:
a topic of a known task that no run has seen a row of. Metrics are on dev rows (of slices: on half
of their rows), choices on validation rows of the training part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.collect import collect_runs, open_zoo, read_runs
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.kept import Kept
from ltdi.adapters.peers import full_model
from ltdi.adapters.runs import Runs
from ltdi.adapters.source import Source, prepare_source
from ltdi.adapters.training import AdapterRecipe
from ltdi.collect import Preparation
from ltdi.data import text
from ltdi.data.text import TextSet, rules
from ltdi.errors import InputError, unknown
from ltdi.lora import LoraSpec, adapter_logits, load_base
from ltdi.memory import peak_mb
from ltdi.meta import MetaConfig
from ltdi.metrics import measure
from ltdi.recipe import Diffusion, Network
from ltdi.report.table import Result, Row
from ltdi.tracks.adapted import (
    FITTED,
    GENERATED,
    KINDS,
    METHODS,
    NOTES,
    Bench,
    Made,
    Setting,
    choose_sampling,
)

GLUE = ("sst-2", "cola", "mrpc", "sts-b", "rte", "qnli")
RULES = tuple(f"rule:{name}" for name in rules.TASKS)
SETTINGS = ("known", "unseen", "slices")
DEFAULT = ("lt-di", "mv-di", "anchored-regression", "hypernetwork", "base", "soup", "nearest")
ALL_METHODS = (*DEFAULT, *FITTED)
RESAMPLES = 200
Progress = Callable[[str, int, int, str], None]
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Preset:
    """What is spent.

    Attributes:
        base: Base model.
        tasks: Text tasks.
        recipe: Of `lt-di`; controls change one idea of it.
        rows: Most training rows of a task.
        dev: Most rows that are measured on; half of them for unseen tasks.
        valid: Validation rows.
        support: Support rows.
        full: Full fine-tuning.
        full_seeds: Seeds of full fine-tuning.
        control_seeds: Seeds of generated controls and peers on what is unseen.
        warm_steps: Steps of LoRA that starts at a generated adapter; 0 leaves that out.
        warm_seeds: Seeds of that.
        few_steps: Steps of LoRA on the support rows.
    """

    base: str
    tasks: tuple[str, ...]
    recipe: AdapterRecipe
    rows: int = 8000
    dev: int = 1050
    valid: int = 400
    support: int = 128
    full: Preparation = field(
        default_factory=lambda: Preparation(
            "adamw", lr=1e-4, steps=200, segments=1, weight_decay=0.01, batch=16
        )
    )
    full_seeds: int = 1
    control_seeds: int = 1
    warm_steps: int = 300
    warm_seeds: int = 1
    few_steps: int = 30


_STANDARD = AdapterRecipe(runs=Runs(trunks=3, branches=6))
_TINY = Preparation("adamw", lr=2e-2, steps=30, segments=5, weight_decay=0.01, batch=16)
PRESETS = {
    "smoke": Preset(
        "tiny",
        RULES,
        replace(
            _STANDARD,
            runs=Runs(trunks=1, branches=3, shared=0.6),
            prepare=_TINY,
            diffusion=Diffusion(steps=5, loss="weight"),
            network=Network("transformer", 32, 1, 2),
            meta=MetaConfig(iterations=20, meta_batch=2, tasks=4, warmup=2, ema=0.8),
            rank=8,
        ),
        dev=100,
        valid=50,
        support=32,
        full=replace(_TINY, lr=2e-3, segments=1),
        warm_steps=15,
        few_steps=10,
    ),
    "short": Preset(
        "minilm",
        ("sst-2", "cola", "mrpc"),
        replace(
            _STANDARD,
            runs=Runs(trunks=1, branches=2),
            prepare=replace(_STANDARD.prepare, steps=200),
        ),
        rows=4000,
        dev=500,
        valid=200,
        warm_steps=100,
    ),
    "standard": Preset("minilm", GLUE, _STANDARD),
    "paper": Preset(
        "roberta-base",
        GLUE,
        replace(
            _STANDARD,
            runs=Runs(trunks=8, branches=64),
            prepare=replace(_STANDARD.prepare, steps=5000, lr=5e-4, batch=32),
            meta=replace(_STANDARD.meta, iterations=6000),
        ),
        rows=100_000,
        dev=10_000,
        full=Preparation("adamw", lr=2e-5, steps=5000, weight_decay=0.01, batch=32, segments=1),
        full_seeds=3,
        control_seeds=3,
        warm_steps=2500,
    ),
}


@dataclass
class LlmOutcome:
    """A finished run; see `ltdi.tracks.Outcome`.

    Attributes:
        result: Rows and settings.
        bench: What was trained.
    """

    result: Result
    bench: Bench
    settings: list[Setting]

    def publish(self, path: Path) -> None:
        """Write our generator, of the first seed and all tasks."""
        if not any(row.method == "lt-di" for row in self.result.rows):
            return
        gen = self.bench.generator("lt-di", tuple(range(len(self.bench.sources))), 0)
        metrics = {
            f"{row.dataset}, {row.metric}": {"mean": row.mean, "ci95": row.ci95}
            for row in self.result.rows
            if row.method == "lt-di"
        }
        about = {**gen.parts.about, "metrics": metrics}
        type(gen)(replace(gen.parts, about=about)).save(path / "generator")


def label(options: Mapping[str, Any]) -> str:
    """Names a run from its options."""
    return Path(str(options["base"] or "default")).name


def bench(
    data_dir: str | None = None,
    tasks: str | None = None,
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
    progress: Progress | None = None,
    log: Log | None = None,
) -> LlmOutcome:
    """Compare generated and fitted LoRA adapters on text tasks.

    Args:
        data_dir: Where GLUE lies, in its official layout.
        tasks: Comma-separated GLUE tasks, tasks by rule such as rule:tone, or JSONL, CSV or TSV
            files with columns text and label; the preset's by default (smoke: by rule; standard
            and paper: six of GLUE).
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
        warm: Whether LoRA is also started from generated adapters of unseen tasks.
        seed: Fixes everything.
        methods: Names of methods.
        preset: How much is spent.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: For an unknown name, or data that cannot be used.
    """
    for name in methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS, where="--methods")
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, where="--preset")
    wanted = _listed(settings)
    for name in wanted:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS, where="--settings")
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}", where="--seeds")
    p = PRESETS[preset]
    runs = replace(
        p.recipe.runs,
        trunks=p.recipe.runs.trunks if trunks is None else trunks,
        branches=p.recipe.runs.branches if branches is None else branches,
    )
    p = replace(p, recipe=replace(p.recipe, runs=runs), warm_steps=p.warm_steps if warm else 0)
    names = p.tasks if tasks is None else _listed(tasks)
    if len(names) < 2 and "unseen" in wanted:
        raise InputError(
            f"an unseen task needs others to learn from, got {len(names)} task",
            where="--tasks",
            fix="name two tasks or more, or leave unseen out of --settings",
        )
    if work is None:
        with TemporaryDirectory() as place:
            return _run(
                p, Path(place), names, data_dir, base, wanted, seeds, seed,
                LoraSpec(rank, alpha, _listed(target_modules)), methods, preset, progress, log,
            )  # fmt: skip
    return _run(
        p, Path(work), names, data_dir, base, wanted, seeds, seed,
        LoraSpec(rank, alpha, _listed(target_modules)), methods, preset, progress, log,
    )  # fmt: skip


def _run(
    p: Preset,
    work: Path,
    names: Sequence[str],
    data_dir: str | None,
    base: str | None,
    wanted: Sequence[str],
    seeds: int,
    seed: int,
    spec: LoraSpec,
    methods: Sequence[str],
    preset: str,
    progress: Progress | None,
    log: Log | None,
) -> LlmOutcome:
    sources, host = prepare(p, names, data_dir, base or p.base, spec, seed)
    described = {s.name: text.description(n) for s, n in zip(sources, names, strict=True)}
    zoo = open_zoo(work / "zoo", host, sources, described, p.recipe, seed=seed)
    collect_runs(zoo, host, sources, p.recipe, seed=seed, progress=progress)
    prepare_s = [
        sum(float(zoo.columns(e)["seconds"].sum()) for e in zoo.shards if e["setting"]["task"] == t)
        for t in range(len(sources))
    ]
    kept = Kept(work / "pieces", {"zoo": zoo.about, "preset": preset, "support": p.support})

    def snapshots(task: int, number: int) -> Tensor:
        """[k, n] local targets of a trunk."""
        held = zoo.columns(zoo.entry(f"{sources[task].name}-trunk-{number}"))
        return held["theta"][0].clone()

    def trunks(task: int, number: int) -> tuple[Tensor, float]:
        """What a trunk ends at, and its seconds."""
        held = zoo.columns(zoo.entry(f"{sources[task].name}-trunk-{number}"))
        return held["theta"][0, -1].clone(), float(held["seconds"][0])

    shared = Bench(
        host,
        sources,
        [described[s.name] for s in sources],
        read_runs(zoo, host),
        p.recipe,
        kept,
        seed,
        p.support,
        p.full,
        p.few_steps,
        trunks,
        snapshots,
        progress=progress,
    )
    places = _settings(sources, wanted, p)
    chosen = {
        name: choose_sampling(shared, name, [s for s in places if "," not in s.name])
        for name in methods
        if name in GENERATED and "known" in wanted
    }
    trial = _Trial(shared, p, methods, seeds, sum(prepare_s), progress, log)
    for place in places:
        trial.measure(place)
    facts: dict[str, Any] = {
        "seeds": seeds,
        "a seed varies": "batches of a fit; support rows, network and noise of what is generated",
        "base": host.describe(),
        "tasks": [s.name for s in sources],
        "rows": {s.name: [len(s.fit), len(s.valid), len(s.unseen), len(s.dev)] for s in sources},
        "zoo": {"runs": sum(e["tasks"] for e in zoo.shards), "seconds": _round(prepare_s)},
        "recipe": asdict(p.recipe),
        "threads": torch.get_num_threads(),
        "sampling": {n: {"valid": chosen[n], **asdict(shared.sampling[n])} for n in chosen},
        "notes": {n: NOTES[n] for n in methods if n in NOTES},
        "paired": trial.paired,
        "scores": trial.each(),
    }
    if "lt-di" in methods and "known" in wanted:
        facts["speed"] = trial.speed([s for s in places if "," not in s.name], zoo)
    if "lt-di" in methods and "unseen" in wanted and p.warm_steps:
        facts["warm start"] = trial.warm([s for s in places if s.name.endswith(", unseen")])
    result = Result("llm", host.known["name"], preset, seed, facts, [*trial.rows, *trial.means()])
    return LlmOutcome(result, shared, places)


def prepare(
    p: Preset, names: Sequence[str], data_dir: str | None, base: str, spec: LoraSpec, seed: int
) -> tuple[list[Source], LanguageHost]:
    """Tasks and host of a run."""
    loaded = {name: _load(name, data_dir) for name in names}
    model = load_base(base)
    host = LanguageHost.of(model, spec, base)
    sources = [
        prepare_source(
            model,
            Path(name).name.removeprefix(text.RULE),
            parts,
            rows=p.rows,
            dev=p.dev,
            valid=p.valid,
            max_length=host.max_length,
            seed=seed,
        )
        for name, parts in loaded.items()
    ]
    return sources, host


def _load(name: str, data_dir: str | None) -> dict[str, TextSet]:
    known = text.glue.is_task(name)
    return text.load(name, data_dir if known else None)


def _settings(sources: Sequence[Source], wanted: Sequence[str], p: Preset) -> list[Setting]:
    out, everything = [], tuple(range(len(sources)))
    for task, s in enumerate(sources):
        labels = s.dev.labels
        if labels is None:
            raise InputError(f"the dev part of {s.name} has no labels", where="--tasks")
        if "known" in wanted:
            out.append(Setting(s.name, task, s, everything, s.fit, s.dev_inputs, labels))
        if "unseen" in wanted:
            others = tuple(t for t in everything if t != task)
            half = slice(None, max(100, p.dev // 5 * 2))
            out.append(
                Setting(
                    f"{s.name}, unseen", task, s, others, s.fit, s.dev_inputs[half], labels[half]
                )
            )
        if "slices" in wanted and len(s.unseen) >= 2 * p.support // 2:
            pool, test = s.unseen[::2], s.unseen[1::2]
            own = s.train.select(test).labels
            assert own is not None
            out.append(
                Setting(f"{s.name}, unseen slice", task, s, everything, pool, s.inputs[test], own)
            )
    order = {"": 0, "unseen": 1, "unseen slice": 2}
    return sorted(out, key=lambda x: order[x.name.partition(", ")[2]])


class _Trial:
    """Measures methods, and collects rows."""

    def __init__(
        self,
        shared: Bench,
        p: Preset,
        methods: Sequence[str],
        seeds: int,
        prepare_s: float,
        progress: Progress | None,
        log: Log | None,
    ) -> None:
        self.bench, self.p, self.methods, self.seeds = shared, p, methods, seeds
        self.prepare_s, self.progress, self.log = prepare_s, progress, log
        self.rows: list[Row] = []
        self.paired: dict[str, dict[str, dict[str, float]]] = {}
        self.scores: dict[tuple[str, str], list[float]] = {}
        self.seconds: dict[tuple[str, str], float] = {}

    def measure(self, place: Setting) -> None:
        """All methods on one task."""
        draws: dict[str, Tensor] = {}
        metric = place.source.train.metric
        methods = [m for m in self.methods if self._fits(m, place)]
        for number, method in enumerate(methods):
            if self.progress:
                self.progress(place.name, number, len(methods), method)
            pieces = [self._piece(place, method, s) for s in range(self._seeds(method, place))]
            logits = [piece["logits"] for piece in pieces]
            took = [float(piece["seconds"]) for piece in pieces]
            scores = [measure(metric, x, place.labels) for x in logits]
            self.scores[place.name, method] = scores
            self.seconds[place.name, method] = sum(took) / len(took)
            draws[method] = _resampled(metric, logits, place.labels, self.bench.seed)
            self.rows.append(self._row(place, method, scores, draws[method], took))
            if self.log:
                self.log({"event": "score", "setting": place.name, "method": method,
                          "scores": _round(scores), "seconds": _round(took)})  # fmt: skip
        if self.progress:
            self.progress(place.name, len(methods), len(methods), "")
        if "lt-di" in draws:
            ours = self.scores[place.name, "lt-di"]
            self.paired[place.name] = {
                m: {
                    "mean": round(_mean(ours) - _mean(self.scores[place.name, m]), 5),
                    "ci95": round(1.96 * float((draws["lt-di"] - draws[m]).std()), 5),
                }
                for m in draws
                if m != "lt-di"
            }

    def each(self) -> dict[str, dict[str, list[float]]]:
        """Scores of every seed, by setting and method."""
        out: dict[str, dict[str, list[float]]] = {}
        for (setting, method), scores in self.scores.items():
            out.setdefault(setting, {})[method] = _round(scores, 4)
        return out

    def means(self) -> list[Row]:
        """Means over the tasks of each setting."""
        out = []
        for kind in ("", "unseen", "unseen slice"):
            names = list(dict.fromkeys(s for s, _ in self.scores if s.partition(", ")[2] == kind))
            for method in self.methods:
                rows = [r for r in self.rows if r.dataset in names and r.method == method]
                if not rows or len(rows) < len(names):
                    continue
                out.append(
                    replace(
                        rows[0],
                        dataset=", ".join(filter(None, (f"mean of {len(rows)}", kind))),
                        metric="score",
                        mean=_mean([r.mean for r in rows]),
                        ci95=math.sqrt(sum(r.ci95**2 for r in rows)) / len(rows),
                        episodes=sum(r.episodes for r in rows),
                        latency_ms=_mean([r.latency_ms for r in rows]),
                        train_s=_mean([r.train_s for r in rows]),
                    )
                )
        return out

    def speed(self, places: Sequence[Setting], zoo: Any) -> dict[str, Any]:
        """Seconds of LoRA until a snapshot reaches our metric, against those of generation."""
        out = {}
        for place in places:
            ours = _mean(self.scores[place.name, "lt-di"])
            takes, reached = [], 0
            for s in range(self.bench.recipe.runs.trunks):
                name = f"{place.source.name}-trunk-{s}"
                held = zoo.columns(zoo.entry(name))
                curve = self._trunk_curve(name, place, self.bench.snapshots(place.task, s))
                good = (curve >= ours - 1e-9).nonzero()
                reached += len(good) > 0
                at = int(good[0]) + 1 if len(good) else len(curve)
                takes.append(float(held["seconds"][0]) * at / len(curve))
            made = self.seconds[place.name, "lt-di"]
            out[place.name] = {
                "generate_s": round(made, 3),
                "lora_s": round(_mean(takes), 2),
                "ratio": round(_mean(takes) / made, 1),
                "runs that reach it": reached,
                "of": self.bench.recipe.runs.trunks,
            }
        return out

    def warm(self, places: Sequence[Setting]) -> dict[str, Any]:
        """LoRA from our adapter for an unseen task, against LoRA from scratch."""
        out = {}
        prepare = self.p.recipe.prepare
        short = replace(prepare, steps=self.p.warm_steps)
        for place in places:
            s = place.source
            warm, runs = [], self.bench.recipe.runs.trunks
            scratch = [
                float(
                    self._trunk_curve(
                        f"{s.name}-trunk-{i}", place, self.bench.snapshots(place.task, i)
                    )[-1]
                )
                for i in range(runs)
            ]
            for seed in range(self.p.warm_seeds):
                piece = self.bench.warm(place, seed, short)
                stops = torch.cat([piece["start"][None], piece["theta"]])

                def make(stops: Tensor = stops, s: Source = s) -> dict[str, Tensor]:
                    return {"dev": _scores(self.bench.host, s, stops)}

                curve = self.bench.kept(f"warm-curve/{self.bench.mark}-{s.name}-{seed}", make)[
                    "dev"
                ]
                warm.append(curve)
            curve, goal = torch.stack(warm).mean(0), _mean(scratch)
            at = [0, *[short.steps * (i + 1) // short.segments for i in range(short.segments)]]
            good = (curve >= goal - 1e-9).nonzero()
            out[s.name] = {
                "scratch": round(goal, 4),
                "scratch steps": prepare.steps,
                "warm": dict(zip(map(str, at), _round(curve.tolist(), 4), strict=True)),
                "steps to scratch's metric": at[int(good[0])] if len(good) else None,
            }
        return out

    def _trunk_curve(self, name: str, place: Setting, theta: Tensor) -> Tensor:
        def make() -> dict[str, Tensor]:
            return {"dev": _scores(self.bench.host, place.source, theta)}

        return self.bench.kept(f"trunk-dev/{name}", make)["dev"]

    def _seeds(self, method: str, place: Setting) -> int:
        """As many as are asked for and the preset can pay; no fit is counted twice."""
        most = {"full-finetune": self.p.full_seeds, "lora": self.bench.recipe.runs.trunks}
        if place.name.partition(", ")[2]:
            most |= {m: self.p.control_seeds for m in GENERATED if m != "lt-di"}
        return min(self.seeds, most.get(method, self.seeds))

    def _piece(self, place: Setting, method: str, seed: int) -> dict[str, Tensor]:
        """Logits of a method on the rows that are measured on, and its seconds."""

        def make() -> dict[str, Tensor]:
            made = self.bench.make(method, place, seed)
            return {"logits": self._logits(place, made), "seconds": torch.tensor(made.seconds)}

        name = place.name.replace(", ", "-").replace(" ", "-")
        learnt = method in (*GENERATED, "soup", "nearest")
        mark = f"{self.bench.mark}-" if learnt else ""
        return self.bench.kept(f"logits/{mark}{name}-{method}-{seed}", make)

    def _fits(self, method: str, place: Setting) -> bool:
        """Whether a method says anything new in a setting."""
        kind = place.name.partition(", ")[2]
        # Fitted to all rows, an unseen task is a known one.
        if method in ("lora", "full-finetune"):
            return kind == ""
        return method != "lora-support" or kind != ""

    def _logits(self, place: Setting, made: Made) -> Tensor:
        host, outputs = self.bench.host, place.source.outputs
        model = full_model(host.base, outputs) if made.full else host.adapter(outputs)
        return adapter_logits(model, made.theta, place.inputs)

    def _row(
        self, place: Setting, method: str, scores: list[float], draws: Tensor, took: list[float]
    ) -> Row:
        fitted = method in FITTED
        train = [0.0]
        if method in GENERATED:
            for seed in range(len(scores)):
                self.bench.generator(method, place.known, seed)
            train = self.bench.train_s[method]
        return Row(
            method,
            KINDS.get(method, "peer"),
            place.source.train.metric,
            _mean(scores),
            1.96 * float(draws.std()),
            len(place.labels),
            1000 * _mean(took),
            0.0 if fitted or method == "base" else self.prepare_s,
            _mean(train),
            peak_mb(),
            place.name,
        )


def _scores(host: LanguageHost, source: Source, theta: Tensor) -> Tensor:
    """Dev metric of snapshots theta [k, n]."""
    labels = source.dev.labels
    assert labels is not None
    adapter = host.adapter(source.outputs)
    logits = [adapter_logits(adapter, t, source.dev_inputs) for t in theta]
    return torch.tensor(
        [measure(source.train.metric, x, labels) for x in logits], dtype=torch.float64
    )


def _resampled(metric: str, logits: Sequence[Tensor], labels: Tensor, seed: int) -> Tensor:
    """[RESAMPLES] mean metric over seeds, on bootstrap samples of the rows.

    The samples depend on the number of rows alone: all methods of a setting share them.
    """
    rng = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(RESAMPLES):
        rows = torch.randint(len(labels), (len(labels),), generator=rng)
        out.append(_mean([measure(metric, x[rows], labels[rows]) for x in logits]))
    return torch.tensor(out, dtype=torch.float64)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in names.split(",") if n.strip())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _round(values: Sequence[float], digits: int = 5) -> list[float]:
    return [round(float(v), digits) for v in values]
