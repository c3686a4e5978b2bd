"""SimpleShot with CL2N features (Wang, Chao, Weinberger & van der Maaten, 2019, 1911.04623)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ltdi.baselines.method import Budget, Method, Progress, fitted
from ltdi.baselines.protonet import nearest_mean
from ltdi.baselines.scaling import Scaling
from ltdi.baselines.tuning import calibrate, validation_episodes
from ltdi.tasks import FeatureBank


class SimpleShot(Method):
    """Centre by the training mean, normalise to unit length, take the nearest class mean."""

    name: ClassVar[str] = "simpleshot"
    kind: ClassVar[str] = "peer"
    note: ClassVar[str] = (
        "CL2N nearest class mean as published, inverse temperature calibrated; "
        "the paper's own backbone training is left out"
    )

    def __init__(self) -> None:
        self.scale = 1.0
        self.scaling: Scaling | None = None

    def fit(
        self,
        train: FeatureBank,
        valid: FeatureBank,
        budget: Budget,
        progress: Progress | None = None,
    ) -> None:
        """Take the mean of the training features and calibrate; see `Method.fit`."""
        self.scaling = Scaling.fit(train.features, sphere=True)
        self.scale = 1.0
        self.scale = calibrate(self.predict(*validation_episodes(valid, budget)))

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        scaling = fitted(self.scaling, self)
        return self.scale * nearest_mean(scaling(support), scaling(query))
