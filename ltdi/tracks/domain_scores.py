"""Scores of all methods on a held-out domain, and their means over domains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ltdi.baselines.domains import DomainMethod
from ltdi.baselines.method import Budget
from ltdi.crossdomain import Domain
from ltdi.evaluate import Scores, across
from ltdi.progress import Log, Progress
from ltdi.report.table import Row
from ltdi.tasks import Episodes
from ltdi.tracks.domain_methods import (
    DomainWorld,
    GeneratedForDomain,
)
from ltdi.tracks.measured import leads, measure


@dataclass(frozen=True)
class Run:
    """All methods on the episodes of one held-out domain and shape.

    Attributes:
        title: "<data>/<domain> <way>w<shot>s".
        scores: By method.
        rows: Of the result.
        query: Queries per class.
        pool: Unlabelled images.
        sampling: Of the generators.
        anchor: What was chosen for it.
    """

    title: str
    scores: dict[str, Scores]
    rows: list[Row]
    query: int
    pool: int
    sampling: dict[str, Any]
    anchor: dict[str, Any]

    def paired(self) -> dict[str, dict[str, float]]:
        """lt-di minus every other method, on the same episodes."""
        return leads(self.scores)


def run_methods(
    title: str,
    methods: dict[str, DomainMethod],
    world: DomainWorld,
    test: Domain,
    budget: Budget,
    episodes: int,
    progress: Progress,
    log: Log,
) -> Run:
    """Fit every method on the sources, and measure it on the same episodes of the test domain."""
    tasks = test.episodes(budget.way, budget.shot, budget.query, episodes, budget.seed + 77_000)
    rows: list[Row] = []
    scores: dict[str, Scores] = {}
    features = test.bank.features
    for name, method in methods.items():

        def predict(part: Episodes, method: DomainMethod = method) -> Tensor:
            support, query = features[part.support], features[part.query]
            return method.predict(support, query, part.classes, test.pool)

        told = partial(progress, f"{title}, {name}")
        scores[name], row = measure(
            name,
            method.kind,
            method,
            partial(method.fit, world.sources, budget, told),
            predict,
            tasks,
            dataset=title,
        )
        rows.append(row)
        log({"event": "method", **asdict(row)})
    made = {n: m for n, m in methods.items() if isinstance(m, GeneratedForDomain) and m.generator}
    anchor = {}
    if (True, True) in world.anchors:
        (found, _), _ = world.anchors[True, True]
        anchor = {
            n: getattr(found, n).tolist() for n in ("drift", "blend", "trust", "heat", "scale")
        }
    return Run(
        title,
        scores,
        rows,
        tasks.query.shape[2],
        len(test.pool),
        {n: asdict(m.generator.parts.sampling) for n, m in made.items() if m.generator},
        anchor,
    )


def averages(title: str, runs: list[Run]) -> list[Row]:
    """Rows of the mean over held-out domains, whose episodes are independent."""
    out = []
    for same in zip(*(run.rows for run in runs), strict=True):
        mean, ci95 = across([(r.mean, r.ci95) for r in same])
        out.append(
            replace(
                same[0],
                mean=mean,
                ci95=ci95,
                episodes=sum(r.episodes for r in same),
                latency_ms=sum(r.latency_ms for r in same) / len(same),
                prepare_s=sum(r.prepare_s for r in same),
                train_s=sum(r.train_s for r in same),
                peak_mb=max(r.peak_mb for r in same),
                dataset=title,
            )
        )
    return out


def mean_paired(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Mean over held-out domains of `Run.paired`."""
    found = [run.paired() for run in runs]
    out = {}
    for name in found[0]:
        mean, ci95 = across([(f[name]["mean"], f[name]["ci95"]) for f in found])
        out[name] = {"mean": round(mean, 5), "ci95": round(ci95, 5)}
    return out
