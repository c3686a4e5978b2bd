"""The corridor for nets of a task that was seen: checkpoints become a generator of new ones.

The checkpoints of one training lie in one basin, those of different trainings in different ones,
and nothing good lies between. So a net is generated as a residual to the mean of one training.
Under a loss in function space that mean moves as well, to where nets predict what they should.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ltdi.anchor import Centres
from ltdi.backbone import InputTransform
from ltdi.backbone.augment import distort
from ltdi.collect import Adam, optimise
from ltdi.data import ImageSet
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion import draw, make_schedule
from ltdi.engine import Runtime
from ltdi.generator.nets import build_rows
from ltdi.generator.samples import SampleGenerator, Unguided, sample_space
from ltdi.losses import Probe, check_net_loss, loss_of
from ltdi.meta import Batch, Params
from ltdi.nets import NetConfig, NetHost, NetPredictor, SmallNet
from ltdi.parts import Parts, chain_end
from ltdi.pipeline import train_parts
from ltdi.progress import Progress
from ltdi.recipe import Recipe
from ltdi.seeding import seeded
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Group

# Nets whose predictions are worked out at once, and steps of training between fresh images.
_AT_ONCE, _CHUNK, _POOL = 25, 40, 1024
# Training images that a net is judged on, out of so many that are distorted for all nets of a
# batch; and the share of the vote in what is wanted of it.
JUDGED, _TOLD, _VOTE = 32, 128, 0.5
# Images of a step of gradient descent on the same.
BATCH = 64
TEMPERATURES = (1.0, 0.7, 0.5, 0.3)


@dataclass(frozen=True)
class Trainings:
    """How checkpoints are made.

    Attributes:
        net: Architecture.
        runs: Independent trainings, each from an initialisation of its own.
        steps: Of Adam, of every run.
        branches: Checkpoints of every run: trainings that go on from its end on other batches.
        branch_steps: Of Adam, of every branch.
        images: Most images that nets are trained on; 0 for all.
        wrong: Share of them with the label of another class, the same for all nets.
    """

    net: NetConfig
    runs: int
    steps: int
    branches: int
    branch_steps: int
    images: int = 0
    wrong: float = 0.0


@dataclass(frozen=True)
class Checkpoints:
    """A zoo of checkpoints of one task.

    Attributes:
        theta: [E, k, n] local targets of the branches; the checkpoints are the last.
        run: [E] which training a checkpoint branched off.
        space: Weight space.
        host: Architecture.
        images: [N, channels, size, size] transformed training images.
        labels: [N].
        valid: How many of them, from the end, no net was trained on.
        taught: Images and labels that nets were trained on.
    """

    theta: Tensor
    run: Tensor
    space: WeightSpace
    host: NetHost
    images: Tensor
    labels: Tensor
    valid: int
    taught: tuple[Tensor, Tensor]

    @property
    def last(self) -> Tensor:
        """[E, n] the checkpoints."""
        return self.theta[:, -1]

    def centres(self) -> Tensor:
        """[runs, n] mean of the checkpoints of every training."""
        return self.path()[-1]

    def path(self) -> Tensor:
        """[k, runs, n] mean over the branches of every training, at each local target."""
        runs = range(int(self.run.max()) + 1)
        return torch.stack([self.theta[self.run == r].mean(0) for r in runs], 1)

    def at(self, i: int) -> Checkpoints:
        """As if branches had ended at local target i = 1..k: its nets are the checkpoints."""
        return replace(self, theta=self.theta[:, i - 1 : i])

    def spread(self) -> Tensor:
        """[n] standard deviation of every weight around the centre of its training."""
        apart = self.last - self.centres()[self.run]
        return apart.square().mean(0).sqrt()

    def validation(self, most: int = 500) -> tuple[Tensor, Tensor]:
        """Images that no net was trained on, at most so many, and their labels."""
        start = len(self.labels) - self.valid
        return self.images[start : start + most], self.labels[start : start + most]


def transformed(images: ImageSet, host: NetHost, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `most` images in a random order, as the net sees them, and their labels."""
    labels = images.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:most]
    return host.transform(images.images[order]), labels[order]


def train_nets(
    theta: Tensor,
    steps: int,
    data: tuple[Tensor, Tensor],
    host: NetHost,
    space: WeightSpace,
    recipe: Recipe,
    rng: torch.Generator,
    segments: int = 1,
) -> Tensor:
    """Train nets [E, n] at once on one data set, each on batches of its own: [E, k, n]."""
    images, labels = data
    predict = NetPredictor(host, space, images)
    kept, done, every = [], 0, steps // segments
    while done < steps:
        now = min(_CHUNK, every - done % every)
        # Numbers of images, not images: nets share them.
        pick = torch.randint(len(labels), (len(theta), _POOL), generator=rng)
        plan = replace(recipe.prepare, steps=now, segments=1)
        path = optimise(predict, theta, pick, labels[pick], plan, rng=rng)
        theta, done = path.theta[:, -1], done + now
        if done % every == 0:
            kept.append(theta)
    return torch.stack(kept, 1)


