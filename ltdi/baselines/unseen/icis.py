"""ICIS: classifier weights from class names, through a space that both share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.unseen.method import (
    FromNames,
    NamedBanks,
    UnseenBudget,
    mean_accuracy,
)
from ltdi.progress import Step
from ltdi.seeding import seeded
from ltdi.unseen.tasks import NamedBank, TaskBatch

_WIDTH = 512


class _Coder(nn.Module):
    """Both encoders and both decoders."""

    def __init__(self, text: int, features: int, dropout: float) -> None:
        super().__init__()

        def encoder(width: int) -> nn.Module:
            return nn.Sequential(nn.Linear(width, _WIDTH), nn.ReLU(), nn.Dropout(dropout))

        self.of_name, self.of_row = encoder(text), encoder(features)
        self.to_name, self.to_row = nn.Linear(_WIDTH, text), nn.Linear(_WIDTH, features)

    def loss(self, name: Tensor, row: Tensor) -> Tensor:
        """Both reconstructions and both translations, as cosines."""
        n, r = self.of_name(name), self.of_row(row)
        pairs = (
            (self.to_row(n), row),
            (self.to_name(r), name),
            (self.to_name(n), name),
            (self.to_row(r), row),
        )
        return torch.stack([1 - F.cosine_similarity(a, b).mean() for a, b in pairs]).sum()


@dataclass(frozen=True)
class Trial:
    """How a coder is trained: dropout, step size, number of iterations."""

    dropout: float
    rate: float
    steps: int


class Icis(FromNames):
    """Christensen et al., 2023: cosine losses, within and across names and weights."""

    name = "icis"
    note = (
        "re-implemented; the source classifier is that of class means; coordinates, dropout, step "
        "size and number of iterations chosen on validation"
    )

    def __init__(self) -> None:
        super().__init__()
        self.coder: _Coder
        self.trial = Trial(0.0, 1e-3, 100)

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        train, valid = banks
        both = self.begin(train)
        best: tuple[float, bool, Trial, dict[str, Tensor]] = (-1.0, False, self.trial, {})
        steps = max(8, budget.iterations // 4)
        each = max(1, steps // 8)
        trials = list(product((False, True), (0.0, 0.5), (3e-4, 1e-3)))
        for number, (whiten, dropout, rate) in enumerate(trials):
            self.coordinates = both[whiten]
            for done in self._train(train, Trial(dropout, rate, steps), budget.seed):
                if done % each == 0:
                    score = mean_accuracy(self.logits, valid)
                    if score > best[0]:
                        state = {k: v.clone() for k, v in self.coder.state_dict().items()}
                        best = (score, whiten, Trial(dropout, rate, done), state)
            if progress:
                progress(number + 1, len(trials), f"validation {best[0]:.4f}")
        _, self.whiten, self.trial, state = best
        self.coordinates = both[self.whiten]
        self.coder.load_state_dict(state)

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        self.coordinates = self.begin(source)[self.whiten]
        for _ in self._train(source, self.trial, budget.seed):
            pass

    def _train(self, source: NamedBank, trial: Trial, seed: int) -> Iterator[int]:
        """Train a new coder; after each iteration it is ready to be judged."""
        name = F.normalize(source.text - self.centre, dim=-1)
        row = F.normalize(self.coordinates.means, dim=-1)
        with seeded(seed):
            self.coder = _Coder(name.shape[1], row.shape[1], trial.dropout)
            optimiser = torch.optim.AdamW(self.coder.parameters(), lr=trial.rate, weight_decay=1e-3)
            for step in range(trial.steps):
                self.coder.train()
                optimiser.zero_grad()
                self.coder.loss(name, row).backward()
                optimiser.step()
                self.coder.eval()
                yield step + 1

    @torch.no_grad()
    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        name = F.normalize(batch.text - self.centre, dim=-1)
        return self.coordinates.cosine(images, self.coder.to_row(self.coder.of_name(name)))
