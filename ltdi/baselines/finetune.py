"""Fine-tuning of the head at test time (Chen et al., 2019, arXiv 1904.04232)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ltdi.baselines.inner import Adam, Weights, linear, trajectory, zero_head
from ltdi.baselines.method import Banks, Budget, Method, fitted
from ltdi.baselines.protonet import nearest_mean
from ltdi.baselines.scaling import Reduction, Scaling, scalings
from ltdi.baselines.tuning import Batch, choose, score, validation_episodes
from ltdi.evaluate import calibrate, negative_log_likelihood
from ltdi.progress import Step
from ltdi.tasks import FeatureBank
from ltdi.weights import prototype_head

_RATES = (0.003, 0.03, 0.3)
_DECAYS = (0.0, 0.1)
_STEPS = (5, 20, 50, 100)


@dataclass(frozen=True, eq=False)
class Walk:
    """One way to fine-tune a head.

    Attributes:
        prototypes: Inverse temperature of the prototype head to start from; None for zeros.
    """

    scaling: Scaling
    prototypes: float | None
    rate: float
    decay: float

    def heads(self, support: Tensor, steps: int) -> Iterator[Weights]:
        """The heads after 1 .. `steps` steps on support [E, way, shot, D]."""
        scaled = self.scaling(support)
        start = (
            zero_head(scaled)
            if self.prototypes is None
            else prototype_head(scaled.mean(2), self.prototypes)
        )
        return trajectory(
            lambda head, _: negative_log_likelihood(linear(scaled, head)),
            start,
            Adam(self.rate, self.decay),
            steps,
        )

    def logits(self, support: Tensor, query: Tensor, steps: int) -> Tensor:
        """Logits [E, way, Q, way] after `steps` steps."""
        *_, head = self.heads(support, steps)
        return linear(self.scaling(query), head)


class FineTune(Method):
    """Adam on the head; start, scaling, step size, decay and steps are chosen on validation."""

    name = "finetune"
    note = (
        "Adam on the linear head from prototypes or zeros, whichever validates better, the "
        "backbone frozen; fine-tuning of the backbone is left out"
    )

    def __init__(self) -> None:
        self.scale = 1.0
        self.reduction = Reduction(None)
        self.choice: tuple[Walk, int] | None = None

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """Search the grid, then calibrate; see `Method.fit`."""
        train, valid = banks
        self.reduction = Reduction.fit(train.features)
        train, valid = self.reduction.bank(train), self.reduction.bank(valid)
        episodes = validation_episodes(valid, budget)
        walks = list(_candidates(train, episodes))
        scores: dict[tuple[Walk, int], float] = {}
        for done, walk in enumerate(walks, 1):
            scores.update({(walk, steps): s for steps, s in _scores(walk, episodes)})
            if progress:
                progress(done, len(walks), f"validation accuracy {max(scores.values()):.4f}")
        walk, steps = choose(scores, scores.__getitem__)
        self.scale = calibrate(walk.logits(*episodes, steps))
        self.choice = (walk, steps)

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        walk, steps = fitted(self.choice, self)
        return self.scale * walk.logits(self.reduction(support), self.reduction(query), steps)


def _candidates(train: FeatureBank, episodes: Batch) -> Iterator[Walk]:
    for scaling in scalings(train.features):
        scaled = Batch(*map(scaling, episodes))
        # The prototype head starts calibrated, so that its gradient has a sensible size.
        for start in (calibrate(nearest_mean(*scaled)), None):
            for rate, decay in itertools.product(_RATES, _DECAYS):
                yield Walk(scaling, start, rate, decay)


def _scores(walk: Walk, episodes: Batch) -> Iterator[tuple[int, float]]:
    """Accuracies after each candidate number of steps, from a single walk."""
    query = walk.scaling(episodes.query)
    for step, head in enumerate(walk.heads(episodes.support, max(_STEPS)), 1):
        if step in _STEPS:
            yield step, score(linear(query, head))