def collect_checkpoints(
    parts: dict[str, ImageSet],
    trainings: Trainings,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress,
) -> Checkpoints:
    """Train some nets, and branches from the end of each."""
    p, c = trainings, trainings.net
    mean, std = (0.49, 0.48, 0.45)[: c.channels], (0.25,) * c.channels
    host = NetHost(c, InputTransform(c.size, c.channels, "keep", mean, std))
    classes = len(parts["train"].classes)
    space = sample_space(host, classes)
    images, labels = transformed(parts["train"], host, 50_000, seed)
    valid = max(1, min(2000, len(labels) // 5))
    rng = torch.Generator().manual_seed(seed)
    data = _training_data(images[:-valid], labels[:-valid], classes, p, rng)
    with seeded(seed):
        nets = [SmallNet(c, classes) for _ in range(p.runs)]
    start = torch.stack([space.flatten(dict(net.state_dict())).detach() for net in nets])
    ends = train_nets(start, p.steps, data, host, space, recipe, rng)[:, 0]
    theta, segments = [], recipe.prepare.segments
    for run, end in enumerate(ends):
        for first in range(0, p.branches, _AT_ONCE):
            count = min(_AT_ONCE, p.branches - first)
            branch = end.expand(count, -1)
            theta.append(
                train_nets(branch, p.branch_steps, data, host, space, recipe, rng, segments)
            )
            progress("checkpoints", run * p.branches + first + count, p.runs * p.branches, "")
    which = torch.arange(p.runs).repeat_interleave(p.branches)
    return Checkpoints(torch.cat(theta), which, space, host, images, labels, valid, data)


def _training_data(
    images: Tensor, labels: Tensor, classes: int, trainings: Trainings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What nets are trained on: as many images as they may have, some with a wrong label."""
    count = min(trainings.images or len(labels), len(labels))
    labels = labels[:count]
    if trainings.wrong > 0:
        other = torch.randint(1, classes, labels.shape, generator=rng)
        wrong = torch.rand(labels.shape, generator=rng) < trainings.wrong
        labels = torch.where(wrong, (labels + other) % classes, labels)
    return images[:count], labels


class Lessons:
    """Training images, and what is wanted of a net on them.

    Nets know their images by heart, so that they are shown distorted. Wanted are, in equal parts,
    the label and the vote: what the centres of all trainings predict on average, which is right
    more often than any of them (distillation, Hinton et al., arXiv 1503.02531).

    Args:
        zoo: Checkpoints.
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

    Moves are in plain units: there a step of Adam is as long as those of the trainings.

    Args:
        network: The denoiser.
        centres: [C, n].
    """

    def __init__(self, network: RowDenoiser, centres: Tensor) -> None:
        super().__init__()
        self.network, self.moves = network, nn.Parameter(torch.zeros_like(centres))

    def forward(self, *inputs: Any) -> Tensor:
        """That of the denoiser."""
        out: Tensor = self.network(*inputs)
        return out


class CheckpointObjective:
    """The training loss of a generator of checkpoints.

    In weight space a net is compared with the residual that was noised; in function space with what
    is wanted on training images (`Lessons`), around the centre that the network moves.

    Args:
        zoo: Checkpoints.
        network: Denoiser.
        anchor: Means of every training at each local target.
        normaliser: Of what checkpoints differ from them by.
        recipe: For the chain and the loss.
    """

    def __init__(
        self,
        zoo: Checkpoints,
        network: Moving,
        anchor: Centres,
        normaliser: Normaliser,
        recipe: Recipe,
    ) -> None:
        self.zoo, self.network, self.recipe = zoo, network, recipe
        self.own = anchor.theta.transpose(0, 1)  # [C, k, n]
        self.residual = normaliser.normalise(zoo.theta - self.own[zoo.run], zoo.space)
        self.scale = normaliser.scale(zoo.space)
        d = recipe.diffusion
        self.loss = loss_of(d.loss, d.plus_weight)
        self.lessons = Lessons(zoo) if d.loss != "weight" else None
        self.schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.steps)

    def see(self, groups: list[Group]) -> None:
        """All checkpoints are there from the beginning."""

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets of random checkpoints; every tensor [tasks, ...]."""
        pick = torch.randint(len(self.residual), (tasks,), generator=rng)
        d = self.recipe.diffusion
        noised = draw(
            d.objective,
            self.residual[pick],
            self.schedule,
            prediction=d.prediction,
            first=d.first,
            rng=rng,
        )
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
                batch["centre"] + params["moves"][batch["run"]],
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
    train_parts(parts, objective, recipe, Runtime(progress=progress))
    moved = Centres(anchor.theta + moving.moves.detach())
    return SampleGenerator(replace(parts, network=network, anchor=moved))


def descended(
    zoo: Checkpoints,
    steps: int,
    rng: torch.Generator,
    rates: tuple[float, ...] = (5e-4, 2e-3, 5e-3),
) -> tuple[Tensor, dict[float, float]]:
    """The centre of every training after gradient descent on what a generator is trained on.

    Adam, batches of 64 of the same `Lessons`, a rate that falls to zero.

    Args:
        zoo: Checkpoints.
        steps: Of each centre.
        rng: Source of images.
        rates: To choose from, on images that no net was trained on.

    Returns:
        [C, n] nets, and the accuracy at each rate.
    """
    lessons, predict, found = Lessons(zoo), NetPredictor(zoo.host, zoo.space), {}
    start = lessons.centres
    for rate in rates:
        parts = predict.parts(start)
        optimiser = Adam([x.clone() for x in parts], rate)
        for step in range(steps):
            images, wanted = lessons.draw(rng, BATCH)
            shown = predict.nets.enter(images.expand(len(start), *images.shape))
            optimiser.lr = rate * (1 - step / steps)
            gradient = predict.nets.gradient(
                optimiser.parts, shown, wanted.expand(len(start), *wanted.shape)
            )
            optimiser.step([g.contiguous() for g in gradient])
        found[rate] = predict.whole(optimiser.parts)
    scores = {rate: _valid_accuracy(zoo, theta) for rate, theta in found.items()}
    return found[max(scores, key=lambda rate: scores[rate])], scores


def chosen_sampler(
    generator: SampleGenerator, zoo: Checkpoints, temperature: float | None
) -> tuple[SampleGenerator, dict[str, float]]:
    """The generator with the most temperature at which its nets are as good as what they are like.

    Everything is judged on images that no net was trained on. Where the network knows all local
    targets the chain ends at the one whose nets are the best: the last may be over-fitted. Then
    accuracy alone would choose the lowest temperature: at none, every net is the mean of a
    training. So the highest is taken at which nets are on average at least as good as those of the
    zoo at that local target, and where there is none that of the best nets; of two samplers the
    more accurate.

    Args:
        generator: Trained.
        zoo: Its nets are the bar; for the images.
        temperature: The only one to try, or None.

    Returns:
        The generator, and the accuracy of each candidate.
    """
    d = generator.parts.diffusion
    bars = standing(zoo, all_targets=d.objective == "trajectory")
    end = max(bars, key=lambda share: (bars[share], share))
    steps = min(generator.parts.sampling.steps, chain_end(end, d))
    sampling = replace(generator.parts.sampling, end=end, steps=steps)
    generator = SampleGenerator(replace(generator.parts, sampling=sampling))
    found: dict[tuple[str, float], float] = {}
    for sampler in ("ddim", "ddpm"):
        for scale in TEMPERATURES if temperature is None else (temperature,):
            theta = generator.draws(32, seed=12_345, sampler=sampler, temperature=scale)
            found[sampler, scale] = _valid_accuracy(zoo, theta)
    enough = [key for key, value in found.items() if value >= bars[end]]
    sampler, scale = max(enough or found, key=lambda k: (bool(enough) * k[1], found[k]))
    sampling = replace(sampling, sampler=sampler, temperature=scale)
    named = {f"{sampler}, temperature {t}": round(v, 4) for (sampler, t), v in found.items()}
    named |= {f"zoo at {share:.2f}": round(bar, 4) for share, bar in bars.items()}
    return SampleGenerator(replace(generator.parts, sampling=sampling)), named


def standing(zoo: Checkpoints, *, all_targets: bool = True) -> dict[float, float]:
    """Accuracy, on images that no net was trained on, of the nets at i/k of their trajectories.

    Args:
        zoo: The nets.
        all_targets: Whether i runs through 1..k, or is k alone.
    """
    k = zoo.theta.shape[1]
    known = range(1, k + 1) if all_targets else (k,)
    return {i / k: _valid_accuracy(zoo, zoo.at(i).last) for i in known}


def _valid_accuracy(zoo: Checkpoints, theta: Tensor) -> float:
    images, labels = zoo.validation()
    return float((predictions(theta, zoo, images) == labels).float().mean())


def predictions(theta: Tensor, zoo: Checkpoints, images: Tensor) -> Tensor:
    """Predicted classes [E, N] of nets theta [E, n] on images [N, ...]."""
    return torch.stack([zoo.host.predict(t, images, zoo.space).argmax(-1) for t in theta])
