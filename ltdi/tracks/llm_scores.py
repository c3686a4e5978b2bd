"""Measuring of the llm track: scores of every method in every setting, speed, warm starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.collect import validation
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.peers import full_model
from ltdi.adapters.source import Source
from ltdi.collect import Preparation
from ltdi.data.text.metrics import measure
from ltdi.lora import adapter_logits
from ltdi.memory import peak_mb
from ltdi.progress import Log, Progress
from ltdi.report.table import Row
from ltdi.tracks.llm_methods import FITTED, GENERATED, KINDS, MADE, Bench, Made
from ltdi.tracks.llm_presets import DEV, KINDS_OF, SLICE, UNSEEN, Setting
from ltdi.tracks.measured import mean_row

RESAMPLES = 200


@dataclass
class Trial:
    """Measures methods, and collects rows."""

    bench: Bench
    methods: Sequence[str]
    seeds: int
    prepare_s: float
    progress: Progress
    log: Log
    places: list[Setting] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    paired: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    scores: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def measure(self, place: Setting) -> None:
        """All methods on one task."""
        self.places.append(place)
        draws: dict[str, Tensor] = {}
        metric = place.source.train.metric
        methods = [m for m in self.methods if self._fits(m, place)]
        for number, method in enumerate(methods):
            self.progress(place.name, number, len(methods), method)
            pieces = [self._piece(place, method, s) for s in range(self._seeds(method, place))]
            logits = [piece["logits"] for piece in pieces]
            took = [float(piece["seconds"]) for piece in pieces]
            scores = [measure(metric, x, place.labels) for x in logits]
            self.scores[place.name, method] = scores
            self.seconds[place.name, method] = sum(took) / len(took)
            draws[method] = _resampled(metric, logits, place.labels, self.bench.seed)
            self.rows.append(self._row(place, method, scores, draws[method], took))
            found = {"scores": rounded(scores), "seconds": rounded(took)}
            self.log({"event": "score", "setting": place.name, "method": method, **found})
        self.progress(place.name, len(methods), len(methods), "")
        if "lt-di" in draws:
            ours = self.scores[place.name, "lt-di"]
            self.paired[place.name] = {
                m: {
                    "mean": round(mean_of(ours) - mean_of(self.scores[place.name, m]), 5),
                    "ci95": round(1.96 * float((draws["lt-di"] - draws[m]).std()), 5),
                }
                for m in draws
                if m != "lt-di"
            }

    def each(self) -> dict[str, dict[str, list[float]]]:
        """Scores of every seed, by setting and method."""
        out: dict[str, dict[str, list[float]]] = {}
        for (setting, method), scores in self.scores.items():
            out.setdefault(setting, {})[method] = rounded(scores, 4)
        return out

    def means(self) -> list[Row]:
        """Means over the tasks of each setting."""
        out = []
        for kind in KINDS_OF:
            names = [place.name for place in self.places if place.kind == kind]
            for method in self.methods:
                rows = [r for r in self.rows if r.dataset in names and r.method == method]
                if rows and len(rows) == len(names):
                    where = ", ".join(filter(None, (f"mean of {len(rows)}", kind)))
                    train_s = mean_of([r.train_s for r in rows])
                    out.append(mean_row(rows, dataset=where, metric="score", train_s=train_s))
        return out

    def speed(self, places: Sequence[Setting]) -> dict[str, Any]:
        """Seconds of LoRA until a snapshot reaches our metric, against those of generation."""
        out = {}
        for place in places:
            ours = mean_of(self.scores[place.name, "lt-di"])
            takes, reached = [], 0
            for number in range(self._trunks):
                _, seconds = self.bench.trunk(place.task, number)
                curve = self._trunk_curve(place, number)
                good = (curve >= ours - 1e-9).nonzero()
                reached += len(good) > 0
                at = int(good[0]) + 1 if len(good) else len(curve)
                takes.append(seconds * at / len(curve))
            made = self.seconds[place.name, "lt-di"]
            out[place.name] = {
                "generate_s": round(made, 3),
                "lora_s": round(mean_of(takes), 2),
                "ratio": round(mean_of(takes) / made, 1),
                "runs that reach it": reached,
                "of": self._trunks,
            }
        return out

    def warm(self, places: Sequence[Setting]) -> dict[str, Any]:
        """LoRA from our adapter for an unseen task or slice, against LoRA from scratch.

        An unseen task is fitted to all of its rows and measured on dev rows; the goal is what the
        long runs from scratch end at. A slice is fitted to its support's rows alone, and measured
        on the other half of its rows; the goal is what a run from scratch with twice the steps
        ends at. A run from scratch with the steps, schedule and batches of the warm one says what
        a shorter schedule alone does.
        """
        out = {}
        seeds = range(min(self.seeds, self.bench.p.warm_seeds))
        for number, place in enumerate(places):
            s, whole = place.source, place.kind == UNSEEN
            long = self.bench.p.recipe.preparation(s.name)
            rows = s.fit
            if whole:
                goals = [float(self._trunk_curve(place, i)[-1]) for i in range(self._trunks)]
            else:
                rows, long = place.pool, self._shorter(long)
                ends = [self._again(place, "scratch", seed, long, rows) for seed in seeds]
                goals = [float(curve[-1]) for curve in ends]
            short = self._shorter(long)
            found, rates, goal = {}, {}, mean_of(goals)
            for start in ("lt-di", "scratch"):
                self.progress("warm start", number, len(places), f"{s.name} from {start}")
                rates[start] = self._rate(place, start, short) if whole else {"1": 0.0}
                best = max(rates[start], key=lambda r: rates[start][r])
                p = replace(short, lr=short.lr * float(best))
                curves = [self._again(place, start, seed, p, rows) for seed in seeds]
                found[start] = torch.stack(curves)
            at = [short.steps * i // short.segments for i in range(short.segments + 1)]
            ours, scratch = (found[start].mean(0).tolist() for start in ("lt-di", "scratch"))
            out[place.name] = {
                "scratch": round(goal, 4),
                "scratch steps": long.steps,
                "warm": dict(zip(map(str, at), rounded(ours, 4), strict=True)),
                "short": dict(zip(map(str, at), rounded(scratch, 4), strict=True)),
                "steps to scratch's metric": _reached(at, ours, goal),
                "each seed's": [
                    _reached(at, curve, own)
                    for curve, own in zip(found["lt-di"].tolist(), goals, strict=False)
                ],
                "seeds": len(seeds),
                "rates": rates,
            }
        self.progress("warm start", len(places), len(places), "")
        return out

    def _shorter(self, long: Preparation) -> Preparation:
        share = self.bench.p.warm_steps / self.bench.p.recipe.prepare.steps
        segment = max(1, int(long.steps * share) // long.segments)
        return replace(long, steps=segment * long.segments)

    def _rate(self, place: Setting, start: str, short: Preparation) -> dict[str, float]:
        """Validation metric of the ends of a run with each rate."""
        out = {}
        for rate in self.bench.p.warm_rates:
            p = replace(short, lr=short.lr * rate)
            end = self.bench.again(place, start, 0, p, place.source.fit)["theta"][-1]
            out[f"{rate:g}"] = round(validation(self.bench.host, place.source, end), 4)
        return out

    def _again(
        self, place: Setting, start: str, seed: int, preparation: Preparation, rows: Tensor
    ) -> Tensor:
        """[k + 1] metric of the start and of every snapshot, on dev rows or on those of a slice."""
        p, s = preparation, place.source

        def make() -> dict[str, Tensor]:
            piece = self.bench.again(place, start, seed, p, rows)
            stops = torch.cat([piece["start"][None], piece["theta"]])
            if place.kind == UNSEEN:
                return {"dev": _scores(self.bench.host, s, stops)}
            return {"dev": _scores(self.bench.host, s, stops, place.inputs, place.labels)}

        learnt = "" if start == "scratch" else f"{self.bench.mark}-"
        how = f"{p.steps}-{p.lr:g}"
        piece = f"again-dev/{learnt}{place.piece}-{start}-{how}-{seed}"
        return self.bench.kept(piece, make)["dev"]

    @property
    def _trunks(self) -> int:
        return min(self.seeds, self.bench.p.recipe.runs.trunks)

    def _trunk_curve(self, place: Setting, number: int) -> Tensor:
        """[k] dev metric of the snapshots of a long run."""

        def make() -> dict[str, Tensor]:
            theta, _ = self.bench.trunk(place.task, number)
            return {"dev": _scores(self.bench.host, place.source, theta)}

        return self.bench.kept(f"trunk-dev/{place.source.name}-trunk-{number}", make)["dev"]

    def _seeds(self, method: str, place: Setting) -> int:
        """As many as are asked for and the preset can pay; no fit is counted twice."""
        most = {"full-finetune": self.bench.p.full_seeds, "lora": self.bench.p.recipe.runs.trunks}
        if place.kind:
            most |= {m: self.bench.p.control_seeds for m in GENERATED if m != "lt-di"}
        return min(self.seeds, most.get(method, self.seeds))

    def _piece(self, place: Setting, method: str, seed: int) -> dict[str, Tensor]:
        """Logits of a method on the rows that are measured on, and its seconds."""

        def make() -> dict[str, Tensor]:
            made = self.bench.make(method, place, seed)
            return {"logits": self._logits(place, made), "seconds": torch.tensor(made.seconds)}

        name = place.name.replace(", ", "-").replace(" ", "-")
        learnt = method in (*GENERATED, *MADE) and method != "base"
        mark = f"{self.bench.mark}-" if learnt else ""
        return self.bench.kept(f"logits/{mark}{name}-{method}-{seed}", make)

    def _fits(self, method: str, place: Setting) -> bool:
        """Whether a method says anything new in a setting."""
        only = {
            # Fitted to all rows, an unseen task is a known one.
            "lora": ("", SLICE),
            "full-finetune": ("",),
            "lora-support": (UNSEEN, DEV, SLICE),
            "zoo-search": (UNSEEN, DEV),
        }
        return place.kind in only.get(method, KINDS_OF)

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
            mean_of(scores),
            1.96 * float(draws.std()),
            len(place.labels),
            1000 * mean_of(took),
            0.0 if fitted or method == "base" else self.prepare_s,
            mean_of(train),
            max(peak_mb(), self.bench.kept.peak_mb),
            place.name,
        )


def _reached(at: Sequence[int], curve: Sequence[float], goal: float) -> int | None:
    """The first of the steps `at` where a curve is at a goal, if it ever is."""
    return next((step for step, x in zip(at, curve, strict=True) if x >= goal - 1e-9), None)


def _scores(
    host: LanguageHost,
    source: Source,
    theta: Tensor,
    inputs: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Metric of snapshots theta [k, n] on dev rows, or on given inputs and labels."""
    if inputs is None:
        inputs, labels = source.dev_inputs, source.dev.labels
    assert labels is not None
    adapter = host.adapter(source.outputs)
    logits = [adapter_logits(adapter, t, inputs) for t in theta]
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
        out.append(mean_of([measure(metric, x[rows], labels[rows]) for x in logits]))
    return torch.tensor(out, dtype=torch.float64)


def mean_of(values: Sequence[float]) -> float:
    """Mean of one value or more."""
    return sum(values) / len(values)


def rounded(values: Sequence[float], digits: int = 5) -> list[float]:
    """For JSON."""
    return [round(float(v), digits) for v in values]
