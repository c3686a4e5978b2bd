"""SimpleShot (Wang, Chao, Weinberger & van der Maaten, 2019, 1911.04623)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor

from ltdi.baselines.protonet import nearest_mean
from ltdi.baselines.scaling import Scaling
from ltdi.baselines.tuning import Chosen
from ltdi.tasks import FeatureBank


class SimpleShot(Chosen[Scaling]):
    """Nearest class mean of transformed features; the transform is chosen on validation."""

    name = "simpleshot"
    note = (
        "nearest class mean with the published transforms (CL2N, L2N, UN), of which validation "
        "chooses, inverse temperature calibrated; the paper's own backbone training is left out"
    )

    def candidates(self, train: FeatureBank) -> Iterable[Scaling]:
        """The published transforms."""
        fit = partial(Scaling.fit, train.features)
        return fit(sphere=True), fit(sphere=True, centre=False), fit(sphere=False, centre=False)

    def logits(self, choice: Scaling, support: Tensor, query: Tensor) -> Tensor:
        """See `Chosen.logits`."""
        return nearest_mean(choice(support), choice(query))
