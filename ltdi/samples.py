"""The corridor for nets of a task that was seen: checkpoints become a generator of new ones.

The checkpoints of one training lie in one basin, those of different trainings in different ones,
and nothing good lies between. So a net is generated as a residual to the mean of one training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.anchor import Centres
from ltdi.backbone import InputTransform
from ltdi.collect import optimise
from ltdi.data import ImageSet
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion import draw, make_schedule
from ltdi.errors import InputError
from ltdi.generator.nets import build_rows
from ltdi.generator.samples import SampleGenerator, Unguided, sample_space
from ltdi.losses import Probe, weight_loss
from ltdi.meta import Batch, Params
from ltdi.nets import NetConfig, NetHost, NetPredictor, SmallNet
from ltdi.parts import chain_end
from ltdi.pipeline import train_parts
from ltdi.progress import Progress
from ltdi.recipe import Recipe
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Group

# Nets whose predictions are worked out at once, and steps of training between fresh images.
_AT_ONCE, _CHUNK, _POOL = 25, 40, 1024
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
    """

    theta: Tensor
    run: Tensor
    space: WeightSpace
    host: NetHost
    images: Tensor
    labels: Tensor
    valid: int

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
    labels = torch.arange(len(images.classes)).repeat_interleave(images.counts)
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
    return Checkpoints(torch.cat(theta), which, space, host, images, labels, valid)


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


class CheckpointObjective:
    """The training loss of a generator of checkpoints.

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
        network: RowDenoiser,
        anchor: Centres,
        normaliser: Normaliser,
        recipe: Recipe,
    ) -> None:
        self.zoo, self.network, self.recipe = zoo, network, recipe
        own = anchor.theta.transpose(0, 1)[zoo.run]
        self.residual = normaliser.normalise(zoo.theta - own, zoo.space)
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
        return {**vars(noised), "twice": torch.rand(tasks, generator=rng) < 0.5}

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
        return weight_loss(out, batch["target"], batch["weight"], probe)


def train_sampler(zoo: Checkpoints, recipe: Recipe, progress: Progress) -> SampleGenerator:
    """Meta-train a generator of checkpoints."""
    d = recipe.diffusion
    if d.loss != "weight":
        raise InputError(
            f"checkpoints are compared as weights, not by the loss {d.loss!r}",
            where="diffusion.loss",
            fix='choose "weight"',
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.meta.seed)
        network = build_rows(zoo.space, recipe.network, d)
    anchor = Centres(zoo.path())
    apart = zoo.last - zoo.centres()[zoo.run]
    normaliser = Normaliser.fit(apart, zoo.space, centre=False)
    objective = CheckpointObjective(zoo, network, anchor, normaliser, recipe)
    host, space = zoo.host, zoo.space
    parts = train_parts(
        network, objective, recipe, host, anchor, normaliser, space, progress=progress
    )
    return SampleGenerator(parts)


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
