"""What every peer must do: reach the attainable, repeat itself, and not care about class order."""

from __future__ import annotations

import pytest
import torch

from ltdi.baselines import PEERS, Banks, Budget, Method, ProtoNet, tuning
from ltdi.errors import InputError
from ltdi.evaluate import accuracy, negative_log_likelihood

from .conftest import drawn, gaussian_bank

UNTRAINED = ("protonet",)
# What a peer may lose against the nearest mean, which is close to optimal here.
SLACK = 0.03


@pytest.fixture(scope="module", params=PEERS)
def peer(request, banks, budget) -> Method:
    method = PEERS[request.param]()
    method.fit(banks, budget)
    return method


def mean_accuracy(logits: torch.Tensor) -> float:
    return float(accuracy(logits).mean())


def test_protonet_is_near_the_attainable():
    (support, query), means = drawn(400, 5, 5, 10, seed=4)
    best = mean_accuracy(ProtoNet().predict(means[:, :, None], query))
    reached = mean_accuracy(ProtoNet().predict(support, query))
    assert best - 0.06 < reached < best


def test_every_peer_is_near_protonet(peer, fresh):
    nearest = mean_accuracy(ProtoNet().predict(*fresh))
    assert mean_accuracy(peer.predict(*fresh)) > nearest - SLACK


def test_logits_are_calibrated(peer, fresh):
    logits = peer.predict(*fresh)
    best = float(negative_log_likelihood(logits).mean())
    for factor in (0.6, 1.6):
        assert float(negative_log_likelihood(factor * logits).mean()) > best


def test_permuting_classes_permutes_logits(peer, fresh):
    support, query = fresh.support[:20], fresh.query[:20]
    order = torch.tensor([3, 0, 4, 2, 1])
    there = peer.predict(support[:, order], query)
    here = peer.predict(support, query)[..., order]
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def test_one_fit_serves_other_ways_shots_and_single_episodes(peer):
    (support, query), _ = drawn(3, 7, 2, 4, seed=5)
    logits = peer.predict(support, query)
    assert logits.shape == (3, 7, 4, 7) and not logits.requires_grad
    alone = peer.predict(support[:1], query[:1])
    torch.testing.assert_close(alone, logits[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PEERS)
def test_a_seed_fixes_the_result(name, banks, fresh):
    small = Budget(iterations=3, way=5, shot=1, query=5, valid_episodes=10, seed=11)
    outcomes = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        before = torch.random.get_rng_state()
        method = PEERS[name]()
        method.fit(banks, small)
        assert torch.equal(before, torch.random.get_rng_state())
        outcomes.append(method.predict(fresh.support[:5], fresh.query[:5]))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("name", PEERS)
def test_choices_are_made_on_validation_classes(name, banks, monkeypatch):
    seen = []
    draw = tuning.draw

    def drawing(bank, *args, **kwargs):
        seen.append(bank.features)
        return draw(bank, *args, **kwargs)

    # What training draws, it draws under a name of its own.
    monkeypatch.setattr(tuning, "draw", drawing)
    PEERS[name]().fit(banks, Budget(iterations=1, way=5, shot=1, query=5, valid_episodes=4))
    assert seen and all(torch.equal(features, banks[1].features) for features in seen)


@pytest.mark.parametrize("name", [n for n in PEERS if n not in UNTRAINED])
def test_predicting_before_fitting_says_what_to_do(name, fresh):
    with pytest.raises(InputError, match="call fit first"):
        PEERS[name]().predict(*fresh)


def test_small_validation_sets_give_smaller_episodes(banks):
    method = PEERS["linear-probe"]()
    small = Banks(banks.train, gaussian_bank(3, 7))
    method.fit(small, Budget(0, way=5, shot=18, query=50, valid_episodes=4))


def test_each_peer_says_what_it_is():
    for name, peer in PEERS.items():
        assert (peer.name, peer.kind) == (name, "peer") and len(peer.note) > 20
