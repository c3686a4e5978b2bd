"""`ltdi.crossdomain`: no task's anchor knows its domain, and a generator is what its files say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.conv import ConvNet
from ltdi.crossdomain import (
    Domain,
    domain_folds,
    fit_domain_anchor,
    prepare_domains,
    split_domain,
    together,
    train_domain_generator,
)
from ltdi.errors import InputError
from ltdi.evaluate import accuracy
from ltdi.generator import DomainHeadGenerator, Generator
from ltdi.meta import MetaConfig
from ltdi.recipe import Diffusion, Network, Recipe, Tasks
from tests.domains import CLASSES, make_bank, make_domains

DOMAINS = make_domains(width=16)
SOURCES, TARGET = DOMAINS[:3], DOMAINS[3]
RECIPE = Recipe(
    tasks=Tasks(ways=(4,), shots=(1, 3), query=6, probe=3, per_setting=30, folds=0),
    diffusion=Diffusion(first=0.25),
    network=Network(kind="domain", width=16, depth=1, heads=2),
    meta=MetaConfig(iterations=8, meta_batch=2, inner_steps=2, tasks=6, warmup=2, ema=0.8),
    anchor="domain",
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet(1, 8, 28)
    config = {"kind": "conv", "channels": 1, "width": 8, "size": 28}
    return Backbone(net, InputTransform(28, 1), config)


@pytest.fixture(scope="module")
def generator(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> DomainHeadGenerator:
    anchor, left_out = fit_domain_anchor(
        SOURCES, shapes=[(4, 1), (4, 3)], seed=0, episodes=10, pooled=True
    )
    folds = domain_folds(SOURCES, left_out, named=True)
    place = tmp_path_factory.mktemp("domain")
    data = prepare_domains(place / "zoo", SOURCES, folds, RECIPE, backbone)
    return train_domain_generator(data, anchor, backbone, RECIPE)


def test_a_split_shares_no_sample_and_loses_none():
    bank = make_bank(0, count=10)
    domain = split_domain("x", bank, share=0.35, seed=3)
    assert len(domain.pool) == 6 * 3 and domain.bank.offsets.diff().tolist() == [7] * 6
    both = torch.cat([domain.pool, domain.bank.features])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, bank.features.tolist()))
    again = split_domain("x", bank, share=0.35, seed=3)
    assert torch.equal(again.pool, domain.pool) and torch.equal(domain.full.features, bank.features)


def test_together_keeps_domains_apart():
    bank = together(SOURCES)
    assert bank.classes[:2] == ("clay/ant", "clay/bee") and len(bank.classes) == 18
    start, end = bank.offsets[7], bank.offsets[8]
    own = SOURCES[1].bank
    assert torch.equal(bank.features[start:end], own.features[own.offsets[1] : own.offsets[2]])


def test_queries_are_what_the_smallest_class_leaves():
    assert TARGET.bank.queries_left(1, 15) == 15 and TARGET.bank.queries_left(8, 15) == 12
    with pytest.raises(InputError, match="with 20 shots none is left"):
        TARGET.bank.queries_left(20, 15)


def test_an_anchor_of_a_fold_does_not_know_its_domain():
    """Whatever the held-out domain's features are, the anchor of the others is the same."""
    settings = {"shapes": [(4, 1)], "seed": 0, "episodes": 5}
    _, left_out = fit_domain_anchor(SOURCES, **settings)
    noise = torch.randn(SOURCES[0].full.features.shape, generator=torch.Generator().manual_seed(5))
    bank = replace(SOURCES[0].full, features=noise)
    changed: list[Domain] = [split_domain("clay", bank, share=1 / 3, seed=0), *SOURCES[1:]]
    _, other = fit_domain_anchor(changed, **settings)
    centre = torch.stack([d.full.features.mean(0) for d in SOURCES[1:]]).mean(0)
    for anchor in (left_out[0], other[0]):
        # Back in the features, the expected means are those of the other two domains.
        means = anchor.prior @ torch.linalg.inv(anchor.basis) + centre
        for c in range(6):
            own = [d.full.features[d.full.offsets[c] : d.full.offsets[c + 1]] for d in SOURCES[1:]]
            expected = torch.stack([x.mean(0) for x in own]).mean(0)
            torch.testing.assert_close(means[c], expected, atol=1e-3, rtol=1e-3)


def test_a_generator_is_better_than_a_support_alone(generator: DomainHeadGenerator):
    tasks = TARGET.episodes(4, 1, 10, 60, 1)
    support, query = TARGET.bank.features[tasks.support], TARGET.bank.features[tasks.query]
    told = generator.weights(support, pool=TARGET.pool, names=tasks.classes)
    nearest = -torch.cdist(query.flatten(1, 2), support.mean(2)).unflatten(1, (4, 10))
    ours = accuracy(generator.query_logits(told, query)).mean()
    assert ours > accuracy(nearest).mean() + 0.03


def test_a_saved_generator_is_the_same(generator: DomainHeadGenerator, tmp_path: Path):
    loaded = Generator.from_pretrained(generator.save(tmp_path / "g"))
    assert isinstance(loaded, DomainHeadGenerator) and loaded.classes == CLASSES
    assert loaded.revision == generator.revision and loaded.kind == "domain-head"
    card = (tmp_path / "g" / "README.md").read_text()
    assert "ltdi.Support(images, labels, pool, names)" in card and "'ant', 'bee'" in card
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    labels, pool = torch.tensor([0, 0, 1, 1]), torch.rand(9, 1, 28, 28)
    for support in (
        ltdi.Support(images, labels),
        ltdi.Support(images, labels, pool),
        ltdi.Support(images, labels, pool, ("fox", "bee")),
    ):
        a, b = generator.generate(support), loaded.generate([support])[0]
        assert a["weight"].shape == (2, 16) and torch.equal(a["weight"], b["weight"])


def test_pool_and_names_change_what_is_generated(generator: DomainHeadGenerator):
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    labels, pool = torch.tensor([0, 0, 1, 1]), torch.rand(9, 1, 28, 28)
    heads = [
        generator.generate(ltdi.Support(images, labels, *more))["weight"]
        for more in ((), (pool,), (pool, ("fox", "bee")), (pool, ("bee", "fox")))
    ]
    for i, a in enumerate(heads):
        for b in heads[i + 1 :]:
            assert not torch.allclose(a, b)


def test_a_support_that_the_generator_cannot_read(generator: DomainHeadGenerator):
    images, labels = torch.rand(4, 1, 28, 28), torch.tensor([0, 0, 1, 1])
    with pytest.raises(InputError, match=r"(?s)unknown class name .foxx..*did you mean .fox."):
        generator.generate(ltdi.Support(images, labels, None, ("foxx", "bee")))
    with pytest.raises(InputError) as caught:
        generator.generate(ltdi.Support(images, labels, torch.full((2, 1, 28, 28), torch.nan)))
    assert caught.value.where.startswith("support.unlabelled")
