"""What all parts share: a figure, times in turns, the machine's rate, and a small world."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ltdi.anchor import PrototypeAnchor
from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.backbone import build
from ltdi.meta import MetaConfig, MetaTrainer
from ltdi.meta.team import ALONE, Team
from ltdi.parts import build_network
from ltdi.pipeline import HeadCollection, HeadObjective, begin_zoo, fit_normaliser
from ltdi.products import fast_products
from ltdi.recipe import Diffusion, Network, Recipe, Tasks
from ltdi.tasks import FeatureBank

WIDTH = 128
EQUIVARIANT = Network()
NETWORKS = {
    "equivariant": EQUIVARIANT,
    "transformer": Network("transformer", width=128, depth=3),
}


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        part: Of the benchmark.
        name: What was measured.
        value: Its median.
        goal: What it is to be, "" where there is no goal.
    """

    part: str
    name: str
    value: float
    goal: str = ""


def in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, warm: bool = True
) -> dict[str, float]:
    """Median CPU seconds of each of several runs of one thread, measured in turns.

    What a clock says on a machine that does nothing else, and less wrong where it does.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + warm):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn >= warm:
                times[name].append(time.process_time() - start)
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def matmul_rates(repeats: int) -> dict[str, float]:
    """Measured operations a second of large products: torch's, and those that ltdi asks for.

    The latter, "float32", are what all floors are reckoned by; see `ltdi.products`.
    """
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    low = a.bfloat16(), b.bfloat16()

    def fast() -> None:
        with fast_products():
            a @ b

    runs = {"torch's own": lambda: a @ b, "float32": fast, "bfloat16": lambda: low[0] @ low[1]}
    return {n: 2 * 1024**3 / s for n, s in in_turns(runs, max(5, repeats)).items()}


def matmul_rate(repeats: int) -> float:
    """Of "float32"; see `matmul_rates`."""
    return matmul_rates(repeats)["float32"]


def world(classes: int = 64, each: int = 30) -> tuple[FeatureBank, Backbone]:
    """Features with classes that overlap, and an untrained backbone of their width."""
    rng = torch.Generator().manual_seed(0)
    centre = 0.35 * torch.randn(classes, 1, WIDTH, generator=rng)
    x = centre + torch.randn(classes, each, WIDTH, generator=rng)
    names = tuple(f"c{i}" for i in range(classes))
    config = {"kind": "conv", "channels": 1, "width": WIDTH // 2, "size": 28}
    backbone = Backbone(build(config), InputTransform(), config)
    return FeatureBank(x.flatten(0, 1), torch.arange(classes + 1) * each, names), backbone


def begun(path: Path, recipe: Recipe) -> HeadCollection:
    """A zoo without shards."""
    bank, backbone = world()
    return begin_zoo(path, bank, PrototypeAnchor(0.5), recipe, backbone)


def solved(path: Path, per_setting: int) -> HeadCollection:
    """A filled zoo of 5-way tasks."""
    recipe = Recipe(tasks=Tasks(per_setting=per_setting, folds=0), anchor="prototype")
    return begun(path, recipe).fill()


def trainer(
    data: HeadCollection, network: Network, meta: MetaConfig, team: Team = ALONE
) -> MetaTrainer:
    """Meta-training of a network on a zoo."""
    loss = "predictive" if network.kind == "equivariant" else "weight"
    recipe = Recipe(network=network, diffusion=Diffusion(loss=loss), meta=meta)
    torch.manual_seed(0)
    net = build_network(data.zoo.space, WIDTH, network, recipe.diffusion)
    net.standardise(data.bank.features)
    normaliser = fit_normaliser(data.zoo.groups()[0])
    objective = HeadObjective(data, net, normaliser, recipe.diffusion)
    return MetaTrainer(net, objective, objective.draw, meta, team=team)


def flops_of(train: MetaTrainer) -> float:
    """Of the denoiser's products, forward and backward, for one sample."""
    samples = 64
    batch = train.draw(torch.Generator().manual_seed(0), samples)
    with FlopCounterMode(display=False) as counter:
        loss = train.loss(dict(train.phi), batch)
        torch.autograd.grad(loss, list(train.phi.values()), allow_unused=True)
    return counter.get_total_flops() / samples
