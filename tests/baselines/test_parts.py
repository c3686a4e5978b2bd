"""The parts peers are built from, against solutions known by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ltdi.baselines import (
    Batch,
    Budget,
    Hypernetwork,
    Maml,
    MetaBaseline,
    ProtoNet,
    choose,
    validation_episodes,
)
from ltdi.baselines.inner import Adam, Descent, adapt, linear, trajectory, zero_head
from ltdi.baselines.linear_probe import logistic_head
from ltdi.baselines.outer import EpisodeNet, Recipe, meta_train
from ltdi.baselines.reptile import Reptile
from ltdi.baselines.tuning import score
from ltdi.errors import DivergedError
from ltdi.evaluate import calibrate, negative_log_likelihood
from ltdi.weights import prototype_head

from .conftest import drawn


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 1), (5, 5)])
def test_linear_probe_equals_scikit_learn(strength, way, shot):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="SKLEARN NOT TESTED")
    (support, query), _ = drawn(3, way, shot, 10, seed=1)
    ours = linear(query, logistic_head(support, strength)).softmax(-1)
    labels = np.arange(way).repeat(shot)
    for episode in range(3):
        # scikit-learn fits a single row to two classes: the difference of ours, whose squared
        # length is twice that of our two rows together.
        c = 2 * strength if way == 2 else strength
        theirs = linear_model.LogisticRegression(C=c, tol=1e-9, max_iter=9999, solver="newton-cg")
        theirs.fit(support[episode].flatten(0, 1).numpy().astype(float), labels)
        expected = theirs.predict_proba(query[episode].flatten(0, 1).numpy().astype(float))
        np.testing.assert_allclose(ours[episode].flatten(0, 1).numpy(), expected, atol=1e-3)


def test_protonet_is_the_linear_prototype_head():
    (support, query), _ = drawn(20, 5, 3, 10, seed=2)
    head = prototype_head(support.mean(2), 1.0)
    ours = ProtoNet().predict(support, query)
    assert torch.equal(ours.argmax(-1), linear(query, head).argmax(-1))
    torch.testing.assert_close(ours.softmax(-1), linear(query, head).softmax(-1), atol=1e-3, rtol=0)


def test_maml_adapts_the_loss_down_and_learns_in_the_outer_loop(banks, budget, fresh):
    method = Maml()
    method.fit(banks, budget)
    net = method.net
    support = net.embed(fresh.support)
    before = negative_log_likelihood(linear(support, zero_head(support)))
    after = negative_log_likelihood(linear(support, net.head(fresh.support)))
    assert (after < before).all()
    untrained = Maml()
    untrained.fit(banks, type(budget)(**{**vars(budget), "iterations": 0}))
    losses = [float(negative_log_likelihood(m.predict(*fresh)).mean()) for m in (method, untrained)]
    assert losses[0] < losses[1] + 0.01


def test_a_row_shared_by_all_classes_changes_no_prediction(fresh):
    support, query = fresh.support[:5], fresh.query[:5]
    start = zero_head(support)
    shared = {n: w + torch.randn(w.shape[-1:] if n == "weight" else ()) for n, w in start.items()}
    ends = [
        adapt(lambda h, _: negative_log_likelihood(linear(support, h)), s, Descent(RATES), 4)
        for s in (start, shared)
    ]
    first, second = (linear(query, end).softmax(-1) for end in ends)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


RATES: dict[str, float | torch.Tensor] = {"weight": 0.01, "bias": 0.01}


def test_gradients_reach_through_the_inner_steps():
    # One step on w^2 / 2 from w = 1 with rate r ends at 1 - r; two steps at (1 - r)^2.
    rate = torch.tensor([0.3, 0.3], dtype=torch.double, requires_grad=True)
    start = {"w": torch.ones(1, dtype=torch.double)}
    end = adapt(lambda w, _: w["w"] ** 2 / 2, start, Descent({"w": rate}), 2, differentiable=True)
    end["w"].sum().backward()
    torch.testing.assert_close(rate.grad, torch.full((2,), -0.7, dtype=torch.double))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_equals_torch(decay):
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    theirs = nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([theirs], lr=0.05, weight_decay=decay)
    for ours in trajectory(lambda w, _: (w["w"] ** 4).sum(1), {"w": start}, Adam(0.05, decay), 20):
        optimiser.zero_grad()
        (theirs**4).sum().backward()
        optimiser.step()
        torch.testing.assert_close(ours["w"], theirs.data)


def test_a_full_outer_step_of_reptile_lands_on_the_mean_of_the_adapted_weights(banks, budget):
    net, *_ = Reptile().candidates(banks[0], budget)
    # Ten samples a class in ten parts, all parts alike: the inner steps are those of the walk.
    support = drawn(6, 5, 1, 0, seed=3)[0].support
    *_, adapted = net.walk(net.scaling(support), net.plan)
    net.loss(Batch(support.expand(-1, -1, 4, -1), support.expand(-1, -1, 6, -1))).backward()
    for name in ("up", "down"):
        phi = getattr(net, name)
        landed = phi.detach() - phi.grad
        torch.testing.assert_close(landed, adapted[name].mean(0), atol=1e-5, rtol=1e-4)
        assert not torch.equal(landed, phi.detach())


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 20.0))
def test_calibration_finds_the_temperature_that_drew_the_labels(true_scale):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, 20, 5, generator=rng) / true_scale
    # Gumbel noise draws labels from softmax(true_scale * logits); place queries under their label.
    uniform = torch.rand(logits.shape, generator=rng).clamp_min(1e-9)
    label = (true_scale * logits - (-uniform.log()).log()).argmax(-1)
    rows = [logits[label == c][:3000] for c in range(5)]
    arranged = torch.stack(rows)[None]
    assert calibrate(arranged) == pytest.approx(true_scale, rel=0.06)


def test_calibration_stays_finite_where_every_query_is_right():
    perfect = 3 * torch.eye(5)[None, :, None, :].expand(10, 5, 4, 5)
    assert math.isfinite(calibrate(perfect)) and calibrate(perfect) < 10


def test_calibration_refuses_nan():
    with pytest.raises(DivergedError):
        calibrate(torch.full((1, 2, 1, 2), float("nan")))


def test_choose_takes_the_first_best_and_skips_what_diverged():
    scores = {"a": 0.5, "b": 0.9, "c": 0.9, "d": float("nan")}
    assert choose(scores, scores.__getitem__) == "b"
    with pytest.raises(DivergedError):
        choose(["d"], scores.__getitem__)


def test_training_keeps_the_best_state_and_reports_divergence(banks, budget):
    class Shift(EpisodeNet):
        def raw(self, support, query):
            return ProtoNet().predict(support, query)

    net, scores = Shift(), iter([0.1, 0.9, *[0.2] * 100])
    seen = []

    def score():
        seen.append(float(net.log_scale.detach()))
        return next(scores)

    assert meta_train(net, net.loss, score, banks[0], budget, Recipe(0.01, batch=2)) == 0.9
    assert float(net.log_scale.detach()) == seen[1] != seen[-1]
    with pytest.raises(DivergedError, match="iteration"):
        meta_train(net, lambda b: net.loss(b) * float("nan"), lambda: 0.0, banks[0], budget, BAD)


BAD = Recipe(0.01, batch=2)


def test_recipes_share_the_iterations_and_the_best_state_is_kept(banks):
    class Two(MetaBaseline):
        # A step size that throws the map away costs nothing but its iterations.
        recipes = (Recipe(1e-3, batch=2), Recipe(10.0, batch=2))

    seen: list[tuple[int, int]] = []
    method, plain = Two(), MetaBaseline()
    small = Budget(iterations=7, way=5, shot=1, query=5, valid_episodes=20)
    method.fit(banks, small, lambda done, total, _: seen.append((done, total)))
    assert seen == [(n + 1, 7) for n in range(7)]
    plain.fit(banks, Budget(**{**vars(small), "iterations": 0}))
    batch = validation_episodes(banks[1], small)
    assert score(method.predict(*batch)) >= score(plain.predict(*batch))


def test_an_untrained_hypernetwork_is_the_cosine_nearest_mean(banks, budget, fresh):
    net, *_ = Hypernetwork().candidates(banks[0], budget)
    support, query = map(net.scaling, fresh)
    expected = nn.functional.cosine_similarity(
        query[..., None, :], support.mean(2)[:, None, None], -1
    )
    torch.testing.assert_close(net.raw(*fresh), expected * query.norm(dim=-1, keepdim=True))
