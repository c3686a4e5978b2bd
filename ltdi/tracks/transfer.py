"""Transfer without labels: heads for the classes of a set never seen, from names and raw images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ltdi.backbone import (
    Backbone,
    FeatureMap,
    FeatureMapping,
    InputTransform,
    ProtoTraining,
    cached_bank,
    pretrained_backbone,
    train_backbone,
)
from ltdi.baselines.unseen import UNSEEN_PEERS, Adapted, UnseenMethod
from ltdi.baselines.unseen.method import Coordinates, UnseenBudget
from ltdi.data.concepts import find_equal
from ltdi.data.transfer import (
    TARGETS,
    NamedSet,
    Target,
    load_source,
    load_target,
    synthetic,
    target_names,
)
from ltdi.errors import InputError, unknown
from ltdi.evaluate import summarise
from ltdi.generator import NamedHost, UnseenGenerator
from ltdi.memory import peak_mb, reset_peak
from ltdi.meta import MetaConfig
from ltdi.names import NameEncoder
from ltdi.parts import Parts
from ltdi.prior import NamePrior
from ltdi.progress import Log, Progress, Step, staged
from ltdi.recipe import Diffusion, Network
from ltdi.report.table import Result, Row
from ltdi.tasks import FeatureBank
from ltdi.tracks.episodes import check_counts, one_thread
from ltdi.unseen import (
    NamedBank,
    TaskBatch,
    UnseenRecipe,
    choose_prior,
    choose_steps,
    prepare_zoo,
    sample_tasks,
    train_unseen,
    unseen_recipe,
)
from ltdi.unseen.choice import prior_heads
from ltdi.unseen.training import RECIPES, default_sampling, options_of
from ltdi.weights import head_logits, head_space
from ltdi.zoo import Zoo

# (tasks, labels of their pools, images) -> logits; only the ceiling looks at the labels.
Predict = Callable[[TaskBatch, Tensor, Tensor], Tensor]

CONDITIONS = ("unlabeled", "text")
SYNTHETIC = "glyphs"
# Images of every source class that no method is fitted on.
_HELD_IMAGES = 4
_CEILING, _ANCHOR = "supervised", "anchor"
_PLAIN = (*RECIPES, _ANCHOR, _CEILING, *UNSEEN_PEERS)
ALL_METHODS = (*_PLAIN, *(f"{peer}+em" for peer in UNSEEN_PEERS))


@dataclass(frozen=True)
class TransferPreset:
    """What is spent.

    Attributes:
        recipe: Of `lt-di`; controls change one idea of it.
        peer_iterations: Of gradient descent, for peers that have it.
        valid_tasks: Validation tasks of each way that every choice is made on.
        valid_ways: Their ways.
        subtasks: Sub-tasks of 5 classes drawn from every target.
        thorough: Whether the prior's settings are searched.
    """

    recipe: UnseenRecipe
    peer_iterations: int
    valid_tasks: tuple[int, ...] = (40, 24, 12, 6)
    valid_ways: tuple[int, ...] = (5, 10, 20, 37)
    subtasks: int = 600
    thorough: bool = True


_META = MetaConfig(
    iterations=300, meta_batch=4, inner_steps=3, tasks=3, meta_lr=2e-3, warmup=20, ema=0.97
)
_STANDARD = UnseenRecipe(tasks=480, meta=_META)
PRESETS: Mapping[str, TransferPreset] = {
    "smoke": TransferPreset(
        replace(
            _STANDARD,
            ways=(5,),
            pool=(4, 8),
            query=4,
            tasks=16,
            folds=4,
            diffusion=Diffusion(steps=4),
            network=Network(kind="naming", width=32, depth=1),
            meta=replace(_META, iterations=6, tasks=2, warmup=2, ema=0.9),
        ),
        20,
        valid_tasks=(6, 2),
        valid_ways=(5, 10),
        subtasks=100,
        thorough=False,
    ),
    "standard": TransferPreset(_STANDARD, 400),
    "paper": TransferPreset(
        replace(
            _STANDARD,
            tasks=20_000,
            folds=64,
            network=Network(kind="naming", width=128, depth=3),
            meta=replace(_META, iterations=6000, tasks=16, ema=0.99),
        ),
        6000,
    ),
}


@dataclass(frozen=True)
class Scene:
    """A target set as features.

    Attributes:
        name: Of the set.
        batch: The task of all its classes; its `query` is empty.
        labels: [n] of the pool, for the supervised ceiling alone.
        test: [P, D] test images.
        answers: [P] their classes.
        pool: All unlabelled images, by class, to draw sub-tasks from.
        held: All test images, by class.
    """

    name: str
    batch: TaskBatch
    labels: Tensor
    test: Tensor
    answers: Tensor
    pool: NamedBank
    held: NamedBank


@dataclass(frozen=True)
class Gate:
    """Whether an image is of a source class, for the generalised setting.

    It is shared by all methods: an image further from every source class mean (in whitened
    coordinates) than a threshold is taken to be of the target.

    Attributes:
        coordinates: Of the source classes.
        threshold: Squared distance, chosen on validation classes.
        seen: [S] whether a source image that no method was fitted on is taken for one of the
            source, and given its own class.
    """

    coordinates: Coordinates
    threshold: float
    seen: Tensor

    @classmethod
    def fit(cls, train: NamedBank, held: NamedBank, valid: Sequence[TaskBatch]) -> Gate:
        """Choose the threshold with the best harmonic mean on validation images.

        Args:
            train: Source classes.
            held: Images of the same classes that no method is fitted on; half of them choose, the
                other half are measured on.
            valid: Tasks of other classes.
        """
        coordinates = Coordinates.fit(train, whiten=True)
        near, right = cls._nearest(coordinates, held.bank.features)
        truth = torch.arange(len(held.names)).repeat_interleave(held.bank.offsets.diff())
        right = right == truth
        other = torch.cat([b.query.flatten(0, 2) for b in valid])
        far, _ = cls._nearest(coordinates, other)
        choose = torch.arange(len(near)) % 2 == 0

        def score(threshold: float) -> float:
            s = float(((near < threshold) & right)[choose].double().mean())
            u = float((far >= threshold).double().mean())
            return 2 * s * u / max(1e-9, s + u)

        grid = torch.cat([near, far]).quantile(torch.linspace(0.02, 0.98, 49)).tolist()
        best = max(grid, key=score)
        return cls(coordinates, best, ((near < best) & right)[~choose])

    @staticmethod
    def _nearest(coordinates: Coordinates, images: Tensor) -> tuple[Tensor, Tensor]:
        z = coordinates.frame.enter(images)
        distance = torch.cdist(z, coordinates.means).square().min(-1)
        return distance.values, distance.indices

    def passes(self, images: Tensor) -> Tensor:
        """[P] whether images [P, D] are taken to be of the target."""
        return self._nearest(self.coordinates, images)[0] >= self.threshold

    def harmonic(self, right: Tensor, passed: Tensor, seed: int) -> tuple[float, float]:
        """Harmonic mean of both accuracies, and its 95 % interval by bootstrap over images.

        Args:
            right: [P] whether a target image is given its own class among those of the target.
            passed: [P] whether the gate takes it for one of the target.
            seed: Of the bootstrap.
        """
        rng = torch.Generator().manual_seed(seed)
        u, s = (right.bool() & passed).double(), self.seen.double()

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return 2 * a * b / (a + b).clamp(min=1e-9)

        draws = [x[torch.randint(len(x), (300, len(x)), generator=rng)].mean(1) for x in (u, s)]
        return float(mean(u.mean(), s.mean())), 1.96 * float(mean(*draws).std())


@dataclass
class TransferWorld:
    """Everything that the methods of one run share.

    Attributes:
        gate: For the generalised setting.
        backbone: The frozen feature extractor.
        encoder: Of class names.
        train: Source classes.
        valid: Tasks of source classes held out: every choice is made on them.
        recipe: Of `lt-di`.
        thorough: Whether the prior's settings are searched.
        directory: Where zoos are kept during the run.
    """

    gate: Gate
    backbone: Backbone
    encoder: NameEncoder
    train: NamedBank
    valid: list[TaskBatch]
    recipe: UnseenRecipe
    thorough: bool
    directory: Path
    prepared: dict[str, Any] = field(default_factory=dict)

    def prior(self, progress: Step | None = None) -> NamePrior:
        """The start of the chain, which all our methods share."""
        if "prior" not in self.prepared:
            start = time.perf_counter()
            self.prepared["prior"] = choose_prior(
                self.train,
                self.valid,
                thorough=self.thorough,
                progress=progress or (lambda i, n, text: None),
            )
            self.prepared["prior_s"] = time.perf_counter() - start
        found: NamePrior = self.prepared["prior"]
        return found

    def zoo(self, progress: Progress | None = None) -> Zoo:
        """The solved tasks, which all our methods share."""
        if "zoo" not in self.prepared:
            prior, start = self.prior(), time.perf_counter()
            self.prepared["zoo"] = prepare_zoo(
                self.directory / "zoo", self.train, prior, self.recipe, progress=progress
            )
            self.prepared["zoo_s"] = time.perf_counter() - start
        found: Zoo = self.prepared["zoo"]
        return found


class GeneratedUnseen(UnseenMethod):
    """A generator as a method without labels.

    Args:
        name: One of `RECIPES`.
        world: What the run shares.
    """

    note: ClassVar[str] = "generated heads"

    def __init__(self, name: str, world: TransferWorld) -> None:
        self.name = name  # type: ignore[misc]
        self.kind = "ours" if name == "lt-di" else "control"  # type: ignore[misc]
        self.world, self.recipe = world, unseen_recipe(name, world.recipe)
        self.generator: UnseenGenerator | None = None
        self.steps: dict[str, tuple[float, float]] = {}
        self.prepare_s = self.train_s = 0.0

    def fit(
        self,
        train: NamedBank,
        valid: Sequence[TaskBatch],
        budget: UnseenBudget,
        progress: Step | None = None,
    ) -> None:
        """See `UnseenMethod.fit`."""
        world = self.world
        prior, zoo = world.prior(progress), world.zoo(staged(progress))
        self.prepare_s = world.prepared["prior_s"] + world.prepared["zoo_s"]
        start = time.perf_counter()
        trained = train_unseen(zoo, prior, self.recipe, progress=staged(progress))
        host = NamedHost(
            world.backbone,
            world.encoder,
            {"sizes": prior.sizes, "settings": prior.described},
            self.recipe.pool[1] > 0,
        )
        parts = Parts(
            head_space(train.bank.width, self.recipe.ways[0]),
            trained.network,
            prior,
            trained.normaliser,
            self.recipe.diffusion,
            self.recipe.network,
            default_sampling(self.recipe),
            host,
            {"recipe": _plain(asdict(self.recipe))},
        )
        generator = UnseenGenerator(parts)

        def heads(batch: TaskBatch, **options: float) -> Tensor:
            steps = int(options["steps"])
            return generator.weights(
                batch.text, batch.pool, batch.mask, steps=steps, strength=options["strength"]
            )

        chosen, self.steps = choose_steps(heads, valid, options_of(self.recipe))
        sampling = replace(parts.sampling, steps=int(chosen["steps"]), strength=chosen["strength"])
        self.generator = UnseenGenerator(replace(parts, sampling=sampling))
        self.train_s = time.perf_counter() - start

    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        assert self.generator is not None
        return head_logits(self.generator.weights(batch.text, batch.pool, batch.mask), images)


class PriorOnly(UnseenMethod):
    """The start of the chain with nothing generated: what names and plain EM do alone."""

    name: ClassVar[str] = _ANCHOR
    kind: ClassVar[str] = "control"
    note: ClassVar[str] = "the start of lt-di's chain, without a generator"

    def __init__(self, world: TransferWorld) -> None:
        self.world = world

    def fit(
        self,
        train: NamedBank,
        valid: Sequence[TaskBatch],
        budget: UnseenBudget,
        progress: Step | None = None,
    ) -> None:
        """See `UnseenMethod.fit`."""
        self.heads = prior_heads(self.world.prior(progress))

    @torch.no_grad()
    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        # The prior reads the width of a feature from the query.
        shaped = TaskBatch(batch.text, batch.pool, batch.mask, images.unsqueeze(1))
        return head_logits(self.heads(shaped), images)


class Supervised:
    """The ceiling: class means of the pool with its labels, in whitened coordinates."""

    name = _CEILING

    def __init__(self, source: NamedBank) -> None:
        self.coordinates = Coordinates.fit(source, whiten=True)

    def logits(self, batch: TaskBatch, labels: Tensor, images: Tensor) -> Tensor:
        """Logits [E, P, way], from the labels [E, n] of the pool."""
        enter = self.coordinates.frame.enter
        one = torch.nn.functional.one_hot(labels, batch.way) * batch.mask.unsqueeze(-1)
        mean = one.mT @ enter(batch.pool) / one.sum(1).unsqueeze(-1).clamp(min=1)
        return 2 * enter(images) @ mean.mT - mean.square().sum(-1).unsqueeze(1)


@dataclass(frozen=True)
class TransferOutcome:
    """A finished benchmark.

    Attributes:
        result: Table and JSON.
        methods: The fitted methods by name.
    """

    result: Result
    methods: dict[str, UnseenMethod]

    def publish(self, path: Path) -> None:
        """Save the generator of lt-di, where there is one."""
        ours = self.methods.get("lt-di")
        if isinstance(ours, GeneratedUnseen) and ours.generator is not None:
            g = ours.generator
            metrics = {
                f"{row.dataset}, {row.method}": {
                    "mean": row.mean,
                    "ci95": row.ci95,
                    "episodes": row.episodes,
                }
                for row in self.result.rows
                if row.kind != "control"
            }
            about = {**g.parts.about, "data": self.result.dataset, "metrics": metrics}
            UnseenGenerator(replace(g.parts, about=about)).save(path / "generator")


def label(options: Mapping[str, Any]) -> str:
    """Names a run: "text" or "unlabeled", and the targets where they are not all."""
    chosen = "" if options["targets"] == "all" else "-" + options["targets"].replace(",", "-")
    return f"{options['condition']}{chosen}"


def bench(
    data_dir: str | None = None,
    *,
    condition: str = "unlabeled",
    targets: str = "all",
    encoder: str = "minilm",
    revision: str | None = None,
    backbone: str = "efficientnet-lite0",
    pool: int = 50,
    subtasks: int | None = None,
    cache: str | None = None,
    seed: int = 0,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | TransferPreset = "standard",
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> TransferOutcome:
    """Generate heads for sets without a labelled image of them, and measure them.

    Args:
        data_dir: Directory with cifar10/, cifar100/, tiny-imagenet/, oxford_pets/,
            office_caltech10/ and pacs/; without it glyphs and their names stand in, which shows
            that everything runs and nothing else.
        condition: "unlabeled" (names, and images without labels) or "text" (names alone).
        targets: Comma-separated target sets, or "all".
        encoder: Sentence encoder of class names: "minilm", or any encoder of transformers.
        revision: Of the encoder on the hub.
        backbone: A pretrained backbone.
        pool: Most unlabelled images, in units of the number of classes. They are drawn from all
            unlabelled images of a target, and are never test images.
        subtasks: Tasks of 5 classes drawn from every target; the preset's number by default.
        cache: Directory where features are kept.
        seed: Of everything.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or data are missing.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, where="--preset")
    if condition not in CONDITIONS:
        raise unknown("condition", condition, CONDITIONS, where="--condition")
    wanted = tuple(TARGETS) if targets == "all" else tuple(t.strip() for t in targets.split(","))
    for name in wanted:
        if name not in TARGETS:
            raise unknown("target set", name, TARGETS, where="--targets")
    chosen = _methods(methods, condition)
    p = PRESETS[preset] if isinstance(preset, str) else preset
    subtasks = p.subtasks if subtasks is None else subtasks
    check_counts(pool=pool, subtasks=subtasks)
    p = _conditioned(p, condition, seed)
    with tempfile.TemporaryDirectory(prefix="ltdi-bench-") as scratch, one_thread():
        world, scenes, about = _build(
            p, data_dir, wanted, encoder, revision, backbone, pool, cache, seed, scratch, progress
        )
        budget = UnseenBudget(p.peer_iterations, p.recipe.pool, p.recipe.ways, seed)
        if condition == "text":
            scenes = [replace(s, batch=s.batch.named_only()) for s in scenes]
        runs = [_subtasks(s, subtasks, p, seed) for s in scenes]
        fitted: dict[str, UnseenMethod] = {}
        scores: dict[str, dict[str, Tensor]] = {}
        rows: list[Row] = []
        for name in chosen:
            reset_peak()
            start = time.perf_counter()
            kind, prepare_s = "control", 0.0
            predict: Predict
            if name == _CEILING:
                predict = Supervised(world.train).logits
            else:
                method = _make(name, world, fitted)
                method.fit(world.train, world.valid, budget, partial(progress, name))
                fitted[name] = method
                predict, kind = _blind(method), method.kind
                if isinstance(method, GeneratedUnseen):
                    prepare_s = method.prepare_s
            spent = time.perf_counter() - start
            ours = fitted.get(name)
            train_s = ours.train_s if isinstance(ours, GeneratedUnseen) else spent
            seconds = (prepare_s, train_s)
            scores[name], new = _measure(
                name, kind, predict, scenes, runs, world.gate, seconds, seed, progress
            )
            rows += new
            for row in new:
                log({"event": "method", **asdict(row)})
    settings = {
        "condition": condition,
        "targets": {
            s.name: {
                "classes": list(s.pool.names),
                "pool": int(s.batch.mask.sum()),
                "test": len(s.test),
            }
            for s in scenes
        },
        "pool": "unlabelled images are drawn from images that are not test images; their labels "
        "are seen by the row 'supervised' alone",
        "gate": {"seen accuracy": round(float(world.gate.seen.double().mean()), 5)},
        **about,
        "recipe": _plain(asdict(p.recipe)),
        "prior": world.prepared["prior"].described if "prior" in world.prepared else None,
        "sampling": {
            n: asdict(m.generator.parts.sampling)
            for n, m in fitted.items()
            if isinstance(m, GeneratedUnseen) and m.generator
        },
        "steps": {
            n: {k: [round(x, 5) for x in v] for k, v in m.steps.items()}
            for n, m in fitted.items()
            if isinstance(m, GeneratedUnseen)
        },
        "adapted": {n: asdict(m.plan) for n, m in fitted.items() if isinstance(m, Adapted)},
        "peer_iterations": p.peer_iterations,
        "paired": _paired(scores),
        "notes": {name: m.note for name, m in fitted.items()},
    }
    dataset = "+".join(s.name for s in scenes) if len(scenes) < len(TARGETS) else "all"
    text = preset if isinstance(preset, str) else "custom"
    return TransferOutcome(Result("transfer", dataset, text, seed, settings, rows), fitted)


