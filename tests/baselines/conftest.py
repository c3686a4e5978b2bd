"""An easy task with a known answer: isotropic Gaussian classes with random means."""

from __future__ import annotations

import pytest
import torch

from ltdi.baselines import Banks, Batch, Budget
from ltdi.tasks import FeatureBank

WIDTH, ITEMS, SPREAD = 16, 20, 0.9


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian_bank(classes: int, seed: int) -> FeatureBank:
    """Class means ~ N(shift, SPREAD^2), items ~ N(mean, 1)."""
    rng = torch.Generator().manual_seed(seed)
    means = 5 + SPREAD * torch.randn(classes, 1, WIDTH, generator=rng)
    items = means + torch.randn(classes, ITEMS, WIDTH, generator=rng)
    names = tuple(f"class {c}" for c in range(classes))
    return FeatureBank(items.flatten(0, 1), torch.arange(classes + 1) * ITEMS, names)


@pytest.fixture(scope="session")
def banks() -> Banks:
    return Banks(gaussian_bank(200, 0), gaussian_bank(80, 1))


@pytest.fixture(scope="session")
def budget() -> Budget:
    return Budget(iterations=100, way=5, shot=5, query=10, valid_episodes=60, seed=3)


@pytest.fixture(scope="session")
def fresh() -> Batch:
    """200 test episodes drawn afresh from the distribution itself."""
    return drawn(200, 5, 5, 10, seed=9)[0]


def drawn(episodes: int, way: int, shot: int, query: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """Episodes of the distribution, and the true class means [E, way, D] behind them."""
    rng = torch.Generator().manual_seed(seed)
    means = 5 + SPREAD * torch.randn(episodes, way, 1, WIDTH, generator=rng)
    data = means + torch.randn(episodes, way, shot + query, WIDTH, generator=rng)
    return Batch(data[:, :, :shot], data[:, :, shot:]), means.squeeze(2)
