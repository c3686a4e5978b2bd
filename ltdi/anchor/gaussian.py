"""The Bayes head of Gaussian classes, whose covariances are those of the training classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor.anchor import Anchor, masked_mean
from ltdi.anchor.frame import Frame
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, prototype_head


class GaussianAnchor(Anchor):
    """The Bayes head when classes are Gaussians with one shared covariance.

    Class means are drawn from N(mu, between) and samples from N(mean, within), both fitted on the
    training classes (probabilistic linear discriminant analysis, Ioffe, 2006). The basis makes
    `within` the identity and `between` diagonal, so a class mean is shrunk coordinate by
    coordinate: m_j * b_j / (b_j + 1 / shot).
    """

    name = "gaussian"
    own_mean = True

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(features))
        self.basis = nn.Buffer(torch.eye(features))
        self.between = nn.Buffer(torch.ones(features))
        self.scale = nn.Buffer(torch.tensor(0.5))
        # How it was fitted: ridge, spread, and iterations of refinement.
        self.ridges = nn.Buffer(torch.zeros(2))
        self.refined = nn.Buffer(torch.zeros(()))

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
        z = frame.enter(support)
        origin = self.task_mean(z, mask, frame)
        return frame.leave(self.local(z - origin[:, None, None], mask, space), origin)

    def task_mean(self, z: Tensor, mask: Tensor, frame: Frame) -> Tensor:
        """See `Anchor.task_mean`: the mean of the task, shrunk to that of training classes.

        Classes may be far from all training classes and near each other, such as breeds, or digits
        seen by a net for scripts: what they have in common must not be shrunk away. One-way
        analysis of variance: were the mean of all W classes that of training, its square would be,
        on average, the variance of these class means over W. The share that is more is kept.
        """
        if not self.own_mean:
            return super().task_mean(z, mask, frame)
        count, way = mask.sum(-1, keepdim=True), mask.shape[1]
        own = masked_mean(z, mask)
        mean = own.mean(1, keepdim=True)
        unit = (frame.between + 1 / count).mean(1, keepdim=True)
        chance = ((own - mean).square() / unit).sum((1, 2)) / (way * max(1, way - 1))
        found = (mean.square() / unit).sum((1, 2)).clamp(min=1e-12)
        return (1 - chance / found).clamp(min=0).unsqueeze(-1) * mean.squeeze(1)

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
        other.own_mean = self.own_mean
        return other.refine(bank, int(self.refined))

    def refine(self, bank: FeatureBank, iterations: int, *, seed: int = 0) -> GaussianAnchor:
        """Train frame, spectrum and scale on episodes of `bank`, with noise on the features.

        A covariance says how features vary, not what tells classes apart. A few dozen steps of
        Adam on the cross entropy of queries make the difference, and more learn the training
        classes by heart (docs/lab-notes/choices.md), so the number of iterations is a choice to be
        made on other classes.

        Without an iteration it stays as it is.
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
