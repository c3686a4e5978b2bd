"""The corridor for whole networks: images become solved nets, solved nets a generator.

It is that of heads (`ltdi.pipeline`) with images in the place of features, and a shared,
meta-learned initialisation in the place of an anchor that depends on the support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ltdi.anchor import SharedAnchor
from ltdi.backbone.augment import distort
from ltdi.collect import optimise
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion import draw, make_schedule
from ltdi.engine import (
    Arrivals,
    Collection,
    Engine,
    Piece,
    Runtime,
    plan_of,
    recipe_of,
    settings_of,
)
from ltdi.errors import MismatchError
from ltdi.files import plain
from ltdi.generator import NetGenerator
from ltdi.generator.nets import NetTask, build_rows
from ltdi.losses import Probe, check_net_loss, loss_of
from ltdi.meta import Batch, Params
from ltdi.nets import Initial, NetHost, NetPredictor
from ltdi.parts import Parts, check_sampling
from ltdi.pipeline import train_parts, tuned
from ltdi.progress import Progress
from ltdi.recipe import NET_RECIPE, Recipe
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank, sample_episodes
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Group, Zoo

# Solved together: more would only fill the memory.
_AT_ONCE = 32
_REFINEMENTS = 2
_PROBES = 6
_DOUBTS = (*(2.0**i for i in range(-3, 8)), math.inf)
_INITIAL = "initial"
# Strength of random affine distortions of what the network sees.
_AUGMENT = 1.0


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
    """A zoo of whole networks that has been started.

    Args:
        zoo: Started by `begin_net_zoo`.
    """

    def __init__(self, zoo: Zoo) -> None:
        self.recipe, self.host = recipe_of(zoo, NET_RECIPE), NetHost.from_config(zoo.about["net"])
        initial = initial_of(zoo)
        assert initial is not None
        self.bank, self.initial = zoo.bank(), initial
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


def prepare_net_zoo(
    path: Path | str,
    bank: FeatureBank,
    host: NetHost,
    initial: Initial,
    recipe: Recipe,
    *,
    about: dict[str, Any] | None = None,
    engine: Engine = Engine(),
    progress: Progress | None = None,
) -> Zoo:
    """Solve all tasks of a recipe into a zoo on disk; see `ltdi.pipeline.prepare_zoo`."""
    collection = begin_net_zoo(path, bank, host, initial, recipe, about=about)
    collection.fill(engine, progress)
    return collection.zoo


@dataclass(frozen=True)
class NetSet:
    """What meta-training reads: solved nets by way and shot, and the images of their tasks."""

    bank: FeatureBank
    groups: list[Group]
    space: WeightSpace
    initial: Initial
    host: NetHost
    arrivals: Arrivals | None = None

    @classmethod
    def of(cls, zoo: Zoo, arrivals: Arrivals | None = None) -> NetSet:
        """Open a zoo's tasks, or those that arrive.

        Raises:
            InputError: If it holds none.
            MismatchError: If it is a zoo of another kind of weights.
        """
        if zoo.about.get("kind") != NetGenerator.kind:
            raise MismatchError(
                "this is not a zoo of whole networks",
                where=str(zoo.path),
                fix="make one with `ltdi collect --target net`",
            )
        initial = initial_of(zoo)
        assert initial is not None
        host = NetHost.from_config(zoo.about["net"])
        groups = zoo.groups() if arrivals is None else arrivals.at(0)
        return cls(zoo.bank(), groups or zoo.groups(), zoo.space, initial, host, arrivals)

    @property
    def anchor(self) -> SharedAnchor:
        """The shared initialisation."""
        return SharedAnchor(self.initial.theta_0)


class NetObjective:
    """The training loss of a generator of whole networks.

    The network is trained as it will be used: it is given the support's gradient at its own
    estimate after 0, 1 or 2 steps, and half of the time x_t is noised around that estimate and not
    around the target.

    Args:
        data: Solved tasks; the bank holds images.
        network: Denoiser.
        normaliser: Of residuals.
        recipe: For the chain and the loss.
    """

    def __init__(
        self,
        data: NetSet,
        network: RowDenoiser,
        normaliser: Normaliser,
        recipe: Recipe,
    ) -> None:
        self.data, self.network, self.normaliser, self.recipe = data, network, normaliser, recipe
        self.host, self.anchor = data.host, data.anchor
        self.doubt = float(network.doubt)
        self.schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.steps)
        self.see(data.groups)

    def see(self, groups: list[Group]) -> None:
        """Draw from these tasks from now on."""
        self.groups = groups
        self.spaces = {int(g.setting["way"]): g.space for g in groups}

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets of random tasks, all of one way and shot; every tensor [tasks, ...]."""
        g = self.groups[int(torch.randint(len(self.groups), (), generator=rng))]
        pick = torch.randint(len(g), (tasks,), generator=rng)
        held = g.read(pick, ("theta", "support", "query"))
        space, d = self.spaces[int(g.setting["way"])], self.recipe.diffusion
        anchor = self.anchor.local(pick, pick, space)
        noised = draw(
            d.objective,
            self.normaliser.normalise(held["theta"] - anchor.unsqueeze(1), space),
            self.schedule,
            prediction=d.prediction,
            first=d.first,
            rng=rng,
        )
        turns = int(torch.randint(_REFINEMENTS + 1, (), generator=rng))
        seen = torch.randperm(held["query"].shape[2], generator=rng)[:_PROBES]
        images = self.data.bank.features
        support = images[held["support"]]
        query = images[held["query"][..., seen]].flatten(1, 2)
        if _AUGMENT > 0:
            support, query = (
                distort(x.flatten(0, -4), _AUGMENT, rng).view_as(x) for x in (support, query)
            )
        return {
            **vars(noised),
            "noise": noised.x_t - noised.signal[:, None] * noised.target,
            # One entry for each step that the network has taken already.
            "turns": torch.zeros(tasks, turns),
            "own": torch.rand(tasks, generator=rng) < 0.5,
            "anchor": anchor,
            "support": support,
            "query": query,
        }

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner."""
        support, anchor = batch["support"], batch["anchor"]
        space = self.spaces[support.shape[1]]
        scale = self.normaliser.scale(space).to(support.device)
        task = NetTask(
            self.host,
            scale,
            space,
            anchor,
            support,
            torch.ones(support.shape[:3], device=support.device),
            doubt=self.doubt,
        )
        x, t, signal, stage = (batch[n] for n in ("x_t", "t", "signal", "stage"))
        frozen = {k: p.detach() for k, p in params.items()}

        def network(weights: Params) -> Any:
            return lambda *a: functional_call(self.network, weights, a)

        for _ in range(batch["turns"].shape[-1]):
            task.step(network(frozen), x, t, signal, stage)
        if task.estimate is not None:
            around = signal[:, None] * task.estimate + batch["noise"]
            x = torch.where(batch["own"][:, None], around, x)
        output = task.step(network(params), x, t, signal, stage)
        probe = Probe(
            batch["query"],
            anchor,
            scale,
            lambda theta, images: self.host.logits(theta, images, space),
        )
        d = self.recipe.diffusion
        loss = loss_of(d.loss, d.plus_weight)
        return loss(output, batch["target"], batch["weight"], probe)


def train_net_generator(
    data: NetSet,
    recipe: Recipe,
    *,
    valid: FeatureBank | None = None,
    judged: Sequence[tuple[int, int]] = (),
    about: dict[str, Any] | None = None,
    runtime: Runtime = Runtime(),
) -> NetGenerator:
    """Meta-train a generator of whole networks; see `ltdi.pipeline.train_generator`."""
    d = recipe.diffusion
    check_sampling(recipe.sampling, d)
    check_net_loss(d.loss)
    with seeded(recipe.meta.seed):
        network = build_rows(data.space, recipe.network, d)
    normaliser = _fit_normaliser(data)
    standardise(network, data, normaliser)
    parts = train_parts(
        Parts.of(recipe, data.space, network, data.anchor, normaliser, data.host, about),
        NetObjective(data, network, normaliser, recipe),
        recipe,
        runtime,
        data.arrivals,
    )
    generator = NetGenerator(parts)
    return generator if valid is None else tuned(generator, valid, recipe, judged, runtime.log)


def _fit_normaliser(data: NetSet) -> Normaliser:
    group = data.groups[0]
    some = torch.arange(min(len(group), 512))
    theta = group.read(some, ("theta",))["theta"]
    anchor = data.anchor.local(some, some, group.space)
    return Normaliser.fit(theta - anchor.unsqueeze(1), group.space, centre=False)


@torch.no_grad()
def standardise(network: RowDenoiser, data: NetSet, normaliser: Normaliser) -> None:
    """Give a network the size of gradients, and the initialisation's own step size.

    Layers below the head have a gradient from the second step on. Its size is measured after a
    tenth of the first step, where the support is not solved yet: after a whole one little is left
    of it. Their first step size is a tenth.
    """
    group, initial = data.groups[0], data.initial
    space = group.space
    some = torch.arange(min(16, len(group)))
    grid = data.bank.features[group.read(some, ("support",))["support"]]
    anchor = data.anchor.local(some, some, space)
    task = NetTask(
        data.host, normaliser.scale(space), space, anchor, grid, torch.ones(grid.shape[:3])
    )
    scale = normaliser.scale(space)
    first = task.gradient()
    task.estimate = -0.1 * initial.rate * first / scale.square()
    second = task.gradient()
    count = len(space.layers)
    sizes, rates = torch.zeros(count), torch.zeros(count)
    for i, layer in enumerate(space.layers):
        inside = space.layer_of == i
        gradient = first if layer.per_class else second
        sizes[i] = gradient[:, inside].square().mean(1).sqrt().median()
        share = 1.0 if layer.per_class else 0.1
        rates[i] = share * initial.rate / scale[inside].square().median()
    network.standardise(sizes, rates)
    network.doubt.fill_(fit_doubt(data))


@torch.no_grad()
def fit_doubt(data: NetSet, most: int = 64) -> float:
    """The doubt whose heads, one step from the initialisation, fit the solved tasks' samples best.

    Args:
        data: Solved tasks; theta_0 has not seen their classes.
        most: Tasks of each way and shot.
    """
    loss = torch.zeros(len(_DOUBTS))
    for group in data.groups:
        space, some = group.space, torch.arange(min(most, len(group)))
        held = group.read(some, ("support", "query"))
        theta_0 = data.anchor.local(some[:1], some[:1], space)[0]

        def features(items: Tensor, theta: Tensor = theta_0, space: WeightSpace = space) -> Tensor:
            parts = data.bank.features[items.flatten()].split(_AT_ONCE**2)
            whole = torch.cat([data.host.features(theta, part, space) for part in parts])
            return whole.view(*items.shape, -1)

        own, query = features(held["support"]).mean(2), features(held["query"])
        mean = own.mean(1, keepdim=True)
        weight = data.initial.rate * (own - mean)
        logits = query.flatten(1, 2) @ weight.mT
        half = (weight * (own + mean) / 2).sum(-1).unsqueeze(1)
        shot, way, asked = held["support"].shape[2], *query.shape[1:3]
        label = torch.arange(way).repeat_interleave(asked).repeat(len(some))
        for i, doubt in enumerate(_DOUBTS):
            share = shot / (shot + doubt)
            loss[i] += F.cross_entropy((logits - share * half).flatten(0, 1), label)
    return _DOUBTS[int(loss.argmin())]