def _methods(methods: Sequence[str], condition: str) -> list[str]:
    if not methods:
        raise InputError("no method was named", where="--methods", fix="name at least one")
    for name in methods:
        if name not in ALL_METHODS:
            raise unknown("method", name, ALL_METHODS, where="--methods")
    adapted = [name for name in methods if name.endswith("+em")]
    if condition == "text" and adapted and tuple(methods) != ALL_METHODS:
        raise InputError(
            f"{adapted[0]} adapts to unlabelled images, and the condition is 'text'",
            where="--methods",
            fix=f"name {adapted[0].removesuffix('+em')}, or choose --condition unlabeled",
        )
    # Without a pool there is nothing to adapt to, and no ceiling.
    absent = (*adapted, _CEILING) if condition == "text" else ()
    return [name for name in methods if name not in absent]


def _conditioned(p: TransferPreset, condition: str, seed: int) -> TransferPreset:
    recipe = replace(p.recipe, meta=replace(p.recipe.meta, seed=seed))
    if condition == "text":
        recipe = replace(recipe, pool=(0, 0))
    return replace(p, recipe=recipe)


def _make(name: str, world: TransferWorld, fitted: dict[str, UnseenMethod]) -> UnseenMethod:
    if name in RECIPES:
        return GeneratedUnseen(name, world)
    if name == _ANCHOR:
        return PriorOnly(world)
    base = name.removesuffix("+em")
    if base != name:
        known = fitted.get(base)
        return Adapted(known or UNSEEN_PEERS[base](), own=known is None)
    return UNSEEN_PEERS[name]()


