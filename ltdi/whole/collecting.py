"""Solved whole networks, shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.anchor import SharedAnchor
from ltdi.collect import optimise
from ltdi.engine import Collection, Piece, plan_of, recipe_of, settings_of
from ltdi.errors import InputError, MismatchError
from ltdi.files import plain
from ltdi.generator import NetGenerator
from ltdi.nets import Initial, NetHost, NetPredictor
from ltdi.recipe import NET_RECIPE, Recipe
from ltdi.tasks import FeatureBank, sample_episodes
from ltdi.zoo import Zoo

# Solved together: more would only fill the memory.
_AT_ONCE = 32
_INITIAL = "initial"


def solve_nets(
    bank: FeatureBank,
    host: NetHost,
    initial: Initial,
    recipe: Recipe,
    *,
    way: int,
    shot: int,
    tasks: int,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Solve whole-network tasks from theta_0: many samples per class, only the shots known later.

    Returns:
        A zoo's columns (`theta` holds whole weights), and [tasks] whether each is finite.
    """
    t, space = recipe.tasks, host.space(way)
    episodes = sample_episodes(
        bank.offsets, way=way, shot=shot, query=t.query + t.probe, episodes=tasks, seed=seed
    )
    anchor = SharedAnchor(initial.theta_0)
    rng = torch.Generator().manual_seed(seed)
    paths = []
    for part in episodes.chunks(_AT_ONCE):
        items = torch.cat([part.support, part.query[..., : t.query]], 2).flatten(1)
        paths.append(
            optimise(
                NetPredictor(host, space),
                anchor.local(items, items, space),
                bank.features[items],
                torch.arange(way).repeat_interleave(items.shape[1] // way),
                recipe.prepare,
                rng=rng,
            )
        )
    columns = {n: torch.cat([getattr(p, n) for p in paths]) for n in ("theta", "loss", "accuracy")}
    judged_on = episodes.query[..., t.query :] if t.probe else episodes.query
    columns |= {"support": episodes.support, "query": judged_on}
    return columns, torch.cat([p.finite for p in paths])


def start_net_zoo(
    path: Path | str, host: NetHost, recipe: Recipe, *, about: dict[str, Any] | None = None
) -> Zoo:
    """An empty zoo of whole networks, or the one there if it was made with these settings."""
    settings = {
        "kind": NetGenerator.kind,
        **settings_of(recipe),
        "net": host.describe(),
        **(about or {}),
    }
    return Zoo.create(path, host.space(recipe.tasks.ways[0]), plain(settings))


def initial_of(zoo: Zoo) -> Initial | None:
    """The initialisation that a zoo's tasks start from, where it has one."""
    if zoo.note(_INITIAL) is None:
        return None
    return Initial(zoo.shared(_INITIAL)["theta_0"], float(zoo.note(_INITIAL)["rate"]))


class NetCollection(Collection[Piece]):
    """A zoo of whole networks that has been started: what solving and training read of it.

    Raises:
        InputError: If it has no initialisation yet.
        MismatchError: If it is a zoo of another kind of weights.
    """

    def __init__(self, zoo: Zoo) -> None:
        if zoo.about.get("kind") != NetGenerator.kind:
            raise MismatchError(
                "this is not a zoo of whole networks",
                where=str(zoo.path),
                fix="make one with `ltdi collect --target net`",
            )
        initial = initial_of(zoo)
        if initial is None:
            raise InputError(
                "the zoo has no initialisation yet", where=str(zoo.path), fix="run `ltdi collect`"
            )
        self.recipe, self.host = recipe_of(zoo, NET_RECIPE), NetHost.from_config(zoo.about["net"])
        self.bank, self.initial = zoo.bank(), initial
        self.anchor = SharedAnchor(initial.theta_0)
        super().__init__(zoo, plan_of(self.recipe.tasks))

    @classmethod
    def open(cls, zoo: Zoo) -> NetCollection:
        """See `Collection.open`."""
        return NetCollection(zoo)

    def make(self, number: int) -> None:
        """Solve one shard."""
        piece = self.plan[number]
        columns, finite = solve_nets(
            self.bank,
            self.host,
            self.initial,
            self.recipe,
            way=piece.way,
            shot=piece.shot,
            tasks=piece.tasks,
            seed=self.seed(number),
        )
        setting = {"way": piece.way, "shot": piece.shot}
        self.zoo.append(piece.name, columns, finite, setting=setting)


def begin_net_zoo(
    path: Path | str,
    bank: FeatureBank,
    host: NetHost,
    initial: Initial,
    recipe: Recipe,
    *,
    about: dict[str, Any] | None = None,
) -> NetCollection:
    """Start a zoo of whole networks, or take up the one there: all but the shards.

    A zoo that has an initialisation keeps it.
    """
    zoo = start_net_zoo(path, host, recipe, about=about)
    zoo.keep_bank(bank)
    zoo.keep(_INITIAL, {"theta_0": initial.theta_0}, {"rate": initial.rate})
    return NetCollection(zoo)
