"""What meta-training on whole networks draws, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.backbone.augment import distort
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion.losses import Probe
from ltdi.engine import Objective
from ltdi.generator.nets import NetTask
from ltdi.meta import Batch, Params
from ltdi.recipe import Diffusion
from ltdi.weights import Normaliser
from ltdi.whole.collecting import NetCollection
from ltdi.zoo import Group

_REFINEMENTS = 2
_PROBES = 6
# Strength of random affine distortions of what the network sees.
_AUGMENT = 1.0


class NetObjective(Objective):
    """The training loss of a generator of whole networks.

    The network is trained as it will be used: it is given the support's gradient at its own
    estimate after 0, 1 or 2 steps, and half of the time x_t is noised around that estimate and not
    around the target.
    """

    def __init__(
        self,
        data: NetCollection,
        network: RowDenoiser,
        normaliser: Normaliser,
        diffusion: Diffusion,
        groups: Sequence[Group] | None = None,
    ) -> None:
        super().__init__(diffusion)
        self.data, self.network, self.normaliser = data, network, normaliser
        self.doubt = float(network.doubt)
        self.see(groups or data.zoo.groups())

    def see(self, groups: Sequence[Group]) -> None:
        """See `Objective.see`."""
        super().see(groups)
        self.spaces = {int(g.setting["way"]): g.space for g in groups}

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """See `Objective.draw`."""
        g, pick = self.pick(rng, tasks)
        held, space = g.read(pick, ("theta", "support", "query")), self.spaces[g.setting["way"]]
        anchor = self.data.anchor.local(pick, pick, space)
        residual = self.normaliser.normalise(held["theta"] - anchor.unsqueeze(1), space)
        noised = self.noised(residual, rng)
        turns = int(torch.randint(_REFINEMENTS + 1, (), generator=rng))
        seen = torch.randperm(held["query"].shape[2], generator=rng)[:_PROBES]
        images = self.data.bank.features
        support = images[held["support"]]
        query = images[held["query"][..., seen]].flatten(1, 2)
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
            self.data.host,
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
            lambda theta, images: self.data.host.logits(theta, images, space),
        )
        return self.loss(output, batch["target"], batch["weight"], probe)
