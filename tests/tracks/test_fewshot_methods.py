"""`ltdi.tracks.fewshot_methods`: an ensemble averages probabilities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltdi.backbone import Backbone, ConvNet, InputTransform
from ltdi.baselines import Banks, Budget, validation_episodes
from ltdi.errors import InputError
from ltdi.evaluate import accuracy, negative_log_likelihood
from ltdi.meta import MetaConfig
from ltdi.recipe import Network, Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.tracks.fewshot_methods import Ensemble, Generated, World, methods_of
from ltdi.weights import query_logits

WIDTH, ITEMS, WAY = 8, 12, 3
BUDGET = Budget(iterations=3, way=WAY, shot=1, query=6, valid_episodes=40, seed=0)
RECIPE = Recipe(
    tasks=Tasks(ways=(WAY,), shots=(1, 2), query=5, per_setting=40, shard=20, folds=4),
    network=Network(width=16, depth=1, heads=2),
    meta=MetaConfig(iterations=20, meta_batch=2, tasks=4, warmup=2),
)
RECIPE = replace(RECIPE, prepare=replace(RECIPE.prepare, steps=8))


def bank(classes: int, seed: int, prefix: str) -> FeatureBank:
    rng = torch.Generator().manual_seed(seed)
    means = 1 + torch.randn(classes, 1, WIDTH, generator=rng)
    spread = torch.linspace(0.4, 1.6, WIDTH)
    items = means + spread * torch.randn(classes, ITEMS, WIDTH, generator=rng)
    names = tuple(f"{prefix}{c}" for c in range(classes))
    return FeatureBank(items.flatten(0, 1), torch.arange(classes + 1) * ITEMS, names)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet(1, 4, 28)
    config = {"kind": "conv", "channels": 1, "width": 4, "size": 28}
    backbone = Backbone(net, InputTransform(), config)
    parts = (bank(24, 0, "train"), bank(14, 1, "valid"), bank(12, 2, "test"))
    return World(tmp_path_factory.mktemp("world"), *parts, backbone)


def fitted(world: World, *names: str) -> dict[str, Generated | Ensemble]:
    methods = methods_of(names, RECIPE, world, WAY)
    for method in methods.values():
        method.fit(Banks(world.train, world.valid), BUDGET)
    return methods  # type: ignore[return-value]


@pytest.fixture(scope="module")
def methods(world: World) -> dict[str, Generated | Ensemble]:
    return fitted(world, "lt-di", "lt-di-16")


@pytest.fixture(scope="module")
def episodes(world: World) -> tuple[Tensor, Tensor]:
    drawn = world.test.episodes(way=WAY, shot=1, query=8, episodes=30, seed=0)
    return world.test.features[drawn.support], world.test.features[drawn.query]


def single(methods: dict[str, Generated | Ensemble]) -> Generated:
    out = methods["lt-di"]
    assert isinstance(out, Generated)
    return out


def test_a_generator_is_tuned_on_as_many_episodes_as_peers(world: World, monkeypatch):
    seen: list[tuple] = []
    monkeypatch.setattr("ltdi.tracks.world.tuned", lambda *given: seen.append(given[3:]))
    methods_of(["lt-di"], RECIPE, world, WAY)["lt-di"].fit(Banks(world.train, world.valid), BUDGET)
    assert seen == [([(WAY, 1)], 40)]


def ensemble(methods: dict[str, Generated | Ensemble], **settings: float) -> Ensemble:
    """An ensemble with settings of its own, on the same generator."""
    out = Ensemble(single(methods))
    for name, value in settings.items():
        setattr(out, name, value)
    return out


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_the_mean_probability_is_a_probability(methods, episodes, temperature: float):
    e = ensemble(methods, temperature=temperature, steps=2, sharpness=1.3)
    total = (e.predict(*episodes) / 1.3).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_samples_that_are_equal_are_one_head(methods, episodes):
    support, query = episodes
    generator = single(methods).generator
    assert generator is not None
    theta = generator.weights(support, steps=2, temperature=0.0, end=1.0)
    wanted = query_logits(1.3 * theta, query).softmax(-1)
    e = ensemble(methods, temperature=0.0, steps=2, sharpness=1.3)
    torch.testing.assert_close(e.predict(*episodes).softmax(-1), wanted)


def test_it_is_the_mean_over_the_samples(methods, episodes):
    support, query = episodes
    generator = single(methods).generator
    assert generator is not None
    e = ensemble(methods, temperature=1.0, steps=2, sharpness=1.0)
    heads = generator.draws(support, samples=16, temperature=1.0, steps=2, end=1.0)
    each = torch.stack([query_logits(theta, query).softmax(-1) for theta in heads])
    out = e.predict(*episodes)
    assert len(each) == 16 and float(each.std(0).max()) > 1e-3
    torch.testing.assert_close(out.exp(), each.mean(0))
    # The logarithm is concave: the mean is no worse than its members are on average.
    alone = torch.stack([negative_log_likelihood(p.log()) for p in each]).mean(0)
    assert bool((negative_log_likelihood(out) <= alone + 1e-5).all())


def test_it_takes_over_a_generator_and_chooses_on_validation_classes(world: World, methods):
    e = methods["lt-di-16"]
    assert isinstance(e, Ensemble) and e.single is methods["lt-di"]
    assert (e.prepare_s, e.train_s) == (e.single.prepare_s, e.single.train_s)
    support, query = validation_episodes(world.valid, BUDGET)
    chosen = float(negative_log_likelihood(e.predict(support, query)).mean())
    for steps in (1, 5, 20):
        for temperature in (0.5, 1.0):
            for sharpness in (0.7, 1.0, 1.5):
                other = ensemble(
                    methods, steps=steps, temperature=temperature, sharpness=sharpness
                ).predict(support, query)
                slack = 1e-3 if steps < 20 else 0.01  # 20 steps are no candidate
                assert chosen <= float(negative_log_likelihood(other).mean()) + slack


def test_alone_it_trains_its_own_generator(world: World, methods, episodes):
    """The same one: an ensemble does not depend on its company."""
    alone = fitted(world, "lt-di-16")["lt-di-16"]
    assert torch.equal(alone.predict(*episodes), methods["lt-di-16"].predict(*episodes))


def test_an_ensemble_does_its_job(methods, episodes):
    assert float(accuracy(methods["lt-di-16"].predict(*episodes)).mean()) > 0.6


def test_it_cannot_predict_before_it_is_fitted(world: World, episodes):
    for fresh in methods_of(["lt-di", "lt-di-16", "anchor"], RECIPE, world, WAY).values():
        with pytest.raises(InputError, match="cannot predict before it is fitted"):
            fresh.predict(*episodes)
