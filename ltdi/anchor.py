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
from ltdi.frame import Frame
from ltdi.tasks import FeatureBank
from ltdi.weights import (
    WeightSpace,
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
        return self.local(support, mask, space)

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """Weights in the coordinates of `frame`, from a support in those coordinates."""
        return z.new_zeros(len(z), space.size)

    def frame(self, width: int) -> Frame:
        """The coordinates that generation takes place in, for features of a width."""
        return Frame.identity(width)

    def refit(self, bank: FeatureBank) -> Anchor:
        """The same anchor had it been fitted on other classes; itself if it learns nothing."""
        return self


class SharedAnchor(Anchor):
    """One meta-learned initialisation theta_0 for every task.

    Where it has no class rows, those of the task start at zero: classes are alike before their
    samples are seen, and one theta_0 serves any way.
    """

    name = "shared"

    def __init__(self, theta_0: Tensor) -> None:
        super().__init__()
        self.register_buffer("theta_0", theta_0)
        self.theta_0: Tensor

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.local`."""
        theta, rows = self.theta_0, space.class_size
        if len(theta) == space.size - rows:
            theta = F.pad(theta, (0, rows))
        if len(theta) != space.size:
            raise InputError(
                f"the shared initialisation has {len(self.theta_0)} numbers, the task needs "
                f"{space.size}, or {space.size - rows} without its class rows",
                where="anchor",
                fix="use the way that theta_0 was learned for",
            )
        return theta.expand(len(z), -1)


class Centres(Anchor):
    """Some fixed weights to start from, at every local target; who generates says which.

    Args:
        theta: [k, C, n] of C centres at each local target.
    """

    name = "centres"

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.register_buffer("theta", theta)
        self.theta: Tensor

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """Weights [B, n] of the centres with numbers z [B], at the last local target."""
        return self.near(1.0)[z]

    def near(self, end: float) -> Tensor:
        """[C, n] at the local target nearest to a share of the trajectory."""
        stages = len(self.theta)
        return self.theta[max(1, round(end * stages)) - 1]


class PrototypeAnchor(Anchor):
    """Nearest class mean (Snell et al., 2017) with a calibrated inverse temperature."""

    name = "prototype"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.scale: Tensor

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.local`."""
        return space.flatten(prototype_head(masked_mean(z, mask), self.scale))


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
        # How it was fitted: ridge, spread, and iterations of refinement.
        self.register_buffer("ridges", torch.zeros(2))
        self.register_buffer("refined", torch.zeros(()))
        self.mean: Tensor
        self.basis: Tensor
        self.between: Tensor
        self.scale: Tensor
        self.ridges: Tensor
        self.refined: Tensor

    @torch.no_grad()
    def fit(self, bank: FeatureBank, ridge: float, spread: float = 0.0) -> GaussianAnchor:
        """Estimate both covariances on the classes of `bank`.

        Args:
            bank: Training features.
            ridge: Isotropic part added to `within`, as a share of its mean variance.
            spread: Likewise for `between`. Few training classes span few directions; without it
                new classes could not differ in any other.
        """
        x = bank.features.double()
        counts, means = bank.offsets.diff(), bank.means(x)
        rest = x - means[bank.labels]
        within = rest.T @ rest / max(1, len(x) - len(counts))
        centred = means - means.mean(0)
        between = centred.T @ centred / max(1, len(counts) - 1)
        # The samples' own noise in the class means.
        between = between - within * (1 / counts.double()).mean()
        one = torch.eye(len(within), dtype=torch.double)
        within = within + ridge * within.diagonal().mean() * one
        between = between + spread * between.diagonal().mean().clamp(min=0) * one
        lower = torch.linalg.cholesky(within)
        whitened = torch.linalg.solve_triangular(lower, between, upper=False)
        whitened = torch.linalg.solve_triangular(lower, whitened.mT, upper=False)
        value, vector = torch.linalg.eigh((whitened + whitened.mT) / 2)
        self.mean.copy_(means.mean(0))
        self.basis.copy_(torch.linalg.solve_triangular(lower.mT, vector, upper=True))
        self.between.copy_(value.clamp(min=0))
        self.ridges.copy_(torch.tensor([ridge, spread]))
        return self

    def forward(self, support: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.forward`."""
        frame = self.frame(support.shape[-1])
        return frame.leave(self.local(frame.enter(support), mask, space))

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.local`."""
        mean = masked_mean(z, mask) * shrinkage(self.between, mask.sum(-1))
        return space.flatten(prototype_head(mean, self.scale))

    def frame(self, width: int) -> Frame:
        """See `Anchor.frame`."""
        return Frame(self.mean, self.basis, self.between)

    def refit(self, bank: FeatureBank) -> Anchor:
        """See `Anchor.refit`; the choices made on validation classes are kept."""
        ridge, spread = self.ridges.tolist()
        other = GaussianAnchor(len(self.mean)).fit(bank, ridge, spread)
        other.scale.copy_(self.scale)
        return other.refine(bank, int(self.refined))

    def refine(self, bank: FeatureBank, iterations: int, *, seed: int = 0) -> GaussianAnchor:
        """Train frame, spectrum and scale on episodes of `bank`, with noise on the features.

        A covariance says how features vary, not what tells classes apart. A few dozen steps of
        Adam on the cross entropy of queries make the difference, and more learn the training
        classes by heart (docs/lab-notes/choices.md), so the number of iterations is a choice to be
        made on other classes.

        Args:
            bank: Training features.
            iterations: Episode batches; 0 leaves the anchor as it is.
            seed: Of episodes and noise.
        """
        named = {
            "mean": self.mean.clone(),
            "basis": self.basis.clone(),
            "between": (self.between + 1e-3).log(),
            "scale": self.scale.log(),
        }
        rates = {"mean": 3e-5, "basis": 3e-4, "between": 1.5e-3, "scale": 1.5e-3}
        if iterations:
            groups = [{"params": [p.requires_grad_()], "lr": rates[n]} for n, p in named.items()]
            optimiser = torch.optim.Adam(groups)
            noise = float(bank.features.std(0).square().mean().sqrt())
            for step in range(iterations):
                with torch.enable_grad():
                    loss = _episode_loss(named, bank, noise, seed * 1_000_003 + step)
                    optimiser.zero_grad()
                    loss.backward()
                optimiser.step()
            self.mean.copy_(named["mean"].detach())
            self.basis.copy_(named["basis"].detach())
            self.between.copy_(named["between"].detach().exp())
            self.scale.copy_(named["scale"].detach().exp())
        self.refined.fill_(iterations)
        return self


def _episode_loss(named: dict[str, Tensor], bank: FeatureBank, noise: float, seed: int) -> Tensor:
    """Cross entropy of 16 episodes under a Gaussian anchor; ways 5, 20 and shots 1, 5 in turn."""
    way, shot = min((5, 20)[seed // 2 % 2], len(bank.classes)), (1, 5)[seed % 2]
    room = int(bank.offsets.diff().min())
    shot = min(shot, room - 1)
    drawn = bank.episodes(way=way, shot=shot, query=min(10, room - shot), episodes=16, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    support, query = bank.features[drawn.support], bank.features[drawn.query].flatten(1, 2)
    support = support + noise * torch.randn(support.shape, generator=rng)
    query = query + noise * torch.randn(query.shape, generator=rng)
    frame = Frame(named["mean"], named["basis"], named["between"].exp())
    count = torch.full((16, way), float(shot))
    mean = frame.enter(support).mean(2) * shrinkage(frame.between, count)
    weight = 2 * named["scale"].exp() * mean
    bias = -named["scale"].exp() * mean.square().sum(-1)
    logits = frame.enter(query) @ weight.mT + bias.unsqueeze(1)
    label = torch.arange(way).repeat_interleave(query.shape[1] // way).expand(16, -1)
    return F.cross_entropy(logits.mT, label)


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


def shrinkage(between: Tensor, count: Tensor) -> Tensor:
    """How far a mean of `count` samples can be believed, coordinate by coordinate.

    Args:
        between: [..., D] variance of class means, in units of the variance within classes.
        count: [..., way] samples per class.

    Returns:
        [..., way, D] posterior mean over sample mean, b / (b + 1 / count).
    """
    between = between.unsqueeze(-2)
    return between / (between + 1 / count.unsqueeze(-1))


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
    ridges: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0),
    spreads: tuple[float, ...] = (0.0, 1.0, 10.0),
    refine: tuple[int, ...] = (0,),
) -> Anchor:
    """Fit a data-dependent anchor: estimates on `train`, free choices on `valid` classes.

    Args:
        name: "none", "prototype" or "gaussian".
        train: Features of training classes.
        valid: Features of validation classes.
        way: Of validation episodes.
        shots: Of validation episodes.
        seed: Of episodes.
        ridges: Candidates of `GaussianAnchor.fit`.
        spreads: Likewise.
        refine: Candidate numbers of iterations of `GaussianAnchor.refine`.

    Raises:
        InputError: If the name is unknown.
    """
    if name == "none":
        return Anchor()
    if name == "prototype":
        return _calibrate(PrototypeAnchor(), valid, way, shots, seed)[0]
    if name == "gaussian":
        fitted = [
            _calibrate(
                GaussianAnchor(train.width).fit(train, ridge, spread), valid, way, shots, seed
            )
            for ridge in ridges
            for spread in spreads
        ]
        best = min(fitted, key=lambda pair: pair[1])
        assert isinstance(best[0], GaussianAnchor)
        ridge, spread = best[0].ridges.tolist()
        candidates = [best]
        for iterations in refine:
            if iterations > 0:
                fresh = GaussianAnchor(train.width).fit(train, ridge, spread)
                fresh.scale.copy_(best[0].scale)
                fresh.refine(train, iterations, seed=seed)
                candidates.append(_calibrate(fresh, valid, way, shots, seed))
        return min(candidates, key=lambda pair: pair[1])[0]
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
        query = valid.queries_left(shot, 15)
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
