"""Cross-fitting: training tasks must look to their anchor as unseen tasks will.

An anchor that was fitted on the classes of a training task knows them, and a network trained on
its errors there learns the wrong correction (docs/lab-notes/choices.md has the figures). So the
training classes are held out in folds: the tasks of a fold get the anchor of all other classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.anchor.anchor import Anchor
from ltdi.anchor.frame import Frame
from ltdi.tasks import FeatureBank, sample_episodes
from ltdi.weights import head_logits, head_space


@dataclass(frozen=True)
class Fold:
    """Classes held out from an anchor.

    Attributes:
        frame: The coordinates of that anchor.
        anchor: Fitted on the other classes.
        classes: int64 [C] the classes of this fold's tasks.
    """

    frame: Frame
    anchor: Anchor
    classes: Tensor

    def seen(self, classes: Tensor) -> Anchor:
        """The anchor for tasks of `classes` [E, way]."""
        return self.anchor

    def queries(self, bank: FeatureBank, shot: int, wanted: int) -> int:
        """How many queries a class its tasks have."""
        return wanted


def crossfit(
    anchor: Anchor,
    bank: FeatureBank,
    *,
    folds: int,
    share: float,
    alike: float,
    least: int = 2,
    seed: int,
) -> list[Fold]:
    """Hold out classes again and again.

    Args:
        anchor: Fitted on all of `bank`.
        bank: Training features.
        folds: How often; 0, or too few classes, give one fold of all with the anchor itself.
        share: Of the classes, in every fold.
        alike: Share of the folds that are a class and its nearest ones, as when unseen tasks come
            from another part of the world; the other folds are drawn at random.
        least: Fewest classes of a fold.
        seed: Of the draw.
    """
    total = len(bank.classes)
    if folds == 0 or total < least + 2:
        return [hold_out(anchor, bank, torch.arange(total))]
    rng = torch.Generator().manual_seed(seed)
    size = min(total - 2, max(least, round(share * total)))
    near = _similarity(bank).argsort(1, descending=True)
    out = []
    for number in range(folds):
        order = torch.randperm(total, generator=rng)
        if number < round(alike * folds):
            order = near[order[0]]
        out.append(hold_out(anchor, bank, order[:size].sort().values))
    return out


def hold_out(anchor: Anchor, bank: FeatureBank, classes: Tensor) -> Fold:
    """The fold of some classes; all classes together keep the anchor itself."""
    rest = torch.ones(len(bank.classes), dtype=torch.bool)
    rest[classes] = False
    if bool(rest.any()):
        anchor = anchor.refit(bank.select(rest.nonzero().flatten()))
    return Fold(anchor.frame(bank.width), anchor, classes)


def likeness(
    folds: Sequence[Fold], bank: FeatureBank, *, way: int, shots: Sequence[int], seed: int
) -> float:
    """How far the held-out tasks are from those that the anchor was calibrated on.

    The inverse temperature that fits the tasks of the folds best, relative to the anchor's own,
    which was chosen on validation tasks: |log ratio|, 0 when the anchor is as sure of itself
    there as it should be.
    """
    ratios = torch.logspace(-0.7, 0.7, 57)
    losses = torch.zeros(len(ratios))
    for number, fold in enumerate(folds):
        n = min(way, len(fold.classes))
        space = head_space(bank.width, n)
        for shot in shots:
            query = bank.queries_left(shot, 15)
            drawn = sample_episodes(
                bank.offsets,
                way=n,
                shot=shot,
                query=query,
                episodes=20,
                seed=seed + number,
                among=fold.classes,
            )
            z = fold.frame.enter(bank.features[drawn.support])
            mask, q = torch.ones(z.shape[:3]), fold.frame.enter(bank.features[drawn.query])
            origin = fold.anchor.task_mean(z, mask, fold.frame)[:, None, None]
            theta = fold.anchor.local(z - origin, mask, space)
            logits = head_logits(theta, (q - origin).flatten(1, 2)).flatten(0, 1)
            label = torch.arange(n).repeat_interleave(query).repeat(len(z))
            losses += torch.stack([F.cross_entropy(r * logits, label) for r in ratios])
    return abs(math.log(float(ratios[losses.argmin()])))


def _similarity(bank: FeatureBank) -> Tensor:
    """Cosine [C, C] of centred class means."""
    means = bank.means()
    unit = F.normalize(means - means.mean(0), dim=-1)
    return unit @ unit.T