def _blind(method: UnseenMethod) -> Predict:
    """A method does not see the labels of the pool."""
    return lambda batch, labels, images: method.logits(batch, images)


# ---- data -----------------------------------------------------------------------------------


def _build(
    p: TransferPreset,
    data_dir: str | None,
    wanted: Sequence[str],
    encoder: str,
    revision: str | None,
    backbone: str,
    pool: int,
    cache: str | None,
    seed: int,
    scratch: str,
    progress: Progress,
) -> tuple[TransferWorld, list[Scene], dict[str, Any]]:
    start = time.perf_counter()
    if data_dir is None:
        sources, targets = synthetic(seed)
        targets = targets if len(wanted) == len(TARGETS) else targets[:1]
        images = sources[0].parts[0]
        training = ProtoTraining(iterations=30, classes=24, seed=seed)
        net = train_backbone(images, training, transform=InputTransform(28, 1))
        names = NameEncoder("tiny", templates=("{}",))
        facts: Mapping[str, Sequence[str]] = {t.name: t.names for t in targets}
    else:
        sources, targets = load_source(data_dir), []
        for name in wanted:
            targets.append(load_target(name, data_dir, seed=seed))
        net = pretrained_backbone(backbone)
        names = NameEncoder(encoder, revision)
        facts = target_names()
    embed = _Embed(net, None if cache is None else Path(cache), progress)
    removed: dict[str, dict[str, str]] = {}
    parts = []
    for source in sources:
        equal = find_equal(source.names, facts)
        removed[source.name] = {r.source: f"{r.dataset}: {r.target}" for r in equal.values()}
        keep = [i for i in range(len(source.names)) if i not in equal]
        bank = NamedBank(embed.named(source), source.names, names(source.names))
        parts.append(bank.select(keep))
    whole, valid, map = _prepare(_join(parts), seed)
    train, held = _hold_images(whole, _HELD_IMAGES)
    tasks = [
        sample_tasks(
            valid,
            way=way,
            pool=p.recipe.pool,
            query=p.recipe.query,
            tasks=count,
            seed=seed + 77_000 + way,
        ).view(valid)
        for way, count in zip(p.valid_ways, p.valid_tasks, strict=True)
        if way <= len(valid.names)
    ]
    scenes = [_scene(t, embed, names, map, pool, seed) for t in targets]
    gate = Gate.fit(train, held, tasks)
    world = TransferWorld(
        gate, net.mapped(map), names, train, tasks, p.recipe, p.thorough, Path(scratch)
    )
    about = {
        "source": {
            "sets": [s.name for s in sources],
            "classes": {"train": len(train.names), "val": len(valid.names)},
            "train": list(train.bank.classes),
            "val": list(valid.bank.classes),
            "removed": removed,
        },
        "encoder": names.describe(),
        "backbone": backbone if data_dir is not None else "trained on the glyphs",
        "features_s": round(time.perf_counter() - start, 2),
        "threads": torch.get_num_threads(),
    }
    return world, scenes, about


