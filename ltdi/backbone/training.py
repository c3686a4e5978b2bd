"""Training of a backbone as a prototypical network, and the loop that trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.backbone.augment import distort
from ltdi.backbone.backbone import Backbone, build
from ltdi.backbone.precision import autocast
from ltdi.backbone.transform import InputTransform
from ltdi.data import ImageSet
from ltdi.errors import DivergedError, InputError
from ltdi.tasks import sample_episodes

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class ProtoTraining:
    """Training of a conv backbone with the ProtoNet loss.

    Attributes:
        iterations: Steps.
        classes: Classes per batch.
        images: Images per class; each is classified against the mean of the others.
        lr: Peak step size of AdamW.
        weight_decay: Of AdamW.
        augment: Strength of random affine distortion, 0 for none.
        width: Of the `ConvNet`.
        seed: Of initialisation and sampling.
    """

    iterations: int = 600
    classes: int = 64
    images: int = 4
    lr: float = 5e-3
    weight_decay: float = 5e-4
    augment: float = 1.0
    width: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(
                f"images must be at least 2, got {self.images}: each is classified against others",
                where="training.images",
                fix="choose training.images >= 2",
            )


def train_backbone(
    images: ImageSet,
    training: ProtoTraining,
    *,
    transform: InputTransform | None = None,
    progress: Progress | None = None,
) -> Backbone:
    """Train a conv net as a prototypical network of many ways (Snell et al., 2017).

    Every image of a batch is a query for the leave-one-out prototypes, so that no image is spent
    on support alone.

    Classes that a generator is trained on should not be among the images. The transform is that of
    drawn characters by default.

    Raises:
        DivergedError: If the loss is not finite.
    """
    p = training
    transform = transform or InputTransform()
    config = {
        "kind": "conv",
        "channels": transform.channels,
        "width": p.width,
        "size": transform.size,
    }
    classes = min(p.classes, len(images.classes))
    rng = torch.Generator().manual_seed(p.seed)
    net = trainable(config, p.seed)
    scale = nn.Parameter(torch.zeros(()))

    def loss() -> Tensor:
        batch = sample_episodes(
            images.offsets,
            way=classes,
            shot=p.images,
            query=0,
            episodes=1,
            seed=int(torch.randint(2**62, (), generator=rng)),
        )
        x = transform(images.images[batch.support[0].flatten()])
        z = forward(net, distort(x, p.augment, rng))
        return leave_one_out_loss(z.unflatten(0, (classes, p.images)), scale.exp())

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, p.iterations // 20))
        return warm * (1 - step / p.iterations)

    optimiser = torch.optim.AdamW([*net.parameters(), scale], lr=p.lr, weight_decay=p.weight_decay)
    descend(optimiser, loss, rate, p.iterations, progress)
    return Backbone(net, transform, config)


def leave_one_out_loss(z: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy of every sample against the prototypes, its own made without it.

    Args:
        z: [classes, images, D].
        scale: [] inverse temperature of the mean squared distance.
    """
    classes, images, width = z.shape
    total = z.sum(1)
    query = z.flatten(0, 1)
    label = torch.arange(classes).repeat_interleave(images)
    distance = torch.cdist(query, total / images).square()
    own = (z - (total.unsqueeze(1) - z) / (images - 1)).square().sum(-1).flatten()
    distance = distance.scatter(1, label.unsqueeze(1), own.unsqueeze(1))
    return F.cross_entropy(-scale * distance / width, label)


def trainable(config: dict[str, object], seed: int) -> nn.Module:
    """An untrained net in training mode, in the memory layout of `Backbone`."""
    net = build(config, seed).train()
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def forward(net: nn.Module, x: Tensor) -> Tensor:
    """float32 features [n, D] of inputs [n, channels, size, size], in low precision if possible."""
    with autocast("auto"):
        z: Tensor = net(x.contiguous(memory_format=torch.channels_last))
    return z.float()


def descend(
    optimiser: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    rate: Callable[[int], float],
    steps: int,
    progress: Progress | None = None,
) -> None:
    """Take optimiser steps on losses of fresh batches.

    The optimiser's step sizes are the peaks, of which `rate` gives each step's share; `loss` draws
    a batch.

    Raises:
        DivergedError: If a loss is not finite.
    """
    peaks = [group["lr"] for group in optimiser.param_groups]
    for step in range(steps):
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * rate(step)
        current = loss()
        value = float(current.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the backbone's loss became {value} in step {step + 1} of {steps}",
                where="training.lr",
                fix=f"choose a smaller step size than {peaks[0]:g}",
            )
        optimiser.zero_grad()
        current.backward()
        optimiser.step()
        if progress:
            progress(step + 1, steps, value)
