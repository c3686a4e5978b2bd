"""Heads from features: latency and throughput against batch and steps, and the floor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.common import NETWORKS, Figure, in_turns, matmul_rate, solved, world
from ltdi.meta import MetaConfig
from ltdi.pipeline import train_generator
from ltdi.recipe import Diffusion, Recipe


def generate(repeats: int) -> list[Figure]:
    """Heads from features: latency and throughput against batch and steps, and the floor."""
    rate, figures = matmul_rate(repeats), []
    bank, backbone = world()
    with tempfile.TemporaryDirectory() as folder:
        data = solved(Path(folder) / "zoo", 40)
        for name, network in NETWORKS.items():
            loss = "predictive" if name == "equivariant" else "weight"
            short = Recipe(
                network=network,
                diffusion=Diffusion(loss=loss),
                meta=MetaConfig(iterations=1, tasks=4),
                anchor="prototype",
            )
            generator = train_generator(data, backbone, short)
            for batch in (1, 16, 256, 1024):
                tasks = bank.episodes(way=5, shot=1, query=1, episodes=batch, seed=0)
                support = bank.features[tasks.support]
                for steps in (1, 5, 20):
                    if batch > 256 and steps == 20:
                        continue

                    def run(g=generator, s: torch.Tensor = support, t: int = steps) -> None:
                        g.weights(s, steps=t)

                    runs = repeats if batch > 16 else 4 * repeats
                    seconds = in_turns({"": run}, runs)[""]
                    with FlopCounterMode(display=False) as counter:
                        run()
                    floor = counter.get_total_flops() / rate
                    label = f"{name}, batch {batch}, {steps} steps"
                    figures += [
                        Figure("generate", f"{label}: ms", 1000 * seconds),
                        Figure("generate", f"{label}: tasks/s", batch / seconds),
                        Figure("generate", f"{label}: floor / time", floor / seconds),
                    ]
    return figures