class _Embed:
    """Features of image sets, kept where there is a cache."""

    def __init__(self, backbone: Backbone, cache: Path | None, progress: Progress) -> None:
        self.backbone, self.cache, self.progress = backbone, cache, progress

    def bank(self, images: Any) -> FeatureBank:
        def step(i: int, n: int) -> None:
            self.progress("features", i, n, images.name)

        if self.cache is None:
            return self.backbone.bank(images, progress=step)
        return cached_bank(self.backbone, images, self.cache, progress=step)

    def named(self, source: NamedSet) -> FeatureBank:
        """All parts of a set, joined class by class."""
        banks = [self.bank(part) for part in source.parts]
        groups = [
            torch.cat([b.features[b.offsets[c] : b.offsets[c + 1]] for b in banks])
            for c in range(len(source.names))
        ]
        offsets = torch.tensor([0, *map(len, groups)]).cumsum(0)
        classes = tuple(f"{source.name}/{c}" for c in banks[0].classes)
        return FeatureBank(torch.cat(groups), offsets, classes)


def _join(parts: Sequence[NamedBank]) -> NamedBank:
    """One bank of several sets."""
    counts = torch.cat([p.bank.offsets.diff() for p in parts])
    bank = FeatureBank(
        torch.cat([p.bank.features for p in parts]),
        torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        tuple(c for p in parts for c in p.bank.classes),
    )
    origin = torch.cat([torch.full((len(p.names),), i) for i, p in enumerate(parts)])
    names = tuple(n for p in parts for n in p.names)
    return NamedBank(bank, names, torch.cat([p.text for p in parts]), origin)


