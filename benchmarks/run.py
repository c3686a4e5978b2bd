"""What the pipeline costs: preparation, meta-training, generation, both at once, and a cost model.

    python benchmarks/run.py --json speed.json
    python benchmarks/run.py train generate --repeats 9

Every figure is a median of at least five runs; the parts of a ratio are measured in turns, in the
same process, because machines are noisy. Seconds are those of one thread's processor, but for
`overlap` and `workers`, which need two cores to themselves.

`--markdown` prints the table as docs/scale.md holds it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import ltdi.meta
from ltdi.anchor import PrototypeAnchor
from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.backbone import build
from ltdi.collect import Preparation, head_predictor, module_predictor, optimise
from ltdi.engine import Engine
from ltdi.evaluate import query_logits, score
from ltdi.meta import MetaConfig, MetaTrainer
from ltdi.nets import NetConfig, NetHost, NetPredictor, SmallNet
from ltdi.parts import build_network
from ltdi.pipeline import (
    HeadCollection,
    HeadObjective,
    TrainingSet,
    begin_zoo,
    fit_normaliser,
    train_generator,
)
from ltdi.recipe import NET_RECIPE, Diffusion, Network, Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, head_space

WIDTH = 128
EQUIVARIANT = Network()
TRANSFORMER = Network("transformer", width=128, depth=3)


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


def matmul_rate(repeats: int) -> float:
    """Measured floating-point operations a second of large products."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / in_turns({"": lambda: a @ b}, max(5, repeats))[""]


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


def trainer(data: TrainingSet, network: Network, meta: MetaConfig) -> MetaTrainer:
    """Meta-training of a network on a zoo."""
    loss = "predictive" if network.kind == "equivariant" else "weight"
    recipe = Recipe(network=network, diffusion=Diffusion(loss=loss), meta=meta)
    torch.manual_seed(0)
    net = build_network(data.space, WIDTH, network, recipe.diffusion)
    net.standardise(data.bank.features)
    objective = HeadObjective(data, net, fit_normaliser(data), recipe)
    return MetaTrainer(net, objective, objective.draw, meta)


def flops_of(train: MetaTrainer) -> float:
    """Of the denoiser's products, forward and backward, for one sample."""
    samples = 64
    batch = train.draw(torch.Generator().manual_seed(0), samples)
    with FlopCounterMode(display=False) as counter:
        loss = train.loss(train.phi, batch)
        torch.autograd.grad(loss, list(train.phi.values()), allow_unused=True)
    return counter.get_total_flops() / samples


# ---- the parts -----------------------------------------------------------------------------------


def prepare(repeats: int) -> list[Figure]:
    """Solving many tasks at once, against one after the other."""
    way, tasks, few = 5, 400, 3
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, 16 * way, WIDTH, generator=rng)
    y = torch.arange(way).repeat_interleave(16)
    space = head_space(WIDTH, way)
    settings = Preparation(lr=0.01, steps=60, segments=4)

    def solve(
        net: torch.nn.Module, samples: torch.Tensor, labels: torch.Tensor, steps: int
    ) -> None:
        adam = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(steps):
            adam.zero_grad()
            F.cross_entropy(net(samples), labels).backward()
            adam.step()

    seconds = in_turns(
        {
            "at once": lambda: optimise(
                head_predictor(space), torch.zeros(tasks, space.size), x, y, settings
            ),
            "loop": lambda: [
                solve(torch.nn.Linear(WIDTH, way), x[i], y, settings.steps) for i in range(few)
            ],
        },
        3 * repeats,
    )
    heads = seconds["at once"] / tasks, seconds["loop"] / few

    def layers() -> torch.nn.Sequential:
        return torch.nn.Sequential(
            torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, way)
        )

    small = WeightSpace.from_module(layers())
    z = torch.randn(tasks, 16 * way, 64, generator=rng)
    seconds = in_turns(
        {
            "at once": lambda: optimise(
                module_predictor(layers(), small),
                small.flatten(dict(layers().named_parameters())).detach().expand(tasks, -1),
                z,
                y,
                settings,
            ),
            "loop": lambda: [solve(layers(), z[i], y, settings.steps) for i in range(few)],
        },
        repeats,
    )
    perceptrons = seconds["at once"] / tasks, seconds["loop"] / few

    rate = matmul_rate(repeats)

    def convs(config: NetConfig, shots: int) -> list[Figure]:
        host = NetHost(config, InputTransform(config.size, config.channels))
        own, nets, count = host.space(way), 32, way * shots
        images = torch.rand(nets, count, 1, config.size, config.size, generator=rng)
        labels = torch.arange(way).repeat_interleave(shots)
        net = SmallNet(config, way)
        start = own.flatten({k: p.detach() for k, p in net.named_parameters()})
        plan = replace(NET_RECIPE.prepare, steps=12, segments=4, batch=0)
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(net(images[0]), labels).backward()
        floor = plan.steps * counter.get_total_flops() / rate
        seconds = in_turns(
            {
                "at once": lambda: optimise(
                    NetPredictor(host, own), start.expand(nets, -1), images, labels, plan
                ),
                "loop": lambda: [
                    solve(SmallNet(config, way), images[i], labels, plan.steps) for i in range(few)
                ],
            },
            repeats,
        )
        once, loop = seconds["at once"] / nets, seconds["loop"] / few
        side = config.size
        name = f"conv net of {own.size} weights, {count} images of {side} x {side}, 12 steps"
        return [
            Figure("prepare", f"{name}: ms", 1000 * once),
            Figure("prepare", "  loop / at once", loop / once, ">= 4"),
            Figure("prepare", "  loop / floor: the most that there is to win", loop / floor),
        ]

    tiny = NetConfig(size=14, widths=(8, 8, 8))
    return [
        Figure("prepare", "a head of 645 weights, 80 samples, 60 steps: ms", 1000 * heads[0]),
        Figure("prepare", "heads: loop / at once", heads[1] / heads[0], ">= 30"),
        Figure(
            "prepare",
            f"a perceptron of {small.size} weights, 80 samples, 60 steps: ms",
            1000 * perceptrons[0],
        ),
        Figure("prepare", "perceptrons: loop / at once", perceptrons[1] / perceptrons[0], ">= 4"),
        *convs(NetConfig(), 6),
        *convs(NetConfig(), 1),
        *convs(NetConfig(size=14), 6),
        *convs(tiny, 6),
    ]


