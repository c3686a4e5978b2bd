"""What class names say of a head before any image is seen, and what unlabelled images add.

Names are mapped to class means by kernel ridge regression from sentence embeddings, fitted on the
source classes in the frame of their Gaussian anchor: the posterior mean and variance of a Gaussian
process. Unlabelled images then move the means by expectation maximisation in which a name counts as
some samples of its class, and classes whose names are alike move together: what the process leaves
unexplained is correlated. This is the start of the chain.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor.anchor import Anchor
from ltdi.anchor.frame import Frame
from ltdi.anchor.gaussian import GaussianAnchor
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, prototype_head

_BALANCE_ROUNDS = 3
_TINY = 1e-12


@dataclass(frozen=True)
class PriorSettings:
    """Choices of `NamePrior`; the defaults are best on the mean of six sets of validation classes.

    Attributes:
        ridge: Of the Gaussian anchor's covariance within classes.
        sharpness: gamma of the kernel exp(-gamma |a - b|^2) of unit vectors.
        noise: Variance of class means that names cannot explain, in units of the kernel.
        strength: Factor of the predicted means.
        power: The regression shrinks the means of names that are far from every source class; each
            is divided by this power of its share of explained variance.
        weight: How many samples a name counts for, on average.
        hardness: Inverse temperature of the responsibilities; 0.5 is the Gaussian's own.
        balance: How far the pool is believed to hold equally many images of every class, 0 to 1.
        follow: How far the mean over the named classes moves to that of the pool, 0 to 1. Images
            of another source than the training images lie elsewhere as a whole.
        iterations: Of expectation maximisation.
    """

    ridge: float = 0.3
    sharpness: float = 1.5
    noise: float = 0.2
    strength: float = 0.25
    power: float = 0.5
    weight: float = 30.0
    hardness: float = 0.5
    balance: float = 1.0
    follow: float = 0.5
    iterations: int = 8


@dataclass(frozen=True)
class Named:
    """B tasks without labels, in the coordinates of a frame.

    Attributes:
        mean: [B, way, D] what the names predict.
        certainty: [B, way] share of a class mean's variance that its name explains, 0 to 1.
        rest: [B, way, way] covariance between classes of what names do not explain, 1 on average
            on the diagonal.
        pool: [B, n, D] unlabelled images; n may be 0.
        mask: [B, n] 1 for real images.
    """

    mean: Tensor
    certainty: Tensor
    rest: Tensor
    pool: Tensor
    mask: Tensor


class NamePrior(Anchor):
    """From class names, and maybe unlabelled images, to a head.

    Args:
        features: D.
        text: Width of a name's vector.
        classes: Number of source classes.
        settings: See `PriorSettings`.
    """

    name = "names"

    def __init__(
        self, features: int, text: int, classes: int, settings: PriorSettings | None = None
    ) -> None:
        super().__init__()
        self.settings = settings or PriorSettings()
        self.gauss = GaussianAnchor(features)
        self.centre = nn.Buffer(torch.zeros(text))
        self.keys = nn.Buffer(torch.zeros(classes, text))
        self.values = nn.Buffer(torch.zeros(classes, features))
        self.inverse = nn.Buffer(torch.eye(classes))
        self.origin = nn.Buffer(torch.zeros(features))
        self.scale = nn.Buffer(torch.tensor(0.15))

    @property
    def about(self) -> dict[str, Any]:
        """Sizes and settings, to make an empty one like it; JSON-able."""
        classes, features = self.values.shape
        sizes = {"features": features, "text": self.keys.shape[1], "classes": classes}
        return {"sizes": sizes, "settings": asdict(self.settings)}

    @classmethod
    @torch.no_grad()
    def fit(
        cls, bank: FeatureBank, text: Tensor, settings: PriorSettings | None = None
    ) -> NamePrior:
        """Fit on source classes.

        Args:
            bank: Features of the source classes.
            text: [classes, W] their names' vectors.
            settings: Choices.

        Raises:
            InputError: If names and classes are not equally many.
        """
        if len(text) != len(bank.classes):
            raise InputError(
                f"{len(text)} names are given for {len(bank.classes)} source classes",
                where="NamePrior.fit",
            )
        out = cls(bank.width, text.shape[1], len(text), settings)
        s = out.settings
        out.gauss.fit(bank, s.ridge)
        z = out.frame(bank.width).enter(bank.features)
        means = bank.means(z)
        out.centre.copy_(text.mean(0))
        out.keys.copy_(F.normalize(text - out.centre, dim=-1))
        kernel = _kernel(out.keys, out.keys, s.sharpness).double()
        noisy = kernel + s.noise * torch.eye(len(kernel), dtype=torch.double)
        inverse = torch.linalg.inv(noisy)
        out.inverse.copy_(inverse)
        out.origin.copy_(means.mean(0))
        out.values.copy_(inverse @ (means - means.mean(0)).double())
        return out

    def frame(self, width: int) -> Frame:
        """See `Anchor.frame`."""
        return self.gauss.frame(width)

    def believe(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What names say: means [B, way, D] in the frame, certainties [B, way], and the rest.

        Args:
            text: [B, way, W] the names' vectors.

        Returns:
            Mean, certainty and rest; see `Named`.
        """
        s, key = self.settings, F.normalize(text - self.centre, dim=-1)
        near = _kernel(key, self.keys, s.sharpness)
        known = near @ self.inverse @ near.mT
        certainty = known.diagonal(dim1=1, dim2=2).clamp(0.02, 0.98)
        mean = s.strength * (near @ self.values) / certainty.unsqueeze(-1) ** s.power
        # No class is less of a class because its name is vague: all are as far from their centre.
        away = mean - mean.mean(1, keepdim=True)
        length = away.norm(dim=-1, keepdim=True)
        away = away * length.mean(1, keepdim=True) / length.clamp(min=_TINY)
        mean = self.origin + mean.mean(1, keepdim=True) + away
        rest = _kernel(key, key, s.sharpness) - known + s.noise * torch.eye(key.shape[1]).to(key)
        rest = rest / rest.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        return mean, certainty, rest

    def named(self, text: Tensor, pool: Tensor, mask: Tensor) -> Named:
        """Tasks from names [B, way, W] and a pool [B, n, D] in the frame, with its mask [B, n]."""
        mean, certainty, rest = self.believe(text)
        if pool.shape[1] and self.settings.follow:
            total = mask.sum(1, keepdim=True).clamp(min=1)
            centre = (pool * mask.unsqueeze(-1)).sum(1) / total
            mean = mean + self.settings.follow * (centre - mean.mean(1)).unsqueeze(1)
        return Named(mean, certainty, rest, pool, mask)

    def refine(self, task: Named) -> Tensor:
        """Class means [B, way, D] after expectation maximisation on the pool."""
        s, mean = self.settings, task.mean
        if not task.pool.shape[1]:
            return mean
        rest, one = task.rest / s.weight, torch.eye(mean.shape[1]).to(mean)
        for _ in range(s.iterations):
            r = responsibilities(mean, task, s.hardness, s.balance)
            size = r.sum(1)
            # The posterior mean of all classes at once, where the spread within classes is 1.
            pull = rest @ (r.mT @ task.pool - size.unsqueeze(-1) * task.mean)
            mean = task.mean + torch.linalg.solve(one + rest * size.unsqueeze(1), pull)
        return mean

    def start(self, task: Named, space: WeightSpace) -> Tensor:
        """The heads [B, n], in the frame, that the chain starts from."""
        return space.flatten(prototype_head(self.refine(task), self.scale))


