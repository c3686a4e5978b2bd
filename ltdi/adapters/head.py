"""Heads fitted to a support under any adapter: convex, a few hundred numbers, no language model.

A generated head knows what its zoo knows. For a task unlike those of the zoo a few labelled rows
say more. Both are the two ends of one scale: the head of highest posterior under a Gaussian prior
around the generated head, whose precision is chosen by cross-validation on the support alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.errors import InputError

# Precisions of the prior; infinity keeps the generated head.
PRECISIONS = (0.3, 3.0, 30.0, 300.0, float("inf"))
# Parts of a support that are held out in turn.
_FOLDS = 4
# Of a regression's errors, in units of the range of its values.
VARIANCE = 0.05
_ITERATIONS = 80


def head_losses(rows: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """[..., P] loss of each row of features [P, D] under heads [..., outputs, D + 1].

    Cross entropy of classes; squared error of values over twice `VARIANCE`.
    """
    logits = features @ rows[..., :-1].mT + rows[..., -1].unsqueeze(-2)
    if targets.is_floating_point():
        return 0.5 * (logits[..., 0] - targets).square() / VARIANCE
    return (
        -logits.log_softmax(-1)
        .gather(-1, targets.expand(*logits.shape[:-1]).unsqueeze(-1))
        .squeeze(-1)
    )


def fit_heads(
    priors: Tensor, features: Tensor, targets: Tensor, precision: Tensor, used: Tensor
) -> Tensor:
    """Heads of highest posterior, many at once.

    Args:
        priors: [B, outputs, D + 1] weights and biases that Gaussian priors are centred on; biases
            are free.
        features: [P, D] of support rows, centred and of unit scale.
        targets: [P] classes or values.
        precision: [B] of the prior on weights, against the mean loss of a row; infinity returns
            the prior.
        used: [B, P] 1 for rows that a head is fitted to.

    Returns:
        [B, outputs, D + 1].
    """
    known = precision.isinf()
    weight = used / used.sum(1, keepdim=True)
    if targets.is_floating_point():
        fitted = _least_squares(priors, features, targets, precision, weight)
    else:
        fitted = _logistic(priors, features, targets, precision, weight)
    return torch.where(known[:, None, None], priors, fitted)


def held_out_losses(
    priors: Tensor,
    features: Tensor,
    targets: Tensor,
    *,
    precisions: Sequence[float] = PRECISIONS,
) -> Tensor:
    """[priors, precisions, P] loss of every row under a head that was not fitted to it.

    Args:
        priors: [priors, outputs, D + 1].
        features: [P, D].
        targets: [P].
        precisions: Candidates.

    Raises:
        InputError: For fewer rows than folds.
    """
    rows = len(features)
    if rows < _FOLDS:
        raise InputError(
            f"a support of {rows} rows cannot be split into {_FOLDS} parts",
            where="support",
            fix=f"give at least {_FOLDS} labelled rows",
        )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    fold = torch.empty(rows, dtype=torch.long)
    fold[order] = torch.arange(rows) % _FOLDS
    shape = (len(priors), len(precisions), _FOLDS)
    held = (fold == torch.arange(_FOLDS)[:, None]).float().expand(*shape, -1).flatten(0, 2)
    many = priors[:, None, None].expand(*shape, -1, -1).flatten(0, 2)
    precision = torch.tensor(precisions)[None, :, None].expand(shape).flatten()
    heads = fit_heads(many, features, targets, precision, 1 - held)
    losses = head_losses(heads, features, targets) * held
    each: Tensor = losses.reshape(*shape, rows).sum(2)
    return each


def _logistic(
    priors: Tensor, features: Tensor, targets: Tensor, precision: Tensor, weight: Tensor
) -> Tensor:
    """Accelerated gradient steps (Nesterov, 1983), with the step that the curvature allows."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1)
    y = F.one_hot(targets, priors.shape[1]).float()
    # The Hessian of a softmax is at most one half.
    top = 0.5 * torch.linalg.matrix_norm(x, 2).square() * weight.amax(1)
    finite = precision.nan_to_num(posinf=1.0)
    pull = finite[:, None, None] * torch.ones(priors.shape[-1])
    pull[..., -1] = 0.0
    step = (1 / (top + finite))[:, None, None]
    ratio = (finite / (top + finite)).sqrt()[:, None, None]
    momentum = (1 - ratio) / (1 + ratio)
    delta, before = torch.zeros_like(priors), torch.zeros_like(priors)
    for _ in range(_ITERATIONS):
        ahead = delta + momentum * (delta - before)
        error = ((priors + ahead) @ x.T).softmax(1) - y.T
        gradient = (error * weight.unsqueeze(1)) @ x + pull * ahead
        before, delta = delta, ahead - step * gradient
    fitted: Tensor = priors + delta
    return fitted


def _least_squares(
    priors: Tensor, features: Tensor, targets: Tensor, precision: Tensor, weight: Tensor
) -> Tensor:
    """Ridge regression of what the prior leaves, with a free bias, through the kernel."""
    out = []
    for prior, lam, w in zip(priors[:, 0], precision.nan_to_num(posinf=1.0), weight, strict=True):
        rows = w > 0
        x, left = features[rows], targets[rows] - features[rows] @ prior[:-1] - prior[-1]
        centre, offset = x.mean(0), left.mean()
        x = x - centre
        kernel = x @ x.T + lam * VARIANCE * len(x) * torch.eye(len(x))
        slope = x.T @ torch.linalg.solve(kernel, left - offset)
        change = torch.cat([slope, (offset - centre @ slope).unsqueeze(0)])
        out.append(prior + change)
    return torch.stack(out).unsqueeze(1)
