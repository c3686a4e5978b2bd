"""Checkpoints of one task: how they are made, and what is read of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.backbone import InputTransform
from ltdi.collect import optimise
from ltdi.data import ImageSet
from ltdi.errors import InputError
from ltdi.generator.samples import sample_space
from ltdi.nets import NetConfig, NetHost, NetPredictor, SmallNet
from ltdi.progress import Progress
from ltdi.recipe import Recipe
from ltdi.seeding import seeded
from ltdi.weights import WeightSpace

# Nets whose predictions are worked out at once, and steps of training between fresh images.
_AT_ONCE, _CHUNK, _POOL = 25, 40, 1024


@dataclass(frozen=True)
class Trainings:
    """How checkpoints are made.

    Attributes:
        net: Architecture.
        runs: Independent trainings, each from an initialisation of its own.
        steps: Of Adam, of every run.
        branches: Checkpoints of every run: trainings that go on from its end on other batches.
        branch_steps: Of Adam, of every branch.
        images: Most images that nets are trained on; 0 for all.
        wrong: Share of them with the label of another class, the same for all nets.
    """

    net: NetConfig
    runs: int
    steps: int
    branches: int
    branch_steps: int
    images: int = 0
    wrong: float = 0.0


@dataclass(frozen=True)
class Checkpoints:
    """A zoo of checkpoints of one task.

    Attributes:
        theta: [E, k, n] local targets of the branches; the checkpoints are the last.
        run: [E] which training a checkpoint branched off.
        space: Weight space.
        host: Architecture.
        images: [N, channels, size, size] transformed training images.
        labels: [N].
        valid: How many of them, from the end, no net was trained on.
        taught: Images and labels that nets were trained on.
    """

    theta: Tensor
    run: Tensor
    space: WeightSpace
    host: NetHost
    images: Tensor
    labels: Tensor
    valid: int
    taught: tuple[Tensor, Tensor]

    @property
    def last(self) -> Tensor:
        """[E, n] the checkpoints."""
        return self.theta[:, -1]

    def centres(self) -> Tensor:
        """[runs, n] mean of the checkpoints of every training."""
        return self.path()[-1]

    def path(self) -> Tensor:
        """[k, runs, n] mean over the branches of every training, at each local target."""
        runs = range(int(self.run.max()) + 1)
        return torch.stack([self.theta[self.run == r].mean(0) for r in runs], 1)

    def at(self, i: int) -> Checkpoints:
        """As if branches had ended at local target i = 1..k: its nets are the checkpoints."""
        return replace(self, theta=self.theta[:, i - 1 : i])

    def spread(self) -> Tensor:
        """[n] standard deviation of every weight around the centre of its training."""
        apart = self.last - self.centres()[self.run]
        return apart.square().mean(0).sqrt()

    def validation(self, most: int = 500) -> tuple[Tensor, Tensor]:
        """Images that no net was trained on, at most so many, and their labels."""
        start = len(self.labels) - self.valid
        return self.images[start : start + most], self.labels[start : start + most]


def transformed(images: ImageSet, host: NetHost, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `most` images in a random order, as the net sees them, and their labels."""
    labels = images.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:most]
    return host.transform(images.images[order]), labels[order]


def train_nets(
    theta: Tensor,
    steps: int,
    data: tuple[Tensor, Tensor],
    host: NetHost,
    space: WeightSpace,
    recipe: Recipe,
    rng: torch.Generator,
    segments: int = 1,
) -> Tensor:
    """Train nets at once on one data set, each on batches of its own.

    Args:
        theta: [E, n] where they start.
        steps: Of each, a multiple of `segments`.
        data: [N, channels, size, size] images as the net sees them, and [N] labels.
        host: Architecture.
        space: Of the nets.
        recipe: Its preparation has the optimiser; steps and segments are those given here.
        rng: Draws batches.
        segments: k, local targets kept.

    Returns:
        [E, k, n].

    Raises:
        InputError: If the steps do not part into segments of one length.
    """
    if steps < segments or steps % segments:
        raise InputError(
            f"{steps} steps do not part into {segments} segments of one length",
            where="prepare.segments",
            fix=f"choose a multiple of {segments} steps",
        )
    images, labels = data
    predict = NetPredictor(host, space, images)
    kept, done, every = [], 0, steps // segments
    while done < steps:
        now = min(_CHUNK, every - done % every)
        # Numbers of images, not images: nets share them.
        pick = torch.randint(len(labels), (len(theta), _POOL), generator=rng)
        plan = replace(recipe.prepare, steps=now, segments=1)
        path = optimise(predict, theta, pick, labels[pick], plan, rng=rng)
        theta, done = path.theta[:, -1], done + now
        if done % every == 0:
            kept.append(theta)
    return torch.stack(kept, 1)


def collect_checkpoints(
    parts: dict[str, ImageSet],
    trainings: Trainings,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress,
) -> Checkpoints:
    """Train some nets, and branches from the end of each.

    Raises:
        InputError: If the steps do not part into segments of one length.
    """
    p, c = trainings, trainings.net
    mean, std = (0.49, 0.48, 0.45)[: c.channels], (0.25,) * c.channels
    host = NetHost(c, InputTransform(c.size, c.channels, "keep", mean, std))
    classes = len(parts["train"].classes)
    space = sample_space(host, classes)
    images, labels = transformed(parts["train"], host, 50_000, seed)
    valid = max(1, min(2000, len(labels) // 5))
    rng = torch.Generator().manual_seed(seed)
    data = _training_data(images[:-valid], labels[:-valid], classes, p, rng)
    with seeded(seed):
        nets = [SmallNet(c, classes) for _ in range(p.runs)]
    start = torch.stack([space.flatten(dict(net.state_dict())).detach() for net in nets])
    ends = train_nets(start, p.steps, data, host, space, recipe, rng)[:, 0]
    theta, segments = [], recipe.prepare.segments
    for run, end in enumerate(ends):
        for first in range(0, p.branches, _AT_ONCE):
            count = min(_AT_ONCE, p.branches - first)
            branch = end.expand(count, -1)
            theta.append(
                train_nets(branch, p.branch_steps, data, host, space, recipe, rng, segments)
            )
            progress("checkpoints", run * p.branches + first + count, p.runs * p.branches, "")
    which = torch.arange(p.runs).repeat_interleave(p.branches)
    return Checkpoints(torch.cat(theta), which, space, host, images, labels, valid, data)


def _training_data(
    images: Tensor, labels: Tensor, classes: int, trainings: Trainings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What nets are trained on: as many images as they may have, some with a wrong label."""
    count = min(trainings.images or len(labels), len(labels))
    labels = labels[:count]
    if trainings.wrong > 0:
        other = torch.randint(1, classes, labels.shape, generator=rng)
        wrong = torch.rand(labels.shape, generator=rng) < trainings.wrong
        labels = torch.where(wrong, (labels + other) % classes, labels)
    return images[:count], labels
