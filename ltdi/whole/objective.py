"""What meta-training on whole networks draws, and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.anchor import SharedAnchor
from ltdi.backbone.augment import distort
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion import draw, make_schedule
from ltdi.diffusion.losses import Probe, loss_of
from ltdi.engine import Arrivals
from ltdi.errors import MismatchError
from ltdi.generator import NetGenerator
from ltdi.generator.nets import NetTask
from ltdi.meta import Batch, Params
from ltdi.nets import Initial, NetHost
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank
from ltdi.weights import Normaliser, WeightSpace
from ltdi.whole.collecting import start_of
from ltdi.zoo import Group, Zoo

_REFINEMENTS = 2
_PROBES = 6
# Strength of random affine distortions of what the network sees.
_AUGMENT = 1.0


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
        initial = start_of(zoo)
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
