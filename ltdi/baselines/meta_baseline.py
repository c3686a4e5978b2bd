"""Meta-Baseline (Chen, Liu, Xu, Darrell & Wang, 2021, arXiv 2003.04390)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.method import Budget
from ltdi.baselines.outer import EpisodeNet, Recipe, TrainedMethod
from ltdi.tasks import FeatureBank


class CosineNet(EpisodeNet):
    """Scaled cosine to the class mean, after a linear map that starts as the identity.

    Args:
        origin: [D] subtracted from the features first.
    """

    origin: Tensor

    def __init__(self, origin: Tensor) -> None:
        super().__init__()
        self.register_buffer("origin", origin)
        self.map = nn.Parameter(torch.eye(len(origin), device=origin.device))

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Cosines [E, way, Q, way]."""
        mean = (support - self.origin).mean(2) @ self.map
        mapped = (query - self.origin).flatten(1, 2) @ self.map
        cosine = F.normalize(mapped, dim=-1) @ F.normalize(mean, dim=-1).mT
        return cosine.reshape(*query.shape[:3], -1)


class MetaBaseline(TrainedMethod[CosineNet]):
    """Cosine to the class mean with a learnt scale; the map is kept only if it validates."""

    name: ClassVar[str] = "meta-baseline"
    kind: ClassVar[str] = "peer"
    note: ClassVar[str] = (
        "cosine nearest mean with learnt scale, meta-training a linear map on the frozen "
        "backbone's features in place of the backbone"
    )
    recipe: ClassVar[Recipe] = Recipe(rate=1e-3)

    def candidates(self, train: FeatureBank, budget: Budget) -> Iterator[CosineNet]:
        """Cosine about the training mean, and about zero as published."""
        mean = train.features.mean(0)
        yield CosineNet(mean)
        yield CosineNet(torch.zeros_like(mean))
