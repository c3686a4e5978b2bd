"""A network that regresses the head from the support.

After Qiao et al. (2018, arXiv 1706.03466), who predict a class's parameters from its activations,
and Gidaris & Komodakis (2018, arXiv 1804.09458): a cosine classifier whose rows start as class
means, with attention among the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.method import Budget
from ltdi.baselines.outer import EpisodeNet, TrainedMethod
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.tasks import FeatureBank

# Width of a class token.
_HIDDEN = 64


class HeadRegressor(EpisodeNet):
    """Support -> head. Samples are pooled by class, classes attend to each other.

    Nothing in it knows an order of samples or classes, so permuting classes permutes rows.
    """

    def __init__(self, scaling: Scaling, width: int) -> None:
        super().__init__()
        self.scaling = scaling
        self.sample = nn.Sequential(
            nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN)
        )
        layer = nn.TransformerEncoderLayer(
            _HIDDEN, 4, 2 * _HIDDEN, dropout=0.0, batch_first=True, norm_first=True
        )
        self.attend = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.row, self.direct = nn.Linear(_HIDDEN, width), nn.Linear(width, width)
        for added in (self.row.weight, self.row.bias, self.direct.bias):
            nn.init.zeros_(added)
        nn.init.eye_(self.direct.weight)
        self.to(scaling.mean.device)

    def head(self, support: Tensor) -> Tensor:
        """Unit rows [E, way, D] for support [E, way, shot, D]."""
        scaled = self.scaling(support)
        token = self.attend(self.sample(scaled).mean(2))
        return F.normalize(self.row(token) + self.direct(scaled.mean(2)), dim=-1)

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way]."""
        scaled = self.scaling(query)
        return (scaled.flatten(1, 2) @ self.head(support).mT).reshape(*query.shape[:3], -1)


class Hypernetwork(TrainedMethod[HeadRegressor]):
    """Feed-forward regression of head weights, trained by the queries' cross entropy."""

    name = "hypernetwork"
    note = (
        "a set transformer regresses a cosine head from the support, from the class means on, "
        "trained end to end; no diffusion, no base classes beside the new ones"
    )

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], HeadRegressor]]:
        """All scalings."""
        return [partial(HeadRegressor, s, train.width) for s in scalings(train.features)]
