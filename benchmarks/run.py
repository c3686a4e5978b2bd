"""Speed of preparation and generation, as a table and as JSON.

    python benchmarks/run.py --generator runs/demo/generator --json speed.json

Every figure is the median of several runs on this machine; the ratio to a plain loop is measured in
the same process, because these machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console
from rich.table import Table

from ltdi import Generator, Support
from ltdi.collect import Preparation, head_predictor, optimise
from ltdi.weights import head_space


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of `run` in seconds, after one run to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def preparation(repeats: int) -> dict[str, float]:
    """Solve 2,000 five-way heads of 128 features on 16 samples a class, 60 steps of Adam."""
    features, way, tasks, batch = 128, 5, 2000, 500
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, 16 * way, features, generator=rng)
    y = torch.arange(way).repeat_interleave(16)
    space = head_space(features, way)
    start = torch.zeros(tasks, space.size)
    settings = Preparation(lr=0.01, steps=60, segments=4)

    def batched() -> None:
        for i in range(0, tasks, batch):
            part = slice(i, i + batch)
            optimise(head_predictor(space), start[part], x[part], y, settings)

    few = 5

    def loop() -> None:
        for i in range(few):
            head = torch.nn.Linear(features, way)
            adam = torch.optim.Adam(head.parameters(), lr=0.01)
            for _ in range(60):
                adam.zero_grad()
                torch.nn.functional.cross_entropy(head(x[i]), y).backward()
                adam.step()

    seconds, per_task = median_s(batched, repeats), median_s(loop, repeats) / few
    return {
        "prepare 2,000 heads, s": seconds,
        "plain loop / batched, per task": per_task * tasks / seconds,
    }


def generation(path: str, repeats: int) -> dict[str, float]:
    """Generate from images: one 5-way 1-shot task, and 1,000 at once."""
    generator = Generator.from_pretrained(path)
    transform = generator.backbone.transform
    rng = torch.Generator().manual_seed(0)
    shape = (5, transform.channels, transform.size, transform.size)
    labels = torch.arange(5)
    supports = [Support(torch.rand(shape, generator=rng), labels) for _ in range(1000)]
    one = median_s(lambda: generator.generate(supports[0]), 50 * repeats)
    many = median_s(lambda: generator.generate(supports), repeats)
    out = {"one head, ms": 1000 * one, "1,000 tasks at once, tasks/s": 1000 / many}
    for steps in (1, 5, generator.parts.diffusion.steps):
        seconds = median_s(lambda s=steps: generator.generate(supports[0], steps=s), 20 * repeats)
        out[f"one head at {steps} steps, ms"] = 1000 * seconds
    return out


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="runs/demo/generator", help="a trained generator")
    parser.add_argument("--repeats", type=int, default=5, help="runs per figure")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    figures = preparation(given.repeats)
    if Path(given.generator).is_dir():
        figures |= generation(given.generator, given.repeats)
    else:
        print(f"no generator at {given.generator}: run `make demo`, or give --generator")
    table = Table("figure", "median")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
    if given.json:
        settings = {"threads": torch.get_num_threads(), "repeats": given.repeats}
        given.json.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
