"""From methods to what a benchmark tells: scores, rows, paired differences, a card's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from ltdi.evaluate import Scores, across, class_ci95, paired, summarise
from ltdi.generator import Generator
from ltdi.memory import peak_mb
from ltdi.report.table import Result, Row

G = TypeVar("G", bound=Generator)
# Episodes from which on the interval of their mean is believed.
FEWEST = 30


def scored(
    name: str,
    kind: str,
    scores: Scores,
    *,
    latency_ms: float,
    prepare_s: float = 0.0,
    train_s: float = 0.0,
    dataset: str | None = None,
) -> Row:
    """The row of a method, with the peak of memory until now; see `Row`."""
    s = summarise(scores.accuracy)
    costs = (latency_ms, prepare_s, train_s, peak_mb())
    return Row(name, kind, "accuracy", s.mean, s.ci95, s.episodes, *costs, dataset)


def mean_row(rows: Sequence[Row], **changes: Any) -> Row:
    """The mean of one method over independent sets, which count the same.

    Args:
        rows: Of the sets; the first gives what is no mean.
        **changes: Of the fields that are neither.
    """
    mean, ci95 = across([(row.mean, row.ci95) for row in rows])
    episodes = sum(row.episodes for row in rows)
    latency = sum(row.latency_ms for row in rows) / len(rows)
    means = {"mean": mean, "ci95": ci95, "episodes": episodes, "latency_ms": latency}
    return replace(rows[0], **{**means, **changes})


def leads(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """lt-di minus every other method on the same episodes, by name.

    "mean" and "ci95" over episodes, and "classes_ci95" had other classes been drawn, which is None
    where every episode has all classes.
    """
    if "lt-di" not in scores:
        return {}
    out, own = {}, scores["lt-di"]
    for name, other in scores.items():
        if name != "lt-di":
            lead = paired(own.accuracy, other.accuracy)
            classes = class_ci95(own.accuracy - other.accuracy, own.classes)
            facts = {"mean": lead.mean, "ci95": lead.ci95, "classes_ci95": classes}
            out[name] = {k: None if v is None else round(v, 5) for k, v in facts.items()}
    return out


def in_words(pairs: Mapping[str, Mapping[str, Any]], episodes: int) -> str:
    """What `leads` says, in a line: what lt-di is above, level with and below.

    The interval of a few episodes is no measure of what others would give; of one it is zero.
    """
    if episodes < FEWEST:
        return f"Too few episodes to say what lt-di is above: {episodes}, and it takes {FEWEST}."
    said: dict[str, list[str]] = {"above": [], "level with": [], "below": []}
    for name, lead in pairs.items():
        sure = abs(lead["mean"]) > lead["ci95"]
        said["level with" if not sure else "above" if lead["mean"] > 0 else "below"].append(name)
    told = [f"{how} {', '.join(names)}" for how, names in said.items() if names]
    return f"On these images lt-di is {'; '.join(told)}."


def facts_of(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What is told of every method beside its row: leads of lt-di, calibration, throughput."""
    return {
        "paired": leads(scores),
        "nll": nll_of(scores),
        "ece": {name: round(s.ece, 5) for name, s in scores.items()},
        "tasks_per_s": {n: round(len(s.accuracy) / s.seconds, 1) for n, s in scores.items()},
    }


def nll_of(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean negative log-likelihood of every method, in nats."""
    return {name: round(float(s.nll.mean()), 5) for name, s in scores.items()}


def metrics_of(rows: Iterable[Row], label: Callable[[Row], str]) -> dict[str, Any]:
    """What a generator's card tells of a run: every row but the controls.

    The label says what a row was measured on.
    """
    return {
        f"{label(row)}, {row.method}": {
            "mean": row.mean,
            "ci95": row.ci95,
            "episodes": row.episodes,
        }
        for row in rows
        if row.kind != "control"
    }


def generators_of(methods: Mapping[str, object]) -> dict[str, Generator]:
    """The generators of those methods that have one, by the method's name."""
    found = {name: getattr(method, "generator", None) for name, method in methods.items()}
    return {name: made for name, made in found.items() if isinstance(made, Generator)}


def sampling_of(methods: Mapping[str, object]) -> dict[str, Any]:
    """What generators sample with, by the method's name."""
    return {n: asdict(g.parts.sampling) for n, g in generators_of(methods).items()}


def kept(
    methods: Mapping[str, object], result: Result, label: Callable[[Row], str]
) -> dict[str, Generator]:
    """Our generator, with the run's metrics in its card; see `metrics_of`."""
    ours = generators_of(methods).get("lt-di")
    if ours is None:
        return {}
    metrics = metrics_of(result.rows, label)
    return {"generator": with_card(ours, data=result.dataset, metrics=metrics)}


def with_card(generator: G, **about: Any) -> G:
    """A generator whose card tells of a run, by entries such as `data` and `metrics`."""
    parts = generator.parts
    return type(generator)(replace(parts, about={**parts.about, **about}))
