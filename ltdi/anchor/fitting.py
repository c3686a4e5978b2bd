"""Anchors by name: fitted on training classes, chosen on validation classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ltdi.anchor.anchor import Anchor, PrototypeAnchor
from ltdi.anchor.gaussian import GaussianAnchor
from ltdi.errors import unknown
from ltdi.tasks import FeatureBank
from ltdi.weights import head_logits, head_space


def make_empty_anchor(name: str, features: int) -> Anchor:
    """An anchor of a kind, to load a state dict into.

    Raises:
        InputError: If the name is unknown.
    """
    makers: dict[str, Callable[[], Anchor]] = {
        Anchor.name: Anchor,
        PrototypeAnchor.name: PrototypeAnchor,
        GaussianAnchor.name: lambda: GaussianAnchor(features),
    }
    if name not in makers:
        raise unknown("anchor", name, makers)
    return makers[name]()


def fit_anchor(
    name: str,
    train: FeatureBank,
    valid: FeatureBank,
    *,
    way: int,
    shots: tuple[int, ...],
    seed: int,
    ridges: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0),
    spreads: tuple[float, ...] = (0.0, 1.0, 3.0, 10.0),
    refine: tuple[int, ...] = (0,),
) -> Anchor:
    """Fit a data-dependent anchor: estimates on `train`, free choices on `valid` classes.

    Args:
        name: "none", "prototype" or "gaussian".
        train: Features of training classes.
        valid: Features of validation classes.
        way: Of validation episodes.
        shots: Of validation episodes.
        seed: Of episodes.
        ridges: Candidates of `GaussianAnchor.fit`.
        spreads: Likewise.
        refine: Candidate numbers of iterations of `GaussianAnchor.refine`.

    Raises:
        InputError: If the name is unknown.
    """
    if name == "none":
        return Anchor()
    if name == "prototype":
        return _calibrate(PrototypeAnchor(), valid, way, shots, seed)[0]
    if name == "gaussian":
        fitted = [
            _calibrate(
                GaussianAnchor(train.width).fit(train, ridge, spread), valid, way, shots, seed
            )
            for ridge in ridges
            for spread in spreads
        ]
        best = min(fitted, key=lambda pair: pair[1])
        assert isinstance(best[0], GaussianAnchor)
        ridge, spread = best[0].ridges.tolist()
        candidates = [best]
        for iterations in refine:
            if iterations > 0:
                fresh = GaussianAnchor(train.width).fit(train, ridge, spread)
                fresh.scale.copy_(best[0].scale)
                fresh.refine(train, iterations, seed=seed)
                candidates.append(_calibrate(fresh, valid, way, shots, seed))
        return min(candidates, key=lambda pair: pair[1])[0]
    raise unknown("anchor", name, ("none", "prototype", "gaussian"), where="recipe.anchor")


@torch.no_grad()
def _calibrate(
    anchor: PrototypeAnchor | GaussianAnchor,
    valid: FeatureBank,
    way: int,
    shots: tuple[int, ...],
    seed: int,
) -> tuple[Anchor, float]:
    """Set the inverse temperature that minimises the validation NLL; return it with that NLL."""
    way = min(way, len(valid.classes))
    space = head_space(valid.width, way)
    anchor.scale.fill_(1.0)
    logits = []
    for shot in shots:
        query = valid.queries_left(shot, 15)
        episodes = valid.episodes(way=way, shot=shot, query=query, episodes=200, seed=seed)
        support = valid.features[episodes.support]
        theta = anchor(support, torch.ones(support.shape[:3]), space)
        q = valid.features[episodes.query].flatten(1, 2)
        logits.append(head_logits(theta, q).flatten(0, 1))
    stacked = torch.cat(logits)
    labels = torch.cat(
        [torch.arange(way).repeat_interleave(len(x) // (200 * way)).repeat(200) for x in logits]
    )
    grid = torch.logspace(-4, 2, 61) / stacked.std().clamp(min=1e-9)
    losses = torch.stack([F.cross_entropy(s * stacked, labels) for s in grid])
    best = int(losses.argmin())
    anchor.scale.fill_(float(grid[best]))
    return anchor, float(losses[best])
