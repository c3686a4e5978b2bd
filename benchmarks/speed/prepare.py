"""Solving many tasks at once, against one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.common import WIDTH, Figure, in_turns, matmul_rate
from ltdi.backbone import InputTransform
from ltdi.collect import HeadPredictor, Preparation, module_predictor, optimise
from ltdi.nets import NetConfig, NetHost, NetPredictor, SmallNet
from ltdi.nets.host import LAYER
from ltdi.recipe import NET_RECIPE
from ltdi.weights import WeightSpace, head_space

WAY, TASKS, SAMPLES = 5, 400, 80
# Solved by the loop: more would only take longer.
FEW = 3
SETTINGS = Preparation(lr=0.01, steps=60, segments=4)


def prepare(repeats: int) -> list[Figure]:
    """Heads, perceptrons and conv nets."""
    rng = torch.Generator().manual_seed(0)
    rate = matmul_rate(repeats)
    return [
        *heads(repeats, rng),
        *perceptrons(repeats, rng),
        *convs(NetConfig(), 6, repeats, rate, rng),
        *convs(NetConfig(), 1, repeats, rate, rng),
        *convs(NetConfig(size=14), 6, repeats, rate, rng),
        *convs(NetConfig(size=14, widths=(8, 8, 8)), 6, repeats, rate, rng),
    ]


def solve(
    net: nn.Module, samples: Tensor, labels: Tensor, steps: int, *, tuned: bool = False
) -> None:
    """One task as torch alone solves it, or as it does with channels last and a fused optimiser."""
    if tuned:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        samples = samples.contiguous(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), lr=0.01, fused=tuned)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(net(samples), labels).backward()
        adam.step()


def against_a_loop(
    thing: str,
    space: WeightSpace,
    goal: str,
    repeats: int,
    once: Callable[[], object],
    one: Callable[[int], None],
) -> list[Figure]:
    """Milliseconds of one of many tasks solved at once, and how much longer a loop takes."""

    def loop_over() -> None:
        for i in range(FEW):
            one(i)

    seconds = in_turns({"once": once, "loop": loop_over}, repeats)
    at_once, loop = seconds["once"] / TASKS, seconds["loop"] / FEW
    name = f"a {thing} of {space.size} weights, {SAMPLES} samples, {SETTINGS.steps} steps: ms"
    return [
        Figure("prepare", name, 1000 * at_once),
        Figure("prepare", f"{thing}s: loop / at once", loop / at_once, goal),
    ]


def heads(repeats: int, rng: torch.Generator) -> list[Figure]:
    """Linear heads."""
    space = head_space(WIDTH, WAY)
    x = torch.randn(TASKS, SAMPLES, WIDTH, generator=rng)
    y = torch.arange(WAY).repeat_interleave(SAMPLES // WAY)
    start = torch.zeros(TASKS, space.size)
    return against_a_loop(
        "head",
        space,
        ">= 30",
        3 * repeats,
        lambda: optimise(HeadPredictor(space), start, x, y, SETTINGS),
        lambda i: solve(nn.Linear(WIDTH, WAY), x[i], y, SETTINGS.steps),
    )


def perceptrons(repeats: int, rng: torch.Generator) -> list[Figure]:
    """Networks of two layers."""

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, WAY))

    space = WeightSpace.from_module(layers())
    x = torch.randn(TASKS, SAMPLES, 64, generator=rng)
    y = torch.arange(WAY).repeat_interleave(SAMPLES // WAY)

    def once() -> object:
        start = space.flatten(dict(layers().named_parameters())).detach().expand(TASKS, -1)
        return optimise(module_predictor(layers(), space), start, x, y, SETTINGS)

    def one(i: int) -> None:
        solve(layers(), x[i], y, SETTINGS.steps)

    return against_a_loop("perceptron", space, ">= 4", repeats, once, one)


def convs(
    config: NetConfig, shots: int, repeats: int, rate: float, rng: torch.Generator
) -> list[Figure]:
    """Small conv nets, and the floor that no batching gets below."""
    host = NetHost(config, InputTransform(config.size, config.channels))
    space, nets, count = host.space(WAY), 32, WAY * shots
    images = torch.rand(nets, count, 1, config.size, config.size, generator=rng)
    labels = torch.arange(WAY).repeat_interleave(shots)
    net = SmallNet(config, WAY)
    start = space.flatten({k: p.detach() for k, p in net.named_parameters()})
    plan = replace(NET_RECIPE.prepare, steps=12, segments=4, batch=0)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(images[0]), labels).backward()
    floor = plan.steps * counter.get_total_flops() / rate

    def loop_over(tuned: bool) -> None:
        for i in range(FEW):
            solve(SmallNet(config, WAY), images[i], labels, plan.steps, tuned=tuned)

    seconds = in_turns(
        {
            "at once": lambda: optimise(
                NetPredictor(host, space), start.expand(nets, -1), images, labels, plan
            ),
            "loop": lambda: loop_over(False),
            "tuned": lambda: loop_over(True),
            "convolutions": lambda: convolutions(config, nets, count, plan.steps),
        },
        repeats,
    )
    once, loop = seconds["at once"] / nets, seconds["loop"] / FEW
    side = config.size
    name = f"conv net of {space.size} weights, {count} images of {side} x {side}, 12 steps"
    return [
        Figure("prepare", f"{name}: ms", 1000 * once),
        Figure("prepare", "  loop / at once", loop / once, ">= 4"),
        Figure("prepare", "  a tuned loop / at once", seconds["tuned"] / FEW / once),
        Figure("prepare", "  loop / convolutions alone", loop / (seconds["convolutions"] / nets)),
        Figure("prepare", "  loop / floor: the most that there is to win", loop / floor),
    ]


def convolutions(config: NetConfig, nets: int, count: int, steps: int) -> None:
    """What the library's convolutions take of solving nets, forward and backward, and no more."""
    each = min(nets, max(1, LAYER // (4 * count * config.largest)))
    last = {"memory_format": torch.channels_last}
    inner = (config.channels, *config.widths)
    sides = (config.size, *config.sides)
    for _ in range(-(-nets // each)):
        for i, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
            x = torch.ones(count, each * inner[i], sides[i], sides[i]).contiguous(**last)
            w = torch.ones(each * inner[i + 1], inner[i], kernel, kernel).contiguous(**last)
            with torch.inference_mode():
                for _ in range(steps):
                    y = F.conv2d(x, w, None, stride, 1, 1, each)
                    how = ([stride] * 2, [1, 1], [1, 1], False, [0, 0], each)
                    torch.ops.aten.convolution_backward(y, x, w, None, *how, [i > 0, True, False])
