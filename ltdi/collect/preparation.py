"""How a task is solved: the settings, and optimisers of a few tensors that hold all tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.errors import InputError, check


@dataclass(frozen=True)
class Preparation:
    """How trajectories are made.

    Attributes:
        optimiser: "adam", "adamw" or "sgd" (with momentum 0.9).
        lr: Step size.
        steps: M, optimisation steps per task.
        segments: k, local targets kept; they end segments of equal length.
        weight_decay: L2 penalty on the distance to theta_0 (decoupled for adamw).
        sam_rho: Radius of sharpness-aware minimisation; 0 switches it off.
        batch: Samples per task and step; 0 takes all of them.
        label_smoothing: Of the cross entropy.
    """

    optimiser: str = "adam"
    lr: float = 0.05
    steps: int = 60
    segments: int = 3
    weight_decay: float = 0.0
    sam_rho: float = 0.0
    batch: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check("prepare", self, known={"optimiser": OPTIMISERS})
        if self.segments < 1 or self.steps < 1 or self.steps % self.segments:
            raise InputError(
                f"M = {self.steps} optimiser steps cannot hold k = {self.segments} equal segments",
                where="prepare.steps and prepare.segments",
                fix="choose steps as a multiple of segments",
            )
        for name, low in (("lr", 0.0), ("weight_decay", -1e-30), ("sam_rho", -1e-30)):
            # Written so that NaN is refused too.
            if not low < getattr(self, name) < float("inf"):
                raise InputError(
                    f"{name} = {getattr(self, name)} is no step size, penalty or radius",
                    where=f"prepare.{name}",
                    fix="give a finite number, not below 0; above 0 for lr",
                )


class Adam:
    """Torch's Adam (betas 0.9 and 0.999) over a few tensors that hold all tasks.

    Where torch has it, it is the kernel that `torch.optim.Adam(fused=True)` calls, without the
    20 us of bookkeeping around it, which are as much as 50 heads take.
    """

    def __init__(self, parts: list[Tensor], lr: float) -> None:
        self.parts, self.lr = parts, lr
        self.mean = [torch.zeros_like(x) for x in parts]
        self.square = [torch.zeros_like(x) for x in parts]
        self.steps = parts[0].new_zeros((), dtype=torch.float32)

    def step(self, gradients: list[Tensor]) -> None:
        """One step against contiguous gradients."""
        self.steps += 1
        if FUSED is None:
            return self._by_hand(gradients)
        FUSED(
            self.parts,
            gradients,
            self.mean,
            self.square,
            [],
            [self.steps] * len(self.parts),
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _by_hand(self, gradients: list[Tensor]) -> None:
        steps = int(self.steps)
        first, second = 1 - 0.9**steps, 1 - 0.999**steps
        for x, g, mean, square in zip(self.parts, gradients, self.mean, self.square, strict=True):
            mean.lerp_(g, 0.1)
            square.mul_(0.999).addcmul_(g, g, value=0.001)
            x.addcdiv_(mean, square.div(second).sqrt_().add_(1e-8), value=-self.lr / first)


class SGD:
    """Gradient descent with momentum 0.9; see `Adam`."""

    def __init__(self, parts: list[Tensor], lr: float) -> None:
        self.parts, self.lr = parts, lr
        self.mean = [torch.zeros_like(x) for x in parts]

    def step(self, gradients: list[Tensor]) -> None:
        """One step."""
        torch._foreach_mul_(self.mean, 0.9)
        torch._foreach_add_(self.mean, gradients)
        torch._foreach_add_(self.parts, self.mean, alpha=-self.lr)


# Not part of torch's public interface: a version may lack it.
FUSED: Callable[..., None] | None = getattr(torch, "_fused_adam_", None)
# The decay of adamw is towards theta_0, not towards zero, and so not the optimiser's.
OPTIMISERS: dict[str, type[Adam] | type[SGD]] = {"adam": Adam, "adamw": Adam, "sgd": SGD}
