"""Two tasks by rule on the tiny base model, their runs in a zoo, and a generator of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ltdi.adapters.collect import begin_runs, reader
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.runs import Runs
from ltdi.adapters.source import Source, prepare_source
from ltdi.adapters.training import AdapterRecipe, Solved, train_network
from ltdi.collect import Preparation
from ltdi.data.text import description, rules
from ltdi.generator import AdapterGenerator
from ltdi.lora import LoraSpec, tiny_base
from ltdi.meta import MetaConfig
from ltdi.recipe import Diffusion, Network
from ltdi.zoo import Zoo
from tests.lora.conftest import libraries, offline

__all__ = ["libraries", "offline"]

RECIPE = AdapterRecipe(
    runs=Runs(trunks=1, branches=2, shared=0.5),
    prepare=Preparation("adamw", lr=2e-2, steps=8, segments=2, weight_decay=0.01, batch=8),
    diffusion=Diffusion(steps=4, loss="weight"),
    network=Network("transformer", 16, 1, 2),
    meta=MetaConfig(iterations=4, meta_batch=2, inner_steps=2, tasks=3, warmup=1, ema=0.5),
    rank=4,
    seen=8,
)
TASKS = ("tone", "amount")


@pytest.fixture(scope="session")
def host() -> LanguageHost:
    return LanguageHost.of(tiny_base(), LoraSpec(rank=2), "tiny")


@pytest.fixture(scope="session")
def sources(host: LanguageHost) -> list[Source]:
    return [
        prepare_source(host.base, name, rules.load(name, rows=160), max_length=24, topics=4)
        for name in TASKS
    ]


@pytest.fixture(scope="session")
def zoo(host: LanguageHost, sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    path: Path = tmp_path_factory.mktemp("zoo") / "zoo"
    described = {name: description(f"rule:{name}") for name in TASKS}
    collection = begin_runs(path, host, sources, described, RECIPE)
    collection.fill()
    return collection.zoo


@pytest.fixture(scope="session")
def groups(zoo: Zoo, host: LanguageHost) -> list[Solved]:
    return reader(zoo, host, worse=10.0)(zoo.groups())


@pytest.fixture(scope="session")
def generator(groups: list[Solved], host: LanguageHost) -> AdapterGenerator:
    return AdapterGenerator(train_network(groups, host, RECIPE, "tone, amount"))


def quick(**changes: object) -> AdapterRecipe:
    """`RECIPE` with some fields of meta-training changed."""
    return replace(RECIPE, meta=replace(RECIPE.meta, **changes))  # type: ignore[arg-type]