def responsibilities(mean: Tensor, task: Named, hardness: float, balance: float = 0.0) -> Tensor:
    """How far each class of B tasks answers for each image of the pool.

    Args:
        mean: [B, way, D] class means.
        task: Whose pool.
        hardness: Inverse temperature.
        balance: 0 leaves class sizes free, 1 makes them equal (Sinkhorn and Knopp, 1967).

    Returns:
        [B, n, way]; rows sum to one, and to zero where the mask is zero.
    """
    inner = 2 * task.pool @ mean.mT - mean.square().sum(-1).unsqueeze(1)
    return shares(hardness * inner, task.mask, balance)


def shares(logits: Tensor, mask: Tensor, balance: float) -> Tensor:
    """Responsibilities [B, n, way] from logits; see `responsibilities`."""
    if balance == 0:
        return logits.softmax(-1) * mask.unsqueeze(-1)
    # Of every image the likeliest class has 1, so no row can vanish.
    share = (logits - logits.amax(-1, keepdim=True)).exp() * mask.unsqueeze(-1)
    equal = (mask.sum(1) / logits.shape[-1])[:, None, None]
    for _ in range(_BALANCE_ROUNDS):
        share = share / (share.sum(-1, keepdim=True) + _TINY)
        size = share.sum(1, keepdim=True)
        share = share * (equal / (size + _TINY)) ** balance
    return share / (share.sum(-1, keepdim=True) + _TINY)


def _kernel(a: Tensor, b: Tensor, sharpness: float) -> Tensor:
    """exp(-sharpness |a - b|^2) of unit vectors [..., W] and [..., S, W]."""
    return (-sharpness * (2 - 2 * a @ b.mT)).exp()