def _hold_images(source: NamedBank, count: int) -> tuple[NamedBank, NamedBank]:
    """The last `count` images of every class apart, for the generalised setting alone."""
    b = source.bank
    groups = [b.features[b.offsets[c] : b.offsets[c + 1]] for c in range(len(source.names))]
    out = []
    for part in ([g[:-count] for g in groups], [g[-count:] for g in groups]):
        offsets = torch.tensor([0, *map(len, part)]).cumsum(0)
        out.append(replace(source, bank=FeatureBank(torch.cat(part), offsets, b.classes)))
    return out[0], out[1]


def _prepare(whole: NamedBank, seed: int) -> tuple[NamedBank, NamedBank, FeatureMap]:
    """Training and validation classes on mapped features, which every method sees."""
    train, valid = whole.split(0.25, seed)
    map = FeatureMap(train.bank.width, FeatureMapping()).fit(train.bank.features)
    mapped = [replace(b, bank=map.bank(b.bank)) for b in (train, valid)]
    return mapped[0], mapped[1], map


def _scene(
    target: Target, embed: _Embed, names: NameEncoder, map: FeatureMap, pool: int, seed: int
) -> Scene:
    text = names(target.names)
    raw = embed.bank(target.pool), embed.bank(target.test)
    held, test = (NamedBank(map.bank(b), target.names, text) for b in raw)
    label = torch.arange(len(target.names)).repeat_interleave(held.bank.offsets.diff())
    rng = torch.Generator().manual_seed(seed + 99_000)
    pick = torch.randperm(len(label), generator=rng)[: pool * len(target.names)]
    images = held.bank.features[pick].unsqueeze(0)
    batch = TaskBatch(text.unsqueeze(0), images, torch.ones(images.shape[:2]), images[:, None, :0])
    answers = torch.arange(len(target.names)).repeat_interleave(test.bank.offsets.diff())
    return Scene(target.name, batch, label[pick], test.bank.features, answers, held, test)


