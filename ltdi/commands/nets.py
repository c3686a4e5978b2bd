"""`ltdi collect` and `ltdi train` for whole networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ltdi.data import ImageSet
from ltdi.engine import Runtime
from ltdi.generator import NetGenerator
from ltdi.nets import InitialTraining, NetHost, learn_initial
from ltdi.progress import Bars
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank
from ltdi.whole import (
    NetCollection,
    begin_net_zoo,
    initial_of,
    start_net_zoo,
    train_net_generator,
)
from ltdi.zoo import Zoo

VALID = "valid"


def begin_nets(
    path: Path,
    parts: dict[str, ImageSet],
    recipe: Recipe,
    host: NetHost,
    training: InitialTraining,
    *,
    about: dict[str, Any],
    progress: Bars,
) -> NetCollection:
    """Learn the shared initialisation on the rest, once: everything before the shards."""
    zoo = start_net_zoo(path, host, recipe, about=about)
    initial = initial_of(zoo) or learn_initial(
        parts["rest"],
        host,
        replace(training, seed=recipe.meta.seed),
        lambda i, n, loss: progress("initialisation", i, n, f"loss {loss:.3f}"),
    )
    valid = host.bank(parts["val"])
    tensors = {"features": valid.features, "offsets": valid.offsets}
    zoo.keep(VALID, tensors, list(valid.classes))
    bank = host.bank(parts["train"])
    return begin_net_zoo(path, bank, host, initial, recipe, about=about)


def train_nets(zoo: Zoo, recipe: Recipe, runtime: Runtime) -> NetGenerator:
    """Meta-train a generator of whole networks on a zoo of them."""
    held = zoo.shared(VALID)
    return train_net_generator(
        NetCollection(zoo),
        recipe,
        valid=FeatureBank(held["features"], held["offsets"], tuple(zoo.note(VALID)))
        if runtime.team.main
        else None,
        about={"data": zoo.about["data"], "zoo": zoo.about},
        runtime=runtime,
    )
