"""Features made ready for peers: what reduction and scaling keep, and what they forget."""

from __future__ import annotations

import pytest
import torch

from ltdi.baselines import PEERS, Banks, Budget
from ltdi.baselines.scaling import Reduction, Scaling, scalings
from ltdi.evaluate import negative_log_likelihood
from ltdi.tasks import FeatureBank

from .conftest import WIDTH, drawn, gaussian_bank


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def isometry(wide: int) -> torch.Tensor:
    """[WIDTH, wide] that keeps every inner product."""
    return torch.linalg.qr(randn(wide, WIDTH)).Q.mT


def test_narrow_features_are_left_alone():
    x = randn(50, 8)
    assert Reduction.fit(x, most=8)(x) is x


def test_the_leading_axes_lose_no_more_than_the_best_approximation():
    x = randn(60, 20) * torch.linspace(0.1, 3, 20) + 1
    reduction = Reduction.fit(x, most=6)
    assert reduction.axes is not None
    torch.testing.assert_close(reduction.axes.mT @ reduction.axes, torch.eye(6), atol=1e-5, rtol=0)
    lost = (x - reduction(x) @ reduction.axes.mT).square().sum()
    best = torch.linalg.svdvals(x)[6:].square().sum()
    torch.testing.assert_close(lost, best, rtol=1e-4, atol=0)


def test_features_within_the_axes_keep_lengths_and_angles():
    narrow = 5 + randn(100, WIDTH)
    wide = narrow @ isometry(40)
    kept = Reduction.fit(wide, most=WIDTH)(wide)
    torch.testing.assert_close(kept @ kept.mT, narrow @ narrow.mT, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", ["meta-baseline", "maml", "maml-full", "metadiff"])
def test_a_wide_copy_of_the_features_changes_no_prediction(name):
    """Untrained peers see geometry alone, and a copy in more dimensions than axes has the same."""
    banks = [gaussian_bank(40, 0), gaussian_bank(20, 1)]
    spread = isometry(300)
    copies = Banks(*(FeatureBank(b.features @ spread, b.offsets, b.classes) for b in banks))
    (support, query), _ = drawn(10, 5, 2, 5, seed=2)
    untrained = Budget(iterations=0, way=5, shot=2, query=5, valid_episodes=20)
    narrow, wide = PEERS[name](), PEERS[name]()
    narrow.fit(banks, untrained)
    wide.fit(copies, untrained)
    here = negative_log_likelihood(narrow.predict(support, query))
    there = negative_log_likelihood(wide.predict(support @ spread, query @ spread))
    # Noise of MetaDiff's start is drawn in coordinates, so it differs.
    torch.testing.assert_close(there, here, rtol=0.15 if name == "metadiff" else 5e-3, atol=0.01)


def test_unit_scaling_forgets_lengths():
    x = 1 + randn(30, 6).abs()
    scaling = Scaling.fit(x, sphere=True, unit=True)
    longer = x * (0.1 + randn(30, 1, seed=1).abs())
    torch.testing.assert_close(scaling(longer), scaling(x))
    assert not torch.allclose(Scaling.fit(x, sphere=True)(longer), Scaling.fit(x, sphere=True)(x))


def test_every_candidate_has_unit_length_on_average():
    x = 3 + randn(200, 6)
    for scaling in scalings(x):
        assert float(scaling(x).square().sum(-1).mean()) == pytest.approx(1, rel=1e-4)
    assert Scaling.fit(torch.ones(4, 2), sphere=False)(torch.ones(4, 2)).abs().max() == 0