@dataclass(frozen=True)
class _Run:
    """Sub-tasks of one target: the batch, [E, n] labels of its pool, and [E, P, D] test images."""

    batch: TaskBatch
    labels: Tensor
    images: Tensor
    answers: Tensor


def _subtasks(scene: Scene, tasks: int, p: TransferPreset, seed: int) -> _Run:
    """Tasks of 5 classes; pools are drawn from the target's pool, queries from its test images."""
    fewest = int(scene.pool.bank.offsets.diff().min())
    query = min(10, int(scene.held.bank.offsets.diff().min()))
    high = min(40, max(4, fewest))
    way = min(5, len(scene.pool.names))
    draw = partial(sample_tasks, way=way, tasks=tasks, seed=seed + 88_000)
    drawn = draw(scene.pool, pool=(min(4, fewest), high), query=0)
    asked = draw(scene.held, pool=(0, 0), query=query)
    # The same classes: they are the first that a seed draws.
    assert torch.equal(drawn.classes, asked.classes)
    view, queries = drawn.view(scene.pool), asked.view(scene.held).query
    labels = torch.arange(way).repeat_interleave(high).expand(tasks, -1)
    rng = torch.Generator().manual_seed(seed + 66_000)
    order = torch.rand(labels.shape, generator=rng).argsort(1)
    rows = torch.arange(tasks)[:, None]
    batch = TaskBatch(view.text, view.pool[rows, order], view.mask[rows, order], queries)
    if not scene.batch.pool.shape[1]:
        batch = batch.named_only()
    answers = torch.arange(way).repeat_interleave(query)
    return _Run(batch, labels[rows, order], queries.flatten(1, 2), answers)


