"""One tiny generator of whole networks: every part is real, none is good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ltdi.backbone import InputTransform
from ltdi.data import ImageSet
from ltdi.generator import NetGenerator
from ltdi.nets import InitialTraining, NetConfig, NetHost, learn_initial
from ltdi.recipe import NET_RECIPE, Recipe
from ltdi.tasks import FeatureBank
from ltdi.whole import NetCollection, begin_net_zoo, train_net_generator
from ltdi.zoo import Zoo

CONFIG = NetConfig(size=12, widths=(4, 8), kernels=(5, 3), strides=(2, 2))


@pytest.fixture(scope="session")
def net_recipe() -> Recipe:
    return replace(
        NET_RECIPE,
        tasks=replace(
            NET_RECIPE.tasks, ways=(3,), shots=(1,), per_setting=12, query=6, probe=4, shard=8
        ),
        prepare=replace(NET_RECIPE.prepare, steps=8, batch=12),
        network=replace(NET_RECIPE.network, width=16, heads=2),
        meta=replace(NET_RECIPE.meta, iterations=4, tasks=2, warmup=1, meta_lr=0.1),
    )


@pytest.fixture(scope="session")
def net_host() -> NetHost:
    return NetHost(CONFIG, InputTransform(12))


@pytest.fixture(scope="session")
def net_zoo(
    glyphs: dict[str, ImageSet],
    net_host: NetHost,
    net_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Zoo:
    seen, held = (glyphs["train"].select(range(a, a + 24)) for a in (0, 24))
    initial = learn_initial(seen, net_host, InitialTraining(iterations=40, classes=16))
    path = tmp_path_factory.mktemp("nets") / "zoo"
    bank = net_host.bank(held)
    about = {"data": "glyphs"}
    return begin_net_zoo(path, bank, net_host, initial, net_recipe, about=about).fill().zoo


@pytest.fixture(scope="session")
def net_valid(glyphs: dict[str, ImageSet], net_host: NetHost) -> FeatureBank:
    return net_host.bank(glyphs["val"].select(range(12)))


@pytest.fixture(scope="session")
def net_gen(net_zoo: Zoo, net_recipe: Recipe) -> NetGenerator:
    return train_net_generator(NetCollection(net_zoo), net_recipe)