def train(repeats: int) -> list[Figure]:
    """REPTILE against single-level training, where the time goes, and the floor."""
    rate, figures = matmul_rate(repeats), []
    figures.append(Figure("train", "matmul rate, GFLOP/s", rate / 1e9))
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(tasks=Tasks(per_setting=300, folds=0), anchor="prototype")
        collection = begun(Path(folder) / "zoo", recipe)
        collection.fill()
        data = TrainingSet.of(collection.zoo)
        for name, network in (("equivariant", EQUIVARIANT), ("transformer", TRANSFORMER)):
            trainers = {m: trainer(data, network, MetaConfig(meta=m)) for m in ("reptile", "none")}
            inside = _watch(ltdi.meta, "_gradient")
            seconds = in_turns({m: t.iterate for m, t in trainers.items()}, repeats)
            inside.clear()
            start = time.process_time()
            for _ in range(repeats):
                trainers["reptile"].iterate()
            share = sum(inside) / (time.process_time() - start)
            _unwatch(ltdi.meta, "_gradient")
            c = trainers["none"].config
            samples = c.meta_batch * c.inner_steps * c.tasks
            floor = samples * flops_of(trainers["none"]) / rate
            figures += [
                Figure("train", f"{name}: REPTILE, samples/s", samples / seconds["reptile"]),
                Figure(
                    "train",
                    f"{name}: REPTILE / single-level, time",
                    seconds["reptile"] / seconds["none"],
                    "<= 1.3",
                ),
                Figure("train", f"{name}: share inside forward and backward", share, ">= 0.85"),
                Figure(
                    "train",
                    f"{name}: floor / single-level, time",
                    floor / seconds["none"],
                    ">= 0.5" if name == "transformer" else "",
                ),
                Figure("train", f"{name}: floor / REPTILE, time", floor / seconds["reptile"]),
            ]
    return figures


_ORIGINAL: dict[str, Callable[..., object]] = {}


def _watch(module: object, name: str) -> list[float]:
    """Replace a function by itself and a stop watch; the list fills with seconds."""
    seconds: list[float] = []
    original = _ORIGINAL[name] = getattr(module, name)

    def watched(*given: object) -> object:
        start = time.process_time()
        out = original(*given)
        seconds.append(time.process_time() - start)
        return out

    setattr(module, name, watched)
    return seconds


def _unwatch(module: object, name: str) -> None:
    setattr(module, name, _ORIGINAL.pop(name))


def generate(repeats: int) -> list[Figure]:
    """Heads from features: latency and throughput against batch and steps, and the floor."""
    rate, figures = matmul_rate(repeats), []
    bank, backbone = world()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(tasks=Tasks(per_setting=40, folds=0), anchor="prototype")
        collection = begun(Path(folder) / "zoo", recipe)
        collection.fill()
        data = TrainingSet.of(collection.zoo)
        for name, network in (("equivariant", EQUIVARIANT), ("transformer", TRANSFORMER)):
            loss = "predictive" if name == "equivariant" else "weight"
            short = replace(
                recipe,
                network=network,
                diffusion=Diffusion(loss=loss),
                meta=MetaConfig(iterations=1, tasks=4),
            )
            generator = train_generator(data, PrototypeAnchor(0.5), backbone, short)
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


