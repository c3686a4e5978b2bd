"""Meta-Baseline (Chen, Liu, Xu, Darrell & Wang, 2021, arXiv 2003.04390)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.method import Budget
from ltdi.baselines.outer import EpisodeNet, TrainedMethod
from ltdi.baselines.scaling import Scaling, scalings
from ltdi.tasks import FeatureBank


class CosineNet(EpisodeNet):
    """Scaled cosine to the class mean, after a linear map that starts as the identity."""

    def __init__(self, scaling: Scaling, width: int) -> None:
        super().__init__()
        self.scaling = scaling
        self.map = nn.Parameter(torch.eye(width, device=scaling.mean.device))

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Cosines [E, way, Q, way]."""
        mean = self.scaling(support).mean(2) @ self.map
        mapped = self.scaling(query).flatten(1, 2) @ self.map
        cosine = F.normalize(mapped, dim=-1) @ F.normalize(mean, dim=-1).mT
        return cosine.reshape(*query.shape[:3], -1)


class MetaBaseline(TrainedMethod[CosineNet]):
    """Cosine to the class mean with a learnt scale; the map is kept only if it validates."""

    name = "meta-baseline"
    note = (
        "cosine nearest mean with learnt scale, meta-training a linear map on the frozen "
        "backbone's features in place of the backbone"
    )

    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], CosineNet]]:
        """Cosine of centred features, and of plain ones as published."""
        plain = Scaling.fit(train.features, sphere=False, centre=False)
        return [partial(CosineNet, s, train.width) for s in (*scalings(train.features), plain)]
