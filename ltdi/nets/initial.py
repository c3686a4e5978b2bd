"""The shared initialisation: one theta_0 that a single gradient step turns into a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.backbone.augment import distort
from ltdi.backbone.training import descend
from ltdi.data import ImageSet
from ltdi.nets.host import NetHost
from ltdi.nets.net import SmallNet
from ltdi.seeding import seeded
from ltdi.tasks import sample_episodes


@dataclass(frozen=True)
class InitialTraining:
    """How theta_0 is meta-learned.

    Attributes:
        iterations: Tasks, one an iteration.
        classes: Ways of a task; many ways teach more than few.
        images: Of a class, support and query together.
        lr: Peak step size of AdamW.
        weight_decay: Of AdamW.
        augment: Strength of random affine distortions.
        seed: Of everything.
    """

    iterations: int = 5000
    classes: int = 64
    images: int = 6
    lr: float = 5e-3
    weight_decay: float = 0.01
    augment: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Initial:
    """A learned initialisation.

    Attributes:
        theta_0: [n - class rows] all weights below the head; class rows start at zero.
        rate: Step size of the one gradient step that it was learned for; the loss in units of
            one sample per class (`NetHost.gradient`).
    """

    theta_0: Tensor
    rate: float


def learn_initial(
    images: ImageSet,
    host: NetHost,
    training: InitialTraining,
    progress: Callable[[int, int, float], None] | None = None,
) -> Initial:
    """Meta-learn theta_0 by MAML (Finn et al., 2017) with one inner step from a head of zeros.

    At such a head every class has the same probability and nothing reaches the layers below, so
    the inner step is known in closed form, (class means minus their mean) times the step size, and
    differentiating through it needs no second derivative. That is exact second-order MAML at the
    price of ordinary training, with tasks of any way.

    Args:
        images: Classes that the zoo's tasks should not have.
        host: Architecture and input transform.
        training: Budget.
        progress: Called as progress(iteration, iterations, loss).

    Raises:
        DivergedError: If the loss is not finite.
    """
    p, config = training, host.config
    rng = torch.Generator().manual_seed(p.seed)
    with seeded(p.seed):
        net = SmallNet(config, 2)
    log_rate = nn.Parameter(torch.tensor(-math.log(config.features**0.5)))
    classes = min(p.classes, len(images.classes))
    count = min(p.images, int(images.counts.min()))

    def loss() -> Tensor:
        seed, shots = torch.randint(2**62, (2,), generator=rng).tolist()
        shot = (1, count // 2)[shots % 2] if count > 2 else 1
        batch = sample_episodes(
            images.offsets, way=classes, shot=count, query=0, episodes=1, seed=seed
        )
        x = host.transform(images.images[batch.support[0].flatten()])
        z = net.features(distort(x, p.augment, rng)).unflatten(0, (classes, count))
        mean = z[:, :shot].mean(1)
        rows = log_rate.exp() * (mean - mean.mean(0))
        logits = z[:, shot:].flatten(0, 1) @ rows.T
        label = torch.arange(classes).repeat_interleave(count - shot)
        return F.cross_entropy(logits, label)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / max(1, p.iterations // 20)) * (1 - step / p.iterations)

    body = [*net.layers.parameters(), log_rate]
    optimiser = torch.optim.AdamW(body, lr=p.lr, weight_decay=p.weight_decay)
    descend(optimiser, loss, rate, p.iterations, progress)
    space = host.space(2)
    theta = space.flatten(dict(net.state_dict()))[: space.size - space.class_size]
    return Initial(theta.detach(), float(log_rate.detach().exp()))
