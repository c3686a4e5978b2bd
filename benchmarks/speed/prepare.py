"""Solving many tasks at once, against one after the other."""

from __future__ import annotations

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
        net = net.to(memory_format=torch.channels_last)
        samples = samples.contiguous(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), lr=0.01, fused=tuned)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(net(samples), labels).backward()
        adam.step()


def heads(repeats: int, rng: torch.Generator) -> list[Figure]:
    """Linear heads."""
    space = head_space(WIDTH, WAY)
    x = torch.randn(TASKS, SAMPLES, WIDTH, generator=rng)
    y = torch.arange(WAY).repeat_interleave(SAMPLES // WAY)
    start = torch.zeros(TASKS, space.size)
    seconds = in_turns(
        {
            "at once": lambda: optimise(HeadPredictor(space), start, x, y, SETTINGS),
            "loop": lambda: [
                solve(nn.Linear(WIDTH, WAY), x[i], y, SETTINGS.steps) for i in range(FEW)
            ],
        },
        3 * repeats,
    )
    once, loop = seconds["at once"] / TASKS, seconds["loop"] / FEW
    name = f"a head of {space.size} weights, {SAMPLES} samples, {SETTINGS.steps} steps: ms"
    return [
        Figure("prepare", name, 1000 * once),
        Figure("prepare", "heads: loop / at once", loop / once, ">= 30"),
    ]


def perceptrons(repeats: int, rng: torch.Generator) -> list[Figure]:
    """Networks of two layers."""

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, WAY))

    space = WeightSpace.from_module(layers())
    x = torch.randn(TASKS, SAMPLES, 64, generator=rng)
    y = torch.arange(WAY).repeat_interleave(SAMPLES // WAY)
    seconds = in_turns(
        {
            "at once": lambda: optimise(
                module_predictor(layers(), space),
                space.flatten(dict(layers().named_parameters())).detach().expand(TASKS, -1),
                x,
                y,
                SETTINGS,
            ),
            "loop": lambda: [solve(layers(), x[i], y, SETTINGS.steps) for i in range(FEW)],
        },
        repeats,
    )
    once, loop = seconds["at once"] / TASKS, seconds["loop"] / FEW
    size, steps = space.size, SETTINGS.steps
    name = f"a perceptron of {size} weights, {SAMPLES} samples, {steps} steps: ms"
    return [
        Figure("prepare", name, 1000 * once),
        Figure("prepare", "perceptrons: loop / at once", loop / once, ">= 4"),
    ]


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
    seconds = in_turns(
        {
            "at once": lambda: optimise(
                NetPredictor(host, space), start.expand(nets, -1), images, labels, plan
            ),
            "loop": lambda: [
                solve(SmallNet(config, WAY), images[i], labels, plan.steps) for i in range(FEW)
            ],
            "tuned": lambda: [
                solve(SmallNet(config, WAY), images[i], labels, plan.steps, tuned=True)
                for i in range(FEW)
            ],
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
                    torch.ops.aten.convolution_backward(
                        y,
                        x,
                        w,
                        None,
                        [stride] * 2,
                        [1, 1],
                        [1, 1],
                        False,
                        [0, 0],
                        each,
                        [i > 0, True, False],
                    )
