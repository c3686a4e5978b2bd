"""MetaDiff: gradient descent before training, and a better denoiser after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ltdi.baselines import MetaDiff
from ltdi.baselines.chain import Plan, centred, row_logits
from ltdi.baselines.metadiff import GradientDenoiser
from ltdi.baselines.outer import Recipe, meta_train
from ltdi.baselines.tuning import draw
from ltdi.evaluate import accuracy, negative_log_likelihood


@pytest.fixture(scope="module")
def net(banks, budget) -> GradientDenoiser:
    return next(iter(MetaDiff().candidates(banks[0], budget)))


def test_targets_fit_all_samples_better_than_prototypes(net, banks, budget):
    batch = draw(banks[0], budget, episodes=30, seed=8)
    samples = net.scaling(torch.cat(batch, 2))
    prototypes = 5 * F.normalize(centred(samples.mean(2)), dim=-1)
    target = net.fit(batch)
    fitted, start = (
        negative_log_likelihood(row_logits(samples, rows)) for rows in (target, prototypes)
    )
    assert (fitted < start).all()
    torch.testing.assert_close(target.mean(1), torch.zeros_like(target[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@torch.no_grad()
def test_an_untrained_chain_descends_the_support_loss(net, fresh, temperature):
    net.plan = Plan(10, temperature, 1)
    rows = net.generate(fresh.support) * net.size
    loss = negative_log_likelihood(row_logits(net.scaling(fresh.support), rows))
    nothing = torch.tensor(5.0).log()
    assert float((loss < nothing).float().mean()) > 0.95
    assert float(accuracy(net.raw(*fresh)).mean()) > 0.5


def test_a_denoiser_that_ignores_the_gradient_learns_to_heed_it(banks, budget):
    net = next(iter(MetaDiff().candidates(banks[0], budget)))
    training, batch = net.rng, draw(banks[1], budget, episodes=100, seed=8)

    @torch.no_grad()
    def error() -> float:
        net.rng = torch.Generator().manual_seed(0)
        value = float(net.loss(batch))
        net.rng = training
        return value

    as_built = error()
    with torch.no_grad():
        net.gain.zero_()
    deaf, short = error(), replace(budget, iterations=60)
    meta_train(net, net.loss, lambda: -error(), banks[0], short, Recipe(0.01))
    assert as_built < deaf
    assert error() < deaf - 0.5 * (deaf - as_built)