# ---- measuring ------------------------------------------------------------------------------


_SUFFIXES = {"": "accuracy", "/5-way": "accuracy", "/generalised": "harmonic mean"}


def _measure(
    name: str,
    kind: str,
    predict: Predict,
    scenes: Sequence[Scene],
    runs: Sequence[_Run],
    gate: Gate,
    seconds: tuple[float, float],
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Tensor], list[Row]]:
    """Rows of one method, and its score on every test image and every sub-task.

    Args:
        name: Of the method.
        kind: Of the method.
        predict: Its logits.
        scenes: The targets.
        runs: Their sub-tasks.
        gate: For the generalised setting.
        seconds: Of weight preparation and of training.
        seed: Of the bootstrap.
        progress: Called as progress(stage, done, total, text).
    """
    scores: dict[str, Tensor] = {}
    found: dict[str, list[tuple[float, float]]] = {suffix: [] for suffix in _SUFFIXES}
    rows: list[Row] = []
    with torch.no_grad():
        latency = _latency(predict, scenes)

        def add(where: str, suffix: str, value: float, ci: float, episodes: int) -> None:
            metric, cost = _SUFFIXES[suffix], (latency, *seconds, peak_mb())
            rows.append(Row(name, kind, metric, value, ci, episodes, *cost, where + suffix))

        for number, (scene, run) in enumerate(zip(scenes, runs, strict=True)):
            progress(name, number, len(scenes), scene.name)
            logits = predict(scene.batch, scene.labels.unsqueeze(0), scene.test.unsqueeze(0))
            right = (logits.squeeze(0).argmax(-1) == scene.answers).double()
            each = torch.cat(
                [_right(predict, run, slice(i, i + 50)) for i in range(0, len(run.batch), 50)]
            )
            scores[scene.name], scores[f"{scene.name}/5-way"] = right, each
            passed = gate.passes(scene.test)
            for suffix, (value, ci), episodes in (
                ("", _interval(right), 1),
                ("/5-way", _interval(each), len(each)),
                ("/generalised", gate.harmonic(right, passed, seed), 1),
            ):
                found[suffix].append((value, ci))
                add(scene.name, suffix, value, ci, episodes)
    for suffix, values in found.items():
        if values:
            mean = sum(v for v, _ in values) / len(values)
            ci = sum(c * c for _, c in values) ** 0.5 / len(values)
            add("mean", suffix, mean, ci, len(runs[0].batch) if suffix == "/5-way" else 1)
    return scores, rows


