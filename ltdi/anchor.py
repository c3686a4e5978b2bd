"""Anchors: the cheap head that generation starts from.

The denoiser learns the residual to its anchor (design section 3, point 2), so an untrained
generator is as good as the anchor, and training adds what many solved tasks know beyond it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.errors import InputError, unknown
from ltdi.tasks import FeatureBank
from ltdi.weights import (
    WeightSpace,
    centre_classes,
    head_logits,
    head_space,
    prototype_head,
)


class Anchor(nn.Module):
    """Maps the support of B tasks to the weights [B, n] that their residuals are added to."""

    name = "none"

    def forward(self, support: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """Weights of the anchor.

        Args:
            support: [B, way, shot, D] features.
            mask: [B, way, shot] 1 for real samples.
            space: Weight space of the tasks.
        """
        return support.new_zeros(len(support), space.size)


class SharedAnchor(Anchor):
    """One meta-learned initialisation theta_0 for every task."""

    name = "shared"

    def __init__(self, theta_0: Tensor) -> None:
        super().__init__()
        self.register_buffer("theta_0", theta_0)
        self.theta_0: Tensor

    def forward(self, support: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.forward`."""
        if len(self.theta_0) != space.size:
            raise InputError(
                f"the shared initialisation has {len(self.theta_0)} numbers, the task needs "
                f"{space.size}",
                where="anchor",
                fix="use the way that theta_0 was learned for",
            )
        return self.theta_0.expand(len(support), -1)


class PrototypeAnchor(Anchor):
    """Nearest class mean (Snell et al., 2017) with a calibrated inverse temperature."""

    name = "prototype"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.scale: Tensor

    def forward(self, support: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.forward`."""
        return space.flatten(prototype_head(masked_mean(support, mask), self.scale))


class GaussianAnchor(Anchor):
    """The Bayes head when classes are Gaussians with one shared covariance.

    Class means are drawn from N(mu, between) and samples from N(mean, within), both fitted on the
    training classes (probabilistic linear discriminant analysis, Ioffe, 2006). The basis makes
    `within` the identity and `between` diagonal, so a class mean is shrunk coordinate by
    coordinate: m_j * b_j / (b_j + 1 / shot).
    """

    name = "gaussian"

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.eye(features))
        self.register_buffer("between", torch.ones(features))
        self.register_buffer("scale", torch.tensor(0.5))
        self.mean: Tensor
        self.basis: Tensor
        self.between: Tensor
        self.scale: Tensor

    @torch.no_grad()
    def fit(self, bank: FeatureBank, ridge: float) -> GaussianAnchor:
        """Estimate both covariances on the classes of `bank`.

        Args:
            bank: Training features.
            ridge: Isotropic part added to `within`, as a share of its mean variance.
        """
        x = bank.features.double()
        counts = bank.offsets.diff()
        label = torch.arange(len(counts)).repeat_interleave(counts)
        means = torch.zeros(len(counts), x.shape[1], dtype=torch.double)
        means = means.index_add(0, label, x) / counts[:, None]
        rest = x - means[label]
        within = rest.T @ rest / max(1, len(x) - len(counts))
        centred = means - means.mean(0)
        between = centred.T @ centred / max(1, len(counts) - 1)
        # The samples' own noise in the class means.
        between = between - within * (1 / counts.double()).mean()
        within = within + ridge * within.diagonal().mean() * torch.eye(len(within))
        lower = torch.linalg.cholesky(within)
        whitened = torch.linalg.solve_triangular(lower, between, upper=False)
        whitened = torch.linalg.solve_triangular(lower, whitened.mT, upper=False)
        value, vector = torch.linalg.eigh((whitened + whitened.mT) / 2)
        self.mean.copy_(means.mean(0))
        self.basis.copy_(torch.linalg.solve_triangular(lower.mT, vector, upper=True))
        self.between.copy_(value.clamp(min=0))
        return self

    def forward(self, support: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.forward`."""
        z = (masked_mean(support, mask) - self.mean) @ self.basis
        shrink = self.between / (self.between + 1 / mask.sum(-1, keepdim=True))
        z = z * shrink
        weight = 2 * self.scale * z @ self.basis.T
        bias = -self.scale * z.square().sum(-1) - weight @ self.mean
        return space.flatten(centre_classes({"weight": weight, "bias": bias}))


def make_empty_anchor(name: str, features: int) -> Anchor:
    """An anchor of a kind, to load a state dict into.

    Raises:
        InputError: If the name is unknown.
    """
    makers: dict[str, Callable[[], Anchor]] = {
        Anchor.name: Anchor,
        PrototypeAnchor.name: PrototypeAnchor,
        GaussianAnchor.name: lambda: GaussianAnchor(features),
    }
    if name not in makers:
        raise unknown("anchor", name, makers)
    return makers[name]()


def masked_mean(support: Tensor, mask: Tensor) -> Tensor:
    """Class means [B, way, D] of support [B, way, shot, D] under mask [B, way, shot]."""
    keep = mask.unsqueeze(-1)
    # Not only multiplied away: 0 * inf and 0 * nan would reach the class.
    return torch.where(keep > 0, support, 0.0).sum(-2) / keep.sum(-2)


def fit_anchor(
    name: str,
    train: FeatureBank,
    valid: FeatureBank,
    *,
    way: int,
    shots: tuple[int, ...],
    seed: int,
    ridges: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0),
) -> Anchor:
    """Fit a data-dependent anchor: estimates on `train`, free choices on `valid` classes.

    Raises:
        InputError: If the name is unknown.
    """
    if name == "none":
        return Anchor()
    if name == "prototype":
        return _calibrate(PrototypeAnchor(), valid, way, shots, seed)[0]
    if name == "gaussian":
        fitted = [
            _calibrate(GaussianAnchor(train.width).fit(train, ridge), valid, way, shots, seed)
            for ridge in ridges
        ]
        return min(fitted, key=lambda pair: pair[1])[0]
    raise unknown("anchor", name, ("none", "prototype", "gaussian"), where="recipe.anchor")


@torch.no_grad()
def _calibrate(
    anchor: PrototypeAnchor | GaussianAnchor,
    valid: FeatureBank,
    way: int,
    shots: tuple[int, ...],
    seed: int,
) -> tuple[Anchor, float]:
    """Set the inverse temperature that minimises the validation NLL; return it with that NLL."""
    way = min(way, len(valid.classes))
    space = head_space(valid.width, way)
    anchor.scale.fill_(1.0)
    logits = []
    for shot in shots:
        query = min(15, int(valid.offsets.diff().min()) - shot)
        if query < 1:
            raise InputError(
                f"validation classes have too few samples for {shot} shots and a query",
                where="tasks.shots",
                fix="choose fewer shots, or give more images per class",
            )
        episodes = valid.episodes(way=way, shot=shot, query=query, episodes=200, seed=seed)
        support = valid.features[episodes.support]
        theta = anchor(support, torch.ones(support.shape[:3]), space)
        q = valid.features[episodes.query].flatten(1, 2)
        logits.append(head_logits(theta, q).flatten(0, 1))
    stacked = torch.cat(logits)
    labels = torch.cat(
        [torch.arange(way).repeat_interleave(len(x) // (200 * way)).repeat(200) for x in logits]
    )
    grid = torch.logspace(-4, 2, 61) / stacked.std().clamp(min=1e-9)
    losses = torch.stack([F.cross_entropy(s * stacked, labels) for s in grid])
    best = int(losses.argmin())
    anchor.scale.fill_(float(grid[best]))
    return anchor, float(losses[best])
