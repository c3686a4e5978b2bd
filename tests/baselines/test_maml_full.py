"""Full MAML: the walk without a map per task is the walk with one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi.baselines import Batch, MamlFull
from ltdi.baselines.anil import STEPS, Learner
from ltdi.baselines.inner import Descent, adapt, linear, zero_head
from ltdi.baselines.maml_full import FullLearner
from ltdi.baselines.scaling import Scaling
from ltdi.evaluate import negative_log_likelihood

from .conftest import WIDTH


@pytest.fixture
def net(banks) -> FullLearner:
    """A learner off its start: all step sizes differ, by step as well."""
    rng = torch.Generator().manual_seed(0)
    learner = FullLearner(Scaling.fit(banks[0].features, sphere=True), WIDTH, 3.0, 0.1)
    for parameter in learner.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    return learner


def explicit(net: FullLearner, batch: Batch) -> torch.Tensor:
    """The same walk, over a map [D, D] and an offset [D] for each task."""
    support, query = map(net.scaling, batch)

    def logits(weights, x):
        embedded = x.flatten(1, 2) @ weights["body"] + weights["offset"][:, None]
        return linear(embedded.view_as(x), weights)

    shared = {"body": net.body, "offset": net.offset}
    start = {n: w.expand(len(support), *w.shape) for n, w in shared.items()}
    end = adapt(
        lambda w, _: negative_log_likelihood(logits(w, support)),
        {**start, **zero_head(support)},
        Descent({n: r.exp() for n, r in net.log_rates.items()}),
        STEPS,
        differentiable=True,
    )
    return logits(end, query)


def test_the_walk_equals_that_of_a_map_for_each_task(net, fresh):
    batch = Batch(fresh.support[:6], fresh.query[:6])
    ours, theirs = net.raw(*batch), explicit(net, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    gradients = []
    for logits in (ours, theirs):
        net.zero_grad()
        negative_log_likelihood(logits).mean().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        )
    assert {"body", "offset", "log_rates.body", "log_rates.weight"} <= set(gradients[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_adaptation_lowers_the_loss_of_the_support(banks, budget, fresh):
    method = MamlFull()
    method.fit(banks, replace(budget, iterations=20))
    with torch.no_grad():
        embedded, _, head = method.net.adapted(*fresh)
        after = negative_log_likelihood(linear(embedded, head))
        start = method.net.embed(fresh.support)
    before = negative_log_likelihood(linear(start, zero_head(start)))
    assert (after < before).all()
    assert float((embedded - start).abs().max()) > 1e-4  # the adapter has moved as well


def test_an_adapter_that_stays_is_anil(net, fresh):
    with torch.no_grad():
        net.offset.zero_()
        for name in ("body", "offset"):
            net.log_rates[name].fill_(-float("inf"))
        anil = Learner(net.scaling, WIDTH, 3.0)
        anil.load_state_dict({n: v for n, v in net.state_dict().items() if n in anil.state_dict()})
        torch.testing.assert_close(net.raw(*fresh), anil.raw(*fresh), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_queries_do_not_see_each_other(net, fresh):
    alone = net.raw(fresh.support, fresh.query[:, :, :1])
    torch.testing.assert_close(alone, net.raw(*fresh)[:, :, :1], atol=1e-4, rtol=1e-4)
    head = net.adapted(*fresh)[2]
    torch.testing.assert_close(net.head(fresh.support)["weight"], head["weight"])