# Solved and trained in about the same time on one core each.
BOTH = Recipe(
    tasks=Tasks(per_setting=7000, shard=125, folds=0),
    prepare=Preparation(lr=0.02, steps=48, segments=4),
    meta=MetaConfig(iterations=75, tasks=16, warmup=10, ema=0.9),
    anchor="prototype",
)


def overlap(repeats: int) -> list[Figure]:
    """Training beside collection, against one after the other."""
    _, backbone = world()
    held, _ = world(classes=96)
    valid = FeatureBank(
        held.features[int(held.offsets[64]) :], torch.arange(33) * 30, held.classes[64:]
    )
    episodes = valid.episodes(way=5, shot=1, query=15, episodes=600, seed=1)
    seconds: dict[str, list[float]] = {n: [] for n in ("prepare", "train", "both")}
    accuracy: dict[str, float] = {}
    recipe, one = BOTH, Engine(workers=1)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            collection = begun(Path(folder) / "a", recipe)
            start = time.perf_counter()
            collection.fill(one)
            seconds["prepare"].append(time.perf_counter() - start)
            start = time.perf_counter()
            data = TrainingSet.of(collection.zoo)
            after = train_generator(data, PrototypeAnchor(0.5), backbone, recipe)
            seconds["train"].append(time.perf_counter() - start)

            collection = begun(Path(folder) / "b", recipe)
            start = time.perf_counter()
            with collection.start(one) as running:
                seen = collection.arrivals(recipe.meta.iterations, running)
                data = TrainingSet.of(collection.zoo, seen)
                beside = train_generator(data, PrototypeAnchor(0.5), backbone, recipe)
                seconds["both"].append(time.perf_counter() - start)
    for name, generator in (("after", after), ("beside", beside)):
        found = score(lambda s, q, g=generator: query_logits(g.weights(s), q), valid, episodes)
        accuracy[name] = float(found.accuracy.mean())
    middle = {n: sorted(s)[len(s) // 2] for n, s in seconds.items()}
    longer = max(middle["prepare"], middle["train"])
    return [
        Figure("overlap", "prepare, s", middle["prepare"]),
        Figure("overlap", "train, s", middle["train"]),
        Figure("overlap", "overlapped, s", middle["both"]),
        Figure("overlap", "overlapped / max(prepare, train)", middle["both"] / longer, "<= 1.10"),
        Figure(
            "overlap",
            "overlapped / (prepare + train)",
            middle["both"] / (middle["prepare"] + middle["train"]),
        ),
        Figure("overlap", "accuracy, one after the other", accuracy["after"]),
        Figure("overlap", "accuracy, overlapped", accuracy["beside"]),
    ]


def workers(repeats: int) -> list[Figure]:
    """Shards a second of one worker and of two, once they run."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    recipe = replace(BOTH, tasks=replace(BOTH.tasks, per_setting=6000))
    for _ in range(repeats):
        for number, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                collection = begun(Path(folder) / "zoo", recipe)
                landed: list[float] = []
                with collection.start(Engine(workers=number)) as running:
                    while running.left:
                        now = running.poll()
                        landed += [time.perf_counter()] * len(now)
                # Without the start of the processes, and the end when one has nothing to do.
                inner = landed[4:-2]
                found.append((len(inner) - 1) / (inner[-1] - inner[0]))
    one, two = (sorted(r)[len(r) // 2] for r in rates.values())
    return [
        Figure("workers", "one worker, tasks/s", one * recipe.tasks.shard),
        Figure("workers", "two workers, tasks/s", two * recipe.tasks.shard),
        Figure("workers", "two / one", two / one, ">= 1.8"),
    ]


def cost(repeats: int) -> list[Figure]:
    """A model of the time of preparation and training, fitted here; see docs/scale.md."""
    rng = torch.Generator().manual_seed(0)
    rows, times = [], []
    for width in (64, 128, 256):
        for samples in (30, 80):
            x = torch.randn(200, 5 * samples // 5, width, generator=rng)
            y = torch.arange(5).repeat_interleave(samples // 5)
            space = head_space(width, 5)
            settings = Preparation(lr=0.01, steps=20, segments=4)
            run = in_turns(
                {
                    "": lambda s=space, x=x, y=y, p=settings: optimise(
                        head_predictor(s), torch.zeros(200, s.size), x, y, p
                    )
                },
                repeats,
            )
            rows.append(_of_task(steps=20, samples=samples, weights=space.size))
            times.append(run[""] / 200)
    task = _fitted(rows, times)
    error = _error(rows, times, task)
    figures = [
        Figure("cost", "a head: us", 1e6 * task[0]),
        Figure("cost", "a step of a head: ns for each sample x weight", 1e9 * task[1]),
        Figure("cost", "a step of a head: ns for each weight", 1e9 * task[2]),
        Figure("cost", "worst error of the fit, heads", error),
    ]
    rows, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(tasks=Tasks(per_setting=300, folds=0), anchor="prototype")
        collection = begun(Path(folder) / "zoo", recipe)
        collection.fill()
        data = TrainingSet.of(collection.zoo)
        for network in (EQUIVARIANT, Network(width=128, depth=3)):
            for learners, tasks in ((2, 8), (4, 8), (4, 24)):
                meta = MetaConfig(meta_batch=learners, tasks=tasks)
                t = trainer(data, network, meta)
                rows.append(_of_iteration(network, meta, flops_of(t)))
                times.append(in_turns({"": t.iterate}, repeats)[""])
    step = _fitted(rows, times)
    figures += [
        Figure("cost", "an inner step of a block: ms", 1000 * step[0]),
        Figure("cost", "products: GFLOP/s", 1e-9 / step[1] if step[1] else float("inf")),
        Figure("cost", "a sample, whatever the network: us", 1e6 * step[2]),
        Figure("cost", "worst error of the fit, training", _error(rows, times, step)),
    ]
    paper = Network(width=128, depth=3)
    meta = MetaConfig(iterations=6000, tasks=32)
    size = head_space(WIDTH, 5).size
    one_task = sum(a * b for a, b in zip(_of_task(24, 90, size), task, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        collection = begun(Path(folder) / "zoo", Recipe(tasks=Tasks(per_setting=20, folds=0)))
        collection.fill()
        flops = flops_of(trainer(TrainingSet.of(collection.zoo), paper, meta))
    one = sum(a * b for a, b in zip(_of_iteration(paper, meta, flops), step, strict=True))
    disk = 4 * size * (4 + 1)
    return [
        *figures,
        Figure("cost", "paper preset, 40,000 heads on one core: s", 40_000 * one_task),
        Figure("cost", "paper preset, 6,000 iterations on one core: hours", 6000 * one / 3600),
        Figure("cost", "10 million heads on 100 machines of 16 cores: s", 1e7 * one_task / 1600),
        Figure("cost", "10 million heads on disk: GB", 1e7 * disk / 1e9),
    ]


def _of_task(steps: int, samples: int, weights: int) -> list[float]:
    """What the time of solving a head is linear in."""
    return [1.0, steps * samples * weights, steps * weights]


def _of_iteration(network: Network, meta: MetaConfig, flops: float) -> list[float]:
    """What the time of an outer iteration is linear in."""
    samples = meta.meta_batch * meta.inner_steps * meta.tasks
    return [meta.inner_steps * (network.depth + 1), samples * flops, samples]


def _fitted(rows: list[list[float]], times: list[float]) -> list[float]:
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


def _error(rows: list[list[float]], times: list[float], found: list[float]) -> float:
    made = [sum(a * b for a, b in zip(row, found, strict=True)) for row in rows]
    return max(abs(m / t - 1) for m, t in zip(made, times, strict=True))


def _markdown(figures: list[Figure]) -> str:
    """A table for each part; what is measured of one thing stands in one line."""
    lines: list[str] = []
    for part in dict.fromkeys(f.part for f in figures):
        own = [f for f in figures if f.part == part]
        if part == "generate":
            lines += ["", "| | ms | tasks/s | floor / time |", "| --- | --- | --- | --- |"]
            things: dict[str, list[str]] = {}
            for f in own:
                things.setdefault(f.name.split(": ")[0], []).append(_shown(f.value))
            lines += [f"| {name} | {' | '.join(values)} |" for name, values in things.items()]
        else:
            lines += ["", "| | | goal |", "| --- | --- | --- |"]
            lines += [f"| {f.name.strip()} | {_shown(f.value)} | {f.goal or '-'} |" for f in own]
    return "\n".join(lines)


def _shown(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


PARTS = {f.__name__: f for f in (prepare, train, generate, overlap, workers, cost)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="runs per figure")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/scale.md")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for name in given.parts or PARTS:
        start = time.perf_counter()
        figures += PARTS[name](given.repeats)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    table = Table("part", "figure", "median", "goal")
    for f in figures:
        table.add_row(f.part, f.name, _shown(f.value), f.goal)
    if given.markdown:
        print(_markdown(figures))
    else:
        Console().print(table)
    if given.json:
        settings = {"threads": 1, "repeats": given.repeats, "torch": torch.__version__}
        rows = [asdict(f) for f in figures]
        given.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
