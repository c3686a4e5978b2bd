"""New samples of nets for a task that was seen: generated checkpoints against plain generators."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.anchor import SharedAnchor
from ltdi.backbone import InputTransform
from ltdi.collect import Preparation, optimise
from ltdi.data import ImageSet
from ltdi.data import load as load_data
from ltdi.denoiser import RowDenoiser
from ltdi.diffusion import draw, make_schedule
from ltdi.errors import InputError, unknown
from ltdi.evaluate import summarise
from ltdi.generator.nets import build_rows
from ltdi.generator.samples import SampleGenerator, Unguided, fit_samples, sample_space
from ltdi.losses import Probe, weight_loss
from ltdi.memory import peak_mb, reset_peak
from ltdi.meta import Batch, MetaConfig, Params
from ltdi.nets import NetConfig, NetHost, SmallNet
from ltdi.nets.matching import match_units
from ltdi.parts import Parts
from ltdi.pipeline import meta_train, plain
from ltdi.recipe import Diffusion, Network, Recipe, Sampling, Tasks, named_recipe
from ltdi.report.table import Result, Row
from ltdi.tracks.episodes import one_thread
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Group

Progress = Callable[[str, int, int, str], None]
Log = Callable[[dict[str, Any]], None]
_RECIPES = ("lt-di", "mv-di", "tw-di", "mv-di-matched", "single-level")
_PEERS = ("noise", "average-2", "average-run", "average", "gaussian", "gaussian-full")
ALL_METHODS = ("originals", *_RECIPES, *_PEERS)
# Nets whose predictions are worked out at once, and steps of training between fresh images.
_AT_ONCE, _CHUNK, _POOL = 25, 40, 1024


@dataclass(frozen=True)
class CheckpointPreset:
    """What is spent.

    Attributes:
        net: Architecture.
        runs: Independent trainings, each from an initialisation of its own.
        steps: Of Adam, of every run.
        branches: Checkpoints of every run: trainings that go on from its end on other batches.
        branch_steps: Of Adam, of every branch.
        recipe: Of `lt-di`.
        generated: Nets of every method.
        tests: Test images.
    """

    net: NetConfig
    runs: int
    steps: int
    branches: int
    branch_steps: int
    recipe: Recipe
    generated: int = 64
    tests: int = 2000


_NET = NetConfig(3, 16, (16, 32, 32), (5, 3, 3), (2, 2, 2))
_RECIPE = Recipe(
    tasks=Tasks(folds=0),
    prepare=Preparation(lr=2e-3, steps=40, segments=4, batch=64),
    diffusion=Diffusion(20, "cosine", "trajectory", "x0", "weight"),
    network=Network("rows", width=64, depth=1),
    meta=MetaConfig(
        iterations=1600, meta_batch=2, inner_steps=2, tasks=32, meta_lr=2e-3, warmup=20, ema=0.97
    ),
    sampling=Sampling(steps=20, temperature=1.0),
    anchor="shared",
)
PRESETS: Mapping[str, CheckpointPreset] = {
    "smoke": CheckpointPreset(
        _NET,
        2,
        80,
        25,
        8,
        replace(_RECIPE, meta=replace(_RECIPE.meta, iterations=40, tasks=8)),
        16,
        500,
    ),
    "standard": CheckpointPreset(_NET, 4, 1200, 50, 40, _RECIPE),
    "paper": CheckpointPreset(
        NetConfig(3, 32, (32, 64, 64), (5, 3, 3), (2, 2, 2)),
        8,
        40_000,
        100,
        400,
        replace(_RECIPE, meta=replace(_RECIPE.meta, iterations=6000)),
        200,
        10_000,
    ),
}


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


def transformed(images: ImageSet, host: NetHost, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `most` images in a random order, as the net sees them, and their labels."""
    labels = torch.arange(len(images.classes)).repeat_interleave(images.counts)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:most]
    return host.transform(images.images[order]), labels[order]


def train_nets(
    theta: Tensor,
    steps: int,
    data: tuple[Tensor, Tensor],
    predict: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    rng: torch.Generator,
    segments: int = 1,
) -> Tensor:
    """Train nets [E, n] at once on one data set, each on batches of its own: [E, k, n]."""
    images, labels = data
    kept, done, every = [], 0, steps // segments
    while done < steps:
        now = min(_CHUNK, every, steps - done)
        # Numbers of images, not images: nets share them.
        pick = torch.randint(len(labels), (len(theta), _POOL), generator=rng)
        plan = replace(recipe.prepare, steps=now, segments=1)
        path = optimise(
            lambda t, which: predict(t, images[which]), theta, pick, labels[pick], plan, rng=rng
        )
        theta, done = path.theta[:, -1], done + now
        if done % every == 0:
            kept.append(theta)
    return torch.stack(kept[:segments], 1)


