"""A network that regresses the head from the support.

After Qiao et al. (2018, arXiv 1706.03466), who predict a class's parameters from its activations,
with attention among the classes in the spirit of Gidaris & Komodakis (2018, arXiv 1804.09458).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from ltdi.baselines.inner import Weights, linear
from ltdi.baselines.method import Budget
from ltdi.baselines.outer import EpisodeNet, Recipe, TrainedMethod, seeded
from ltdi.baselines.scaling import Scaling
from ltdi.tasks import FeatureBank

_FIRST_SCALE = 10.0


class HeadRegressor(EpisodeNet):
    """Support -> head. Samples are pooled by class, classes attend to each other.

    Nothing in it knows an order of samples or classes, so permuting classes permutes rows.

    Args:
        scaling: Of the features, fixed.
        width: D.
        hidden: Width of a class token.
        depth: Attention layers.
    """

    def __init__(self, scaling: Scaling, width: int, hidden: int = 128, depth: int = 2) -> None:
        super().__init__(_FIRST_SCALE)
        self.scaling = scaling
        self.sample = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        layer = nn.TransformerEncoderLayer(
            hidden, 4, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.attend = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.row = nn.Linear(hidden, width + 1)
        self.direct = nn.Linear(width, width + 1)
        self.to(scaling.mean.device)

    def head(self, support: Tensor) -> Weights:
        """`weight` [E, way, D] and `bias` [E, way] for support [E, way, shot, D]."""
        scaled = self.scaling(support)
        token = self.attend(self.sample(scaled).mean(2))
        # Qiao et al.'s linear map of the mean activation, from a random start: not an anchor.
        rows = self.row(token) + self.direct(scaled.mean(2))
        return {"weight": rows[..., :-1], "bias": rows[..., -1]}

    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way]."""
        return linear(self.scaling(query), self.head(support))


class Hypernetwork(TrainedMethod[HeadRegressor]):
    """Feed-forward regression of head weights, trained by the queries' cross entropy."""

    name: ClassVar[str] = "hypernetwork"
    kind: ClassVar[str] = "peer"
    note: ClassVar[str] = (
        "a set transformer regresses the head from the support, trained end to end; no anchor, no "
        "diffusion, no base classes beside the new ones"
    )
    recipe: ClassVar[Recipe] = Recipe(rate=2e-3)
    random_start: ClassVar[bool] = True

    def candidates(self, train: FeatureBank, budget: Budget) -> Iterator[HeadRegressor]:
        """One random network: untrained ones cannot be compared."""
        scaling = Scaling.fit(train.features, sphere=True)
        yield seeded(lambda: HeadRegressor(scaling, train.width), budget.seed)
