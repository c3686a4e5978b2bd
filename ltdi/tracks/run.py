"""Methods on the same test episodes, one after another."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ltdi.baselines.method import Budget, Contender, Method
from ltdi.evaluate import Scores, latency_ms, on_bank, score_tasks
from ltdi.memory import reset_peak
from ltdi.progress import Log, Progress, Step
from ltdi.report.table import Row
from ltdi.tasks import Episodes, FeatureBank
from ltdi.tracks.measured import facts_of, sampling_of, scored

M = TypeVar("M", bound=Contender)
Met = TypeVar("Met", bound=Contender, contravariant=True)


class Arena(Protocol[Met]):
    """Where methods are fitted and measured."""

    def fit(self, method: Met, budget: Budget, progress: Step) -> None:
        """Give a method all that it may learn from."""

    def tests(self, budget: Budget, episodes: int) -> Episodes:
        """Episodes that are only measured on."""

    def predict(self, method: Met, tasks: Episodes) -> Tensor:
        """Logits [E, way, Q, way] of some of these episodes."""


@dataclass(frozen=True)
class Run(Generic[M]):
    """All methods on the episodes of one shape.

    Attributes:
        label: Of the episodes, or None where a benchmark has only one kind.
        query: Queries per class.
        methods: Fitted.
        scores: By method.
        rows: Of the result.
    """

    label: str | None
    query: int
    methods: dict[str, M]
    scores: dict[str, Scores]
    rows: list[Row]

    def measured(self) -> dict[str, Any]:
        """What is told of every method beside its row."""
        return {"sampling": sampling_of(self.methods), **facts_of(self.scores)}


def run_methods(
    methods: dict[str, M],
    world: Arena[M],
    budget: Budget,
    episodes: int,
    progress: Progress,
    log: Log,
    label: str | None = None,
) -> Run[M]:
    """Fit every method in a world, and measure it on the same test episodes.

    The label is that of the episodes, where there are several kinds.
    """
    tests = world.tests(budget, episodes)
    run: Run[M] = Run(label, tests.query.shape[2], methods, {}, [])
    for name, method in methods.items():
        predict = partial(world.predict, method)
        reset_peak()
        start = time.perf_counter()
        world.fit(method, budget, partial(progress, name if label is None else f"{name} {label}"))
        fit_s = time.perf_counter() - start
        run.scores[name] = score_tasks(predict, tests)
        row = scored(
            name,
            method.kind,
            run.scores[name],
            latency_ms=latency_ms(predict, tests),
            prepare_s=method.prepare_s,
            train_s=method.train_s or fit_s,
            dataset=label,
        )
        run.rows.append(row)
        # A run that is stopped has told what it measured so far.
        facts = {key: found.get(name) for key, found in run.measured().items()}
        log({"event": "method", **asdict(row), **facts})
    return run


def run_elsewhere(
    run: Run[Method], bank: FeatureBank, budget: Budget, episodes: int, label: str
) -> Run[Method]:
    """The fitted methods of a run on episodes of another bank; nothing is chosen there."""
    tests = bank.episodes(
        way=budget.way,
        shot=budget.shot,
        query=bank.queries_left(budget.shot, budget.query),
        episodes=episodes,
        seed=budget.seed + 77_000,
    )
    found: Run[Method] = Run(label, tests.query.shape[2], run.methods, {}, [])
    for name, method in run.methods.items():
        predict = on_bank(method.predict, bank)
        scores = found.scores[name] = score_tasks(predict, tests)
        ms = latency_ms(predict, tests)
        found.rows.append(scored(name, method.kind, scores, latency_ms=ms, dataset=label))
    return found
