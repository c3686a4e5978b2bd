"""Comparisons of generated heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Task = tuple[Tensor, Tensor]
Draw = Callable[..., Task]


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 2e-5) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=atol)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def flat(head: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in head.values()])
