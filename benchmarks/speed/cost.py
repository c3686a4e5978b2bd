"""A model of the time of preparation and training, fitted here; see docs/scale.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.speed.common import (
    EQUIVARIANT,
    WIDTH,
    Figure,
    flops_of,
    in_turns,
    solved,
    trainer,
)
from ltdi.collect import HeadPredictor, Preparation, optimise
from ltdi.meta import MetaConfig
from ltdi.recipe import Network
from ltdi.weights import head_space

# Network and meta-training of the paper's preset.
PAPER, PAPER_META = Network(width=128, depth=3), MetaConfig(iterations=6000, tasks=32)


def cost(repeats: int) -> list[Figure]:
    """Both models, and what they say of larger runs."""
    task, figures = of_tasks(repeats)
    with tempfile.TemporaryDirectory() as folder:
        step, more = of_training(Path(folder), repeats)
        flops = flops_of(trainer(solved(Path(folder) / "few", 20), PAPER, PAPER_META))
    size = head_space(WIDTH, 5).size
    one_task = predicted(_of_task(24, 90, size), task)
    one = predicted(_of_iteration(PAPER, PAPER_META, flops), step)
    disk = 4 * size * (4 + 1)
    return [
        *figures,
        *more,
        Figure("cost", "paper preset, 40,000 heads on one core: s", 40_000 * one_task),
        Figure("cost", "paper preset, 6,000 iterations on one core: hours", 6000 * one / 3600),
        Figure("cost", "10 million heads on 100 machines of 16 cores: s", 1e7 * one_task / 1600),
        Figure("cost", "10 million heads on disk: GB", 1e7 * disk / 1e9),
    ]


def of_tasks(repeats: int) -> tuple[list[float], list[Figure]]:
    """Coefficients of the time of solving a head, and what they mean."""
    rng = torch.Generator().manual_seed(0)
    rows, times = [], []
    for width in (64, 128, 256):
        for samples in (30, 80):
            x = torch.randn(200, samples, width, generator=rng)
            y = torch.arange(5).repeat_interleave(samples // 5)
            space = head_space(width, 5)
            settings = Preparation(lr=0.01, steps=20, segments=4)
            run = in_turns(
                {
                    "": lambda s=space, x=x, y=y, p=settings: optimise(
                        HeadPredictor(s), torch.zeros(200, s.size), x, y, p
                    )
                },
                repeats,
            )
            rows.append(_of_task(steps=20, samples=samples, weights=space.size))
            times.append(run[""] / 200)
    task = fitted(rows, times)
    return task, [
        Figure("cost", "a head: us", 1e6 * task[0]),
        Figure("cost", "a step of a head: ns for each sample x weight", 1e9 * task[1]),
        Figure("cost", "a step of a head: ns for each weight", 1e9 * task[2]),
        Figure("cost", "worst error of the fit, heads", error(rows, times, task)),
    ]


def of_training(folder: Path, repeats: int) -> tuple[list[float], list[Figure]]:
    """Coefficients of the time of an outer iteration, and what they mean."""
    data = solved(folder / "zoo", 300)
    rows, times = [], []
    for network in (EQUIVARIANT, Network(width=128, depth=3)):
        for learners, tasks in ((2, 8), (4, 8), (4, 24)):
            meta = MetaConfig(meta_batch=learners, tasks=tasks)
            t = trainer(data, network, meta)
            rows.append(_of_iteration(network, meta, flops_of(t)))
            times.append(in_turns({"": t.iterate}, repeats)[""])
    step = fitted(rows, times)
    return step, [
        Figure("cost", "an inner step of a block: ms", 1000 * step[0]),
        Figure("cost", "products: GFLOP/s", 1e-9 / step[1] if step[1] else float("inf")),
        Figure("cost", "a sample, whatever the network: us", 1e6 * step[2]),
        Figure("cost", "worst error of the fit, training", error(rows, times, step)),
    ]


def _of_task(steps: int, samples: int, weights: int) -> list[float]:
    """What the time of solving a head is linear in."""
    return [1.0, steps * samples * weights, steps * weights]


def _of_iteration(network: Network, meta: MetaConfig, flops: float) -> list[float]:
    """What the time of an outer iteration is linear in."""
    samples = meta.meta_batch * meta.inner_steps * meta.tasks
    return [meta.inner_steps * (network.depth + 1), samples * flops, samples]


def fitted(rows: list[list[float]], times: list[float]) -> list[float]:
    """Coefficients >= 0 that fit best in relative terms."""
    a, b = torch.tensor(rows, dtype=torch.double), torch.tensor(times, dtype=torch.double)
    a = a / b[:, None]
    keep = list(range(a.shape[1]))
    while True:
        found = torch.linalg.lstsq(a[:, keep], torch.ones_like(b)).solution
        if bool((found >= 0).all()) or len(keep) == 1:
            out = [0.0] * a.shape[1]
            for i, value in zip(keep, found.tolist(), strict=True):
                out[i] = value
            return out
        del keep[int(found.argmin())]


def error(rows: list[list[float]], times: list[float], found: list[float]) -> float:
    """The worst one, relative to what was measured."""
    made = [predicted(row, found) for row in rows]
    return max(abs(m / t - 1) for m, t in zip(made, times, strict=True))


def predicted(row: list[float], found: list[float]) -> float:
    """Seconds, by the coefficients that were found."""
    return sum(a * b for a, b in zip(row, found, strict=True))
