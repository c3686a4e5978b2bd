"""A zoo and a generator of made-up classes: every part is real, none is good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.backbone import Backbone, ConvNet, InputTransform
from ltdi.engine import Runtime
from ltdi.generator import HeadGenerator
from ltdi.meta import MetaConfig
from ltdi.pipeline import HeadCollection, begin_zoo, make_anchor, train_generator
from ltdi.recipe import Network, Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.zoo import Zoo
from tests.pipeline.made import Train, gaussian_bank


@pytest.fixture(scope="package")
def train() -> FeatureBank:
    return gaussian_bank(30, 0, "train")


@pytest.fixture(scope="package")
def valid() -> FeatureBank:
    return gaussian_bank(12, 1, "valid")


@pytest.fixture(scope="package")
def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet(1, 4, 28)
    config = {"kind": "conv", "channels": 1, "width": 4, "size": 28}
    return Backbone(net, InputTransform(), config)


@pytest.fixture(scope="package")
def recipe() -> Recipe:
    r = Recipe(
        tasks=Tasks(ways=(3, 4), shots=(1, 2), query=4, per_setting=12, shard=3, folds=3),
        network=Network(width=16, depth=1, heads=2),
        meta=MetaConfig(iterations=12, meta_batch=2, tasks=4, warmup=2, checkpoint_every=5),
    )
    return replace(r, prepare=replace(r.prepare, steps=8))


@pytest.fixture(scope="package")
def zoo(tmp_path_factory, train, valid, backbone, recipe) -> Zoo:
    path = tmp_path_factory.mktemp("whole") / "zoo"
    anchor = make_anchor(recipe, train, valid)
    return begin_zoo(path, train, anchor, recipe, backbone).fill().zoo


@pytest.fixture(scope="package")
def run(zoo: Zoo, valid, backbone, recipe) -> Train:
    data = HeadCollection(zoo)

    def go(out: Path | None = None, changed: Recipe = recipe, progress=None) -> HeadGenerator:
        if out:
            out.mkdir(exist_ok=True)
        runtime = Runtime(out, progress)
        return train_generator(data, backbone, changed, valid=valid, runtime=runtime)

    return go


@pytest.fixture(scope="package")
def whole(run: Train) -> HeadGenerator:
    return run()
