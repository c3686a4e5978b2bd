"""Meta-training on checkpoints, and gradient descent on the same images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ltdi.anchor import Centres
from ltdi.backbone.augment import distort
from ltdi.collect import Adam
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion.losses import Probe, check_net_loss
from ltdi.engine import Objective, Runtime, meta_train
from ltdi.generator.nets import build_rows
from ltdi.generator.samples import SampleGenerator, Unguided
from ltdi.meta import Batch, Params
from ltdi.nets import NetPredictor
from ltdi.nets.direct import grouped
from ltdi.parts import Parts
from ltdi.progress import Progress
from ltdi.recipe import Recipe
from ltdi.samples.checkpoints import Checkpoints
from ltdi.samples.choice import valid_accuracy
from ltdi.seeding import seeded
from ltdi.weights import Normaliser

# Training images that a net is judged on, out of so many that are distorted for all nets of a
# batch; and the share of the vote in what is wanted of it.
JUDGED, _TOLD, _VOTE = 32, 128, 0.5
# Images of a step of gradient descent on the same.
BATCH = 64
# Unit of the moves of centres, which have further to go than a denoiser's parameters.
_STRIDE = 10.0


class Lessons:
    """Training images, and what is wanted of a net on them.

    Nets know their images by heart, so that they are shown distorted. Wanted are, in equal parts,
    the label and the vote: what the centres of all trainings predict on average, which is right
    more often than any of them (distillation, Hinton et al., arXiv 1503.02531).
    """

    def __init__(self, zoo: Checkpoints) -> None:
        self.zoo, self.centres = zoo, zoo.centres()

    @torch.no_grad()
    def draw(self, rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Images [count, ...] and probabilities [count, classes]."""
        host, (known, labels) = self.zoo.host, self.zoo.taught
        pick = torch.randint(len(labels), (count,), generator=rng)
        images = distort(known[pick], 1.0, rng)
        if images.shape[1] > 1:  # a drawing may be another one in the mirror
            mirrored = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        shown = images.expand(len(self.centres), *images.shape)
        vote = host.many(self.centres, shown, self.zoo.space).softmax(-1).mean(0)
        hot = F.one_hot(labels[pick], vote.shape[1]).to(vote)
        return images, torch.lerp(hot, vote, _VOTE)


class Moving(nn.Module):
    """A denoiser, and how far it moves the centres that nets are drawn around.

    A step of Adam moves a centre `_STRIDE` times as far as a parameter of the denoiser.
    """

    def __init__(self, network: RowDenoiser, centres: Tensor) -> None:
        super().__init__()
        self.network, self.moves = network, nn.Parameter(torch.zeros_like(centres))

    def forward(self, *inputs: Any) -> Tensor:
        """That of the denoiser."""
        out: Tensor = self.network(*inputs)
        return out


class CheckpointObjective(Objective):
    """The training loss of a generator of checkpoints.

    In weight space a net is compared with the residual that was noised; in function space with what
    is wanted on training images (`Lessons`), around the centre that the network moves.
    """

    def __init__(
        self,
        zoo: Checkpoints,
        network: Moving,
        anchor: Centres,
        normaliser: Normaliser,
        recipe: Recipe,
    ) -> None:
        super().__init__(recipe.diffusion)
        self.zoo, self.network = zoo, network
        self.own = anchor.theta.transpose(0, 1)  # [C, k, n]
        self.residual = normaliser.normalise(zoo.theta - self.own[zoo.run], zoo.space)
        self.scale = normaliser.scale(zoo.space)
        self.lessons = Lessons(zoo) if recipe.diffusion.loss != "weight" else None

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets of random checkpoints; every tensor [tasks, ...]."""
        pick = torch.randint(len(self.residual), (tasks,), generator=rng)
        noised = self.noised(self.residual[pick], rng)
        batch = {**vars(noised), "twice": torch.rand(tasks, generator=rng) < 0.5}
        if self.lessons:
            images, wanted = self.lessons.draw(rng, _TOLD)
            shown = torch.randint(_TOLD, (tasks, JUDGED), generator=rng)
            run, k = self.zoo.run[pick], self.residual.shape[1]
            target = (noised.stage * k).round().long() - 1
            batch |= {"run": run, "centre": self.own[run, target]}
            batch |= {"images": images[shown], "wanted": wanted[shown]}
        return batch

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner; half of the time the network sees its own first estimate."""
        x, t, signal, stage = (batch[n] for n in ("x_t", "t", "signal", "stage"))
        frozen = {k: p.detach() for k, p in params.items()}
        own = Unguided(lambda *a: functional_call(self.network, frozen, a), self.zoo.space)
        before = own.step(x, t, signal, stage)
        own.estimate = torch.where(batch["twice"][:, None], before.detach(), 0.0)
        own.network = lambda *a: functional_call(self.network, params, a)
        out = own.step(x, t, signal, stage)
        # The loss in weight space asks for nothing but the weights.
        probe = Probe(out, out, out)
        if self.lessons:
            host, space = self.zoo.host, self.zoo.space
            probe = Probe(
                batch["images"],
                batch["centre"] + _STRIDE * params["moves"][batch["run"]],
                self.scale,
                lambda theta, images: host.logits(theta, images, space),
                batch["wanted"],
            )
        return self.loss(out, batch["target"], batch["weight"], probe)


def train_sampler(zoo: Checkpoints, recipe: Recipe, progress: Progress) -> SampleGenerator:
    """Meta-train a generator of checkpoints."""
    d = recipe.diffusion
    check_net_loss(d.loss)
    with seeded(recipe.meta.seed):
        network = build_rows(zoo.space, recipe.network, d)
    anchor = Centres(zoo.path())
    apart = zoo.last - zoo.centres()[zoo.run]
    normaliser = Normaliser.fit(apart, zoo.space, centre=False)
    moving = Moving(network, zoo.centres())
    objective = CheckpointObjective(zoo, moving, anchor, normaliser, recipe)
    parts = Parts.of(recipe, zoo.space, moving, anchor, normaliser, zoo.host)
    meta_train(parts, objective, recipe, Runtime(progress=progress))
    moved = Centres(anchor.theta + _STRIDE * moving.moves.detach())
    return SampleGenerator(replace(parts, network=network, anchor=moved))


def descended(
    zoo: Checkpoints,
    steps: int,
    rng: torch.Generator,
    rates: tuple[float, ...] = (5e-4, 2e-3, 5e-3),
) -> tuple[Tensor, dict[float, float]]:
    """The centre of every training after gradient descent on what a generator is trained on.

    Adam, batches of 64 of the same `Lessons`, a rate that falls to zero.

    Returns:
        [C, n] nets, and the accuracy at each rate.
    """
    lessons, predict, found = Lessons(zoo), NetPredictor(zoo.host, zoo.space), {}
    start = lessons.centres
    nets = grouped(zoo.host.config, start)
    for rate in rates:
        parts = predict.parts(start)
        optimiser = Adam([x.clone() for x in parts], rate)
        for step in range(steps):
            images, wanted = lessons.draw(rng, BATCH)
            shown = nets.enter(images.expand(len(start), *images.shape))
            optimiser.lr = rate * (1 - step / steps)
            gradient = nets.gradient(
                optimiser.parts, shown, wanted.expand(len(start), *wanted.shape)
            )
            optimiser.step([g.contiguous() for g in gradient])
        found[rate] = predict.whole(optimiser.parts)
    scores = {rate: valid_accuracy(zoo, theta) for rate, theta in found.items()}
    return found[max(scores, key=lambda rate: scores[rate])], scores
