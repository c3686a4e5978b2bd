"""How new a net is beside others of the same task."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.nets.matching import match_units
from ltdi.weights import WeightSpace


def wrong_iou(guess: Tensor, others: Tensor, labels: Tensor, skip: Tensor | None = None) -> Tensor:
    """Largest intersection over union of wrong answers with any of some other nets, [E].

    Args:
        guess: [E, N] predicted classes.
        others: [E', N].
        labels: [N].
        skip: [E] number of a net itself among the others.
    """
    a, b = (guess != labels).float(), (others != labels).float()
    both = a @ b.T
    iou = both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)
    if skip is not None:
        iou[torch.arange(len(iou)), skip] = 0
    return iou.max(1).values


def nearest(
    theta: Tensor,
    others: Tensor,
    run: Tensor,
    space: WeightSpace,
    skip: Tensor | None = None,
) -> Tensor:
    """Distance [E] of nets to the nearest of some others after matching hidden units.

    Units are matched to the nearest net of every training: branches of one training keep the
    order of its units.

    Args:
        theta: [E, n].
        others: [E', n].
        run: [E'] which training each of them branched off.
        space: Weight space.
        skip: [E] number of a net itself among the others.
    """
    raw = torch.cdist(theta, others)
    if skip is not None:
        raw[torch.arange(len(raw)), skip] = torch.inf
    out = raw.min(1).values
    for i in range(len(theta)):
        for r in range(int(run.max()) + 1):
            other = others[int(raw[i].masked_fill(run != r, torch.inf).argmin())]
            matched = match_units(theta[i], other, space)
            out[i] = torch.minimum(out[i], (matched - other).norm())
    return out


def within(theta: Tensor, run: Tensor) -> float:
    """Mean distance of nets [E, n] to the mean of those of the same training [E]."""
    parts = [theta[run == r] for r in run.unique()]
    return float(torch.cat([(part - part.mean(0)).norm(dim=1) for part in parts]).mean())
