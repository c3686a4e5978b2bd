"""SimpleShot (Wang, Chao, Weinberger & van der Maaten, 2019, 1911.04623)."""

from __future__ import annotations

from torch import Tensor

from ltdi.baselines.method import Banks, Budget, Method, fitted
from ltdi.baselines.protonet import nearest_mean
from ltdi.baselines.scaling import Scaling
from ltdi.baselines.tuning import choose, score, validation_episodes
from ltdi.evaluate import calibrate
from ltdi.progress import Step


class SimpleShot(Method):
    """Nearest class mean of transformed features; the transform is chosen on validation."""

    name = "simpleshot"
    note = (
        "nearest class mean with the published transforms (CL2N, L2N, UN), of which validation "
        "chooses, inverse temperature calibrated; the paper's own backbone training is left out"
    )

    def __init__(self) -> None:
        self.scale = 1.0
        self.scaling: Scaling | None = None

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """Choose the transform and calibrate; see `Method.fit`."""
        train, valid = banks
        support, query = validation_episodes(valid, budget)
        transforms = (
            Scaling.fit(train.features, sphere=True),
            Scaling.fit(train.features, sphere=True, centre=False),
            Scaling.fit(train.features, sphere=False, centre=False),
        )
        self.scaling = choose(transforms, lambda f: score(nearest_mean(f(support), f(query))))
        self.scale = 1.0
        self.scale = calibrate(self.predict(support, query))

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        scaling = fitted(self.scaling, self)
        return self.scale * nearest_mean(scaling(support), scaling(query))