def collect_checkpoints(
    parts: dict[str, ImageSet], preset: CheckpointPreset, *, seed: int, progress: Progress
) -> Checkpoints:
    """Train some nets, and branches from the end of each."""
    c = preset.net
    mean, std = (0.49, 0.48, 0.45)[: c.channels], (0.25,) * c.channels
    host = NetHost(c, InputTransform(c.size, c.channels, "keep", mean, std))
    space = sample_space(host, len(parts["train"].classes))
    images, labels = transformed(parts["train"], host, 50_000, seed)
    valid = max(1, min(2000, len(labels) // 5))
    rng = torch.Generator().manual_seed(seed)
    data = (images[:-valid], labels[:-valid])

    def predict(theta: Tensor, x: Tensor) -> Tensor:
        return host.predict(theta, x, space)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = [SmallNet(c, len(parts["train"].classes)) for _ in range(preset.runs)]
    start = torch.stack([space.flatten(dict(net.state_dict())).detach() for net in nets])
    ends = train_nets(start, preset.steps, data, predict, preset.recipe, rng)[:, 0]
    theta = []
    total = preset.runs * preset.branches
    for run, end in enumerate(ends):
        for first in range(0, preset.branches, _AT_ONCE):
            count = min(_AT_ONCE, preset.branches - first)
            theta.append(
                train_nets(
                    end.expand(count, -1),
                    preset.branch_steps,
                    data,
                    predict,
                    preset.recipe,
                    rng,
                    preset.recipe.prepare.segments,
                )
            )
            progress("checkpoints", run * preset.branches + first + count, total, "")
    which = torch.arange(preset.runs).repeat_interleave(preset.branches)
    return Checkpoints(torch.cat(theta), which, space, host, images, labels, valid)


class CheckpointObjective:
    """The training loss of a generator of checkpoints.

    Args:
        zoo: Checkpoints.
        network: Denoiser.
        anchor: [n] mean of the checkpoints.
        normaliser: Of what they differ by.
        recipe: For the chain and the loss.
    """

    def __init__(
        self,
        zoo: Checkpoints,
        network: RowDenoiser,
        anchor: Tensor,
        normaliser: Normaliser,
        recipe: Recipe,
    ) -> None:
        self.zoo, self.network, self.anchor, self.recipe = zoo, network, anchor, recipe
        self.residual = normaliser.normalise(zoo.theta - anchor, zoo.space)
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
        probe = Probe(out, self.anchor, out)
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
    anchor, normaliser = fit_samples(zoo.last, zoo.space)
    objective = CheckpointObjective(zoo, network, anchor, normaliser, recipe)
    meta_train(network, objective, recipe, zoo.host.fingerprint, zoo.space, None, progress, None)
    about = plain({"recipe": asdict(recipe)})
    shape, sampling = recipe.network, recipe.sampling
    parts = Parts(
        zoo.space,
        network,
        SharedAnchor(anchor),
        normaliser,
        d,
        shape,
        sampling,
        zoo.host,
        about,
    )
    return SampleGenerator(parts)


def chosen_sampler(
    generator: SampleGenerator, zoo: Checkpoints, temperature: float | None
) -> tuple[SampleGenerator, dict[str, float]]:
    """The generator with the sampler and temperature whose nets are best on validation images.

    Args:
        generator: Trained.
        zoo: For images that no net was trained on.
        temperature: The only one to try, or None.

    Returns:
        The generator, and the accuracy of each candidate.
    """
    images, labels = zoo.images[-zoo.valid :][:500], zoo.labels[-zoo.valid :][:500]
    found: dict[tuple[str, float], float] = {}
    for sampler in ("ddim", "ddpm"):
        for scale in (1.0, 0.7, 0.5, 0.3) if temperature is None else (temperature,):
            theta = generator.draws(16, seed=12_345, sampler=sampler, temperature=scale)
            right = predictions(theta, zoo, images) == labels
            found[sampler, scale] = float(right.float().mean())
    sampler, scale = max(found, key=lambda key: found[key])
    sampling = replace(generator.parts.sampling, sampler=sampler, temperature=scale)
    named = {f"{sampler}, temperature {t}": round(v, 4) for (sampler, t), v in found.items()}
    return SampleGenerator(replace(generator.parts, sampling=sampling)), named


def plain_samples(
    name: str, zoo: Checkpoints, count: int, rng: torch.Generator, distance: float
) -> Tensor:
    """Nets [count, n] of a generator that learns nothing.

    Args:
        name: "noise" adds noise to a checkpoint, in proportion to each weight's spread, until it is
            as far from it as `distance`; "average-2" is the mean of two checkpoints, "average-run"
            of all of one training, "average" of all; "gaussian" draws every weight by itself,
            "gaussian-full" with the covariance of the checkpoints.
        zoo: Checkpoints.
        count: How many.
        rng: Source of randomness.
        distance: Of the nets of `lt-di` to the nearest checkpoint.
    """
    theta = zoo.last
    pick = torch.randint(len(theta), (2, count), generator=rng)
    if name == "noise":
        spread = within(zoo).square().mean(0).sqrt()
        noise = spread * torch.randn(count, theta.shape[1], generator=rng)
        noisy: Tensor = theta[pick[0]] + distance * noise / noise.norm(dim=1, keepdim=True)
        return noisy
    if name == "average-2":
        return (theta[pick[0]] + theta[pick[1]]) / 2
    if name == "average-run":
        return centres(zoo)[zoo.run[pick[0]]]
    if name == "average":
        return theta.mean(0).expand(count, -1)
    mean = theta.mean(0)
    if name == "gaussian":
        return mean + theta.std(0) * torch.randn(count, theta.shape[1], generator=rng)
    weights = torch.randn(count, len(theta), generator=rng) / (len(theta) - 1) ** 0.5
    drawn: Tensor = mean + weights @ (theta - mean)
    return drawn


def centres(zoo: Checkpoints) -> Tensor:
    """[runs, n] mean of the checkpoints of every training."""
    runs = range(int(zoo.run.max()) + 1)
    return torch.stack([zoo.last[zoo.run == r].mean(0) for r in runs])


def within(zoo: Checkpoints) -> Tensor:
    """[E, n] checkpoints minus the mean of their training."""
    out: Tensor = zoo.last - centres(zoo)[zoo.run]
    return out


def predictions(theta: Tensor, zoo: Checkpoints, images: Tensor) -> Tensor:
    """Predicted classes [E, N] of nets theta [E, n] on images [N, ...]."""
    return torch.stack([zoo.host.predict(t, images, zoo.space).argmax(-1) for t in theta])


def wrong_iou(guess: Tensor, others: Tensor, labels: Tensor, skip: Tensor | None = None) -> Tensor:
    """Largest intersection over union of wrong answers with any of some other nets, [E].

    Args:
        guess: [E, N] predicted classes.
        others: [E', N].
        labels: [N].
        skip: [E] number of a net itself among the others.
    """
    a, b = (guess != labels).float(), (others != labels).float()
    both = a @ b.T
    iou = both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)
    if skip is not None:
        iou[torch.arange(len(iou)), skip] = 0
    return iou.max(1).values


def nearest(theta: Tensor, zoo: Checkpoints, skip: Tensor | None = None) -> Tensor:
    """Distance [E] of nets to the nearest checkpoint after matching hidden units.

    Units are matched to the nearest checkpoint of every training: branches of one training keep
    the order of its units.
    """
    raw = torch.cdist(theta, zoo.last)
    if skip is not None:
        raw[torch.arange(len(raw)), skip] = torch.inf
    out = raw.min(1).values
    for i in range(len(theta)):
        for run in range(int(zoo.run.max()) + 1):
            distances = raw[i].masked_fill(zoo.run != run, torch.inf)
            other = zoo.last[int(distances.argmin())]
            matched = match_units(theta[i], other, zoo.space)
            out[i] = torch.minimum(out[i], (matched - other).norm())
    return out


@dataclass(frozen=True)
class Outcome:
    """A finished benchmark.

    Attributes:
        result: Table and JSON.
        generators: Trained, by method.
    """

    result: Result
    generators: dict[str, SampleGenerator] = field(default_factory=dict)

    def publish(self, path: Path) -> None:
        """Write our generator."""
        if "lt-di" in self.generators:
            self.generators["lt-di"].save(path / "generator")


def bench(
    dataset: str = "cifar10",
    data_dir: str | None = None,
    *,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | CheckpointPreset = "standard",
    temperature: float | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome:
    """New nets for a task that was seen (as in p-diff), against plain generators.

    Args:
        dataset: "cifar10", or another set with the parts "train" and "test" of the same classes.
        data_dir: Where it lies.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        temperature: Scale of the noise that nets are generated from; by default that of 1, 0.7, 0.5
            and 0.3 whose nets are best on images that no net was trained on.
        seed: Fixes everything.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or the data do not suffice.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, where="--preset")
    for name in methods:
        if name not in ALL_METHODS:
            raise unknown("method", name, ALL_METHODS, where="--methods")
    p = PRESETS[preset] if isinstance(preset, str) else preset
    parts = load_data(dataset, data_dir, size=p.net.size, channels=p.net.channels, seed=seed)
    if not {"train", "test"} <= set(parts) or parts["train"].classes != parts["test"].classes:
        raise InputError(
            f"{dataset!r} has no training and test images of the same classes",
            where="--dataset",
            fix="choose a data set for ordinary classification, such as cifar10",
        )
    generators: dict[str, SampleGenerator] = {}
    rows: list[Row] = []
    novelty: dict[str, dict[str, float]] = {}
    tried: dict[str, dict[str, float]] = {}
    with one_thread():
        start = time.perf_counter()
        zoo = collect_checkpoints(parts, p, seed=seed, progress=progress)
        prepare_s = time.perf_counter() - start
        images, labels = transformed(parts["test"], zoo.host, p.tests, seed)
        originals = predictions(zoo.last, zoo, images)
        rng = torch.Generator().manual_seed(seed + 1)
        distance = float(nearest(zoo.last[:1], zoo, torch.zeros(1, dtype=torch.long)))
        ordered = sorted(methods, key=ALL_METHODS.index)  # noise is measured by lt-di's distance
        for name in ordered:
            reset_peak()
            start = time.perf_counter()
            skip, train_s, latency = None, 0.0, 0.0
            if name == "originals":
                skip = torch.randperm(len(zoo.last), generator=rng)[: p.generated]
                theta = zoo.last[skip]
            elif name in _RECIPES:
                recipe = named_recipe(
                    name, replace(p.recipe, meta=replace(p.recipe.meta, seed=seed))
                )
                made = train_sampler(zoo, recipe, progress)
                generators[name], tried[name] = chosen_sampler(made, zoo, temperature)
                train_s = time.perf_counter() - start
                start = time.perf_counter()
                theta = generators[name].draws(p.generated, seed=seed)
                latency = 1000 * (time.perf_counter() - start) / p.generated
            else:
                theta = plain_samples(name, zoo, p.generated, rng, distance)
            guess = predictions(theta, zoo, images)
            far = nearest(theta, zoo, skip)
            if name == "lt-di":
                distance = float(far.mean())
            score = summarise((guess == labels).float().mean(1))
            iou = wrong_iou(guess, originals, labels, skip)
            novelty[name] = {
                "distance": round(float(far.mean()), 5),
                "wrong-set IoU": round(float(iou.mean()), 5),
                "spread": round(float((theta - theta.mean(0)).norm(dim=1).mean()), 5),
            }
            kind = "ours" if name == "lt-di" else "peer" if name in _PEERS else "control"
            rows.append(
                Row(
                    name,
                    kind,
                    "accuracy",
                    score.mean,
                    score.ci95,
                    score.episodes,
                    latency,
                    prepare_s if name in _RECIPES else 0.0,
                    train_s,
                    peak_mb(),
                )
            )
            log({"event": "method", **asdict(rows[-1]), **novelty[name]})
    accuracy = (originals == labels).float().mean(1)
    settings = {
        "net": asdict(p.net),
        "weights": zoo.space.size,
        "checkpoints": len(zoo.last),
        "runs": p.runs,
        "originals": {
            "mean": round(float(accuracy.mean()), 5),
            "std": round(float(accuracy.std()), 5),
        },
        "novelty": novelty,
        "sampling": {n: asdict(g.parts.sampling) for n, g in generators.items()},
        "validation accuracy": tried,
        "recipe": asdict(p.recipe),
        "temperature": temperature,
    }
    label = preset if isinstance(preset, str) else "custom"
    return Outcome(Result("checkpoints", dataset, label, seed, settings, rows), generators)
