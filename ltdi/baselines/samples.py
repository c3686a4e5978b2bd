"""Plain generators of nets like some checkpoints: they learn nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.samples import Checkpoints


def plain_samples(
    name: str,
    zoo: Checkpoints,
    count: int,
    rng: torch.Generator,
    distance: float,
    centres: Tensor | None = None,
) -> Tensor:
    """Nets [count, n] of a generator that learns nothing.

    Args:
        name: "noise" adds noise to a checkpoint, in proportion to each weight's spread, until it is
            as far from it as `distance`; "average-2" is the mean of two checkpoints, "average-run"
            of all of one training, "average" of all; "gaussian" draws every weight by itself,
            "gaussian-run" around the mean of one training, "gaussian-full" with the covariance of
            the checkpoints.
        zoo: Checkpoints.
        count: How many.
        rng: Source of randomness.
        distance: Of the nets of `lt-di` to the nearest checkpoint.
        centres: [C, n] in the place of the mean of each training.
    """
    theta = zoo.last
    centres = zoo.centres() if centres is None else centres
    pick = torch.randint(len(theta), (2, count), generator=rng)
    if name == "noise":
        noise = zoo.spread() * torch.randn(count, theta.shape[1], generator=rng)
        noisy: Tensor = theta[pick[0]] + distance * noise / noise.norm(dim=1, keepdim=True)
        return noisy
    if name == "average-2":
        return (theta[pick[0]] + theta[pick[1]]) / 2
    if name == "average-run":
        return centres[zoo.run[pick[0]]]
    if name == "gaussian-run":
        noise = zoo.spread() * torch.randn(count, theta.shape[1], generator=rng)
        return centres[zoo.run[pick[0]]] + noise
    if name == "average":
        return theta.mean(0).expand(count, -1)
    mean = theta.mean(0)
    if name == "gaussian":
        return mean + theta.std(0) * torch.randn(count, theta.shape[1], generator=rng)
    weights = torch.randn(count, len(theta), generator=rng) / (len(theta) - 1) ** 0.5
    drawn: Tensor = mean + weights @ (theta - mean)
    return drawn
