"""Small zoos, and what is put into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltdi.anchor.frame import Frame
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, head_space
from ltdi.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]
D = 4
SPACE = head_space(D, 3)
ABOUT: dict[str, Any] = {"seed": 1, "prepare": {"lr": 0.1}}


def make_bank(seed: int = 0, classes: int = 5, width: int = D) -> FeatureBank:
    rng = torch.Generator().manual_seed(seed)
    centre = 2 * torch.randn(classes, 1, width, generator=rng)
    x = centre + torch.randn(classes, 8, width, generator=rng)
    names = tuple(f"c{i}" for i in range(classes))
    return FeatureBank(x.flatten(0, 1), torch.arange(classes + 1) * 8, names)


def create(
    path: Path,
    space: WeightSpace = SPACE,
    bank: FeatureBank | None = None,
    about: dict[str, Any] = ABOUT,
) -> Zoo:
    zoo = Zoo.create(path, space, about)
    zoo.keep_bank(bank or make_bank())
    return zoo


@dataclass(frozen=True)
class Solved:
    """The columns of heads of one setting; see `ltdi.pipeline.solve`."""

    theta: torch.Tensor
    anchor: torch.Tensor
    support: torch.Tensor
    query: torch.Tensor
    frame: torch.Tensor
    loss: torch.Tensor
    accuracy: torch.Tensor

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def way(self) -> int:
        return self.support.shape[1]

    @property
    def shot(self) -> int:
        return self.support.shape[2]


def load(zoo: Zoo) -> list[Solved]:
    return [Solved(**group.read()) for group in zoo.groups()]


def append(zoo: Zoo, name: str, tasks: Solved, finite: torch.Tensor | None = None) -> Any:
    setting = {"way": tasks.way, "shot": tasks.shot, "frame": int(tasks.frame[0])}
    return zoo.append(name, vars(tasks), finite, setting=setting)


def make_tasks(seed: int, tasks: int = 4, way: int = 3, shot: int = 2, frame: int = 0) -> Solved:
    rng = torch.Generator().manual_seed(seed)
    n = head_space(D, way).size
    return Solved(
        torch.randn(tasks, 2, n, generator=rng),
        torch.randn(tasks, n, generator=rng),
        torch.randint(40, (tasks, way, shot), generator=rng),
        torch.randint(40, (tasks, way, 3), generator=rng),
        torch.full((tasks,), frame),
        torch.rand(tasks, generator=rng),
        torch.rand(tasks, generator=rng),
    )


def assert_same(a: Solved, b: Solved) -> None:
    for name, value in vars(a).items():
        other = vars(b)[name]
        assert torch.equal(value, other) and value.dtype == other.dtype, name


def make_frames(seed: int, number: int = 3) -> list[Frame]:
    rng = torch.Generator().manual_seed(seed)
    return [
        Frame(
            torch.randn(D, generator=rng),
            torch.randn(D, D, generator=rng),
            torch.rand(D, generator=rng),
        )
        for _ in range(number)
    ]


def assert_same_frames(found: list[Frame], wanted: list[Frame]) -> None:
    for a, b in zip(found, wanted, strict=True):
        for name, value in vars(b).items():
            assert torch.equal(getattr(a, name), value), name


NET = WeightSpace.from_shapes({"fc.weight": (3, 2), "fc.bias": (3,)})


def net_columns(seed: int, tasks: int = 5) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "theta": torch.randn(tasks, 2, NET.size, generator=rng),
        "condition": torch.randn(tasks, 4, generator=rng).bfloat16(),
        "item": torch.randint(1 << 40, (tasks,), generator=rng),
        "flag": torch.rand(tasks, 1, generator=rng) > 0.5,
        "loss": torch.rand(tasks, generator=rng),
    }