def _interval(values: Tensor) -> tuple[float, float]:
    s = summarise(values)
    return s.mean, s.ci95


def _right(predict: Predict, run: _Run, which: slice) -> Tensor:
    """Accuracy of every sub-task of a slice."""
    logits = predict(run.batch[which], run.labels[which], run.images[which])
    return (logits.argmax(-1) == run.answers).double().mean(-1)


def _latency(predict: Predict, scenes: Sequence[Scene]) -> float:
    """Median milliseconds for the head of the first target (of 10 classes, where one has them)."""
    ten = [s for s in scenes if s.batch.way == 10] or list(scenes)
    if not ten:
        return 0.0
    scene, times = ten[0], []
    for _ in range(15):
        start = time.perf_counter()
        predict(scene.batch, scene.labels.unsqueeze(0), scene.test[:1].unsqueeze(0))
        times.append(time.perf_counter() - start)
    return 1000 * float(torch.tensor(times).median())


def _paired(scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """lt-di minus every other method, on the same images and sub-tasks, by target and over all."""
    if "lt-di" not in scores:
        return {}
    ours = scores["lt-di"]
    out: dict[str, dict[str, Any]] = {}
    for name, theirs in scores.items():
        if name == "lt-di" or not theirs:
            continue
        groups: dict[str, list[tuple[float, float]]] = {}
        for target, values in ours.items():
            found = _interval(values - theirs[target])
            groups.setdefault("mean" + target[len(target.partition("/")[0]) :], []).append(found)
            out.setdefault(target, {})[name] = _pair(*found)
        for target, pairs in groups.items():
            mean = sum(v for v, _ in pairs) / len(pairs)
            ci = sum(c * c for _, c in pairs) ** 0.5 / len(pairs)
            out.setdefault(target, {})[name] = _pair(mean, ci)
    return out


def _pair(mean: float, ci: float) -> dict[str, float]:
    return {"mean": round(mean, 5), "ci95": round(ci, 5)}


def _plain(value: Any) -> Any:
    """What JSON would give back."""
    import json

    return json.loads(json.dumps(value))
