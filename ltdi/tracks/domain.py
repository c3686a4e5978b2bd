"""Unseen domains: heads for tasks of a domain that nothing was trained on, domain by domain."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi import data
from ltdi.backbone import (
    Backbone,
    FeatureMap,
    FeatureMapping,
    InputTransform,
    ProtoTraining,
    cached_backbone,
    cached_bank,
    pretrained_backbone,
    train_backbone,
)
from ltdi.baselines import FineTune, LinearProbe, Ocd, ProtoNet, SimpleShot
from ltdi.baselines.domains import DomainMethod, FewShot, Sources
from ltdi.baselines.erm import Erm, ErmFineTune
from ltdi.baselines.method import Budget
from ltdi.baselines.w_diff import WDiff
from ltdi.collect import Preparation
from ltdi.crossdomain import Domain, split_domain
from ltdi.data import ImageSet, domains, glyphs
from ltdi.errors import InputError, unknown
from ltdi.evaluate import Scores, latency_of_tasks, score_tasks
from ltdi.memory import reset_peak
from ltdi.meta import MetaConfig
from ltdi.progress import Log, Progress
from ltdi.recipe import Diffusion, Network, Recipe, Tasks
from ltdi.report.table import Result, Row
from ltdi.tasks import Episodes, FeatureBank
from ltdi.tracks.domain_methods import (
    DomainAnchorOnly,
    DomainWorld,
    GeneratedForDomain,
    publish,
)
from ltdi.tracks.episodes import check_counts, one_thread, shapes_of
from ltdi.tracks.measured import leads, metrics_of, scored

RECIPES = ("lt-di", "mv-di", "tw-di", "mv-di-matched", "single-level", "anchored-regression")
UNNAMED = "lt-di-unnamed"
FAST = "lt-di-fast"
LEARNED = "lt-di-learned-em"
ANCHORS = ("anchor", "anchor-unnamed", "anchor-no-em")
_FEW_SHOT = (ProtoNet, SimpleShot, LinearProbe, FineTune, Ocd)
PEERS: dict[str, Callable[[], DomainMethod]] = {
    **{cls.name: partial(lambda c: FewShot(c()), cls) for cls in _FEW_SHOT},
    "simpleshot-aligned": lambda: FewShot(SimpleShot(), align=True),
    "erm": Erm,
    "erm-aligned": lambda: Erm(align=True),
    "erm-finetune": ErmFineTune,
    "w-diff": WDiff,
}
ALL_METHODS = ("lt-di", FAST, UNNAMED, *RECIPES[1:], LEARNED, *ANCHORS, *PEERS)


@dataclass(frozen=True)
class Preset:
    """What is spent.

    Attributes:
        recipe: Of `lt-di`; controls change one idea of it.
        peer_iterations: Outer iterations of trained peers.
        episodes: Test episodes for each held-out domain.
        choices: Tasks for each source domain and shape that choices are made on.
        held: How many domains are held out, the first ones; None for each in turn.
        training: Of the backbone for drawn characters.
    """

    recipe: Recipe
    peer_iterations: int
    episodes: int
    choices: int
    held: int | None = None
    training: ProtoTraining = ProtoTraining(iterations=1200)


_RECIPE = Recipe(
    tasks=Tasks(ways=(5,), shots=(1, 5), query=10, probe=5, per_setting=200, folds=0),
    prepare=Preparation(lr=0.05, steps=24, segments=4),
    diffusion=Diffusion(first=0.25),
    network=Network(kind="domain", depth=1),
    meta=MetaConfig(iterations=100, tasks=6, meta_lr=2e-3, warmup=10, ema=0.9),
    anchor="domain",
)
_SMOKE = replace(
    _RECIPE,
    tasks=replace(_RECIPE.tasks, per_setting=24),
    network=Network(kind="domain", width=32, depth=1),
    meta=replace(_RECIPE.meta, iterations=6, tasks=4, warmup=2, ema=0.9),
)
_PAPER = replace(
    _RECIPE,
    tasks=replace(_RECIPE.tasks, per_setting=10_000),
    network=Network(kind="domain", width=128, depth=3),
    meta=replace(_RECIPE.meta, iterations=6000, tasks=32, ema=0.99),
)
PRESETS = {
    "smoke": Preset(_SMOKE, 5, 60, 6, 1, ProtoTraining(iterations=80, classes=48)),
    "standard": Preset(_RECIPE, 200, 600, 40),
    "paper": Preset(_PAPER, 6000, 10_000, 200, None, ProtoTraining(iterations=20_000)),
}
_GLYPHS = 10


@dataclass(frozen=True)
class Outcome:
    """A finished benchmark.

    Attributes:
        result: Table and JSON.
        methods: The fitted methods by held-out domain and name, for the first shape of episodes.
    """

    result: Result
    methods: dict[str, dict[str, DomainMethod]]

    def publish(self, path: Path) -> None:
        """Write our generator for each held-out domain: `generator-<domain>`."""
        for domain, methods in self.methods.items():
            ours = methods.get("lt-di")
            if isinstance(ours, GeneratedForDomain):
                own = [r for r in self.result.rows if f"/{domain} " in (r.dataset or "")]
                metrics = metrics_of(own, lambda row: row.dataset or "")
                known = f"{self.result.dataset} without {domain}"
                publish(ours, path / f"generator-{domain}", metrics, known)


def label(options: Mapping[str, Any]) -> str:
    """Names a run: "pacs-5w1s-5w5s"."""
    dataset = Path(str(options["dataset"])).name.removesuffix(".zip")
    return f"{dataset}-{str(options['settings']).replace(',', '-').replace(' ', '')}"


def load_sets(dataset: str, data_dir: str | None, seed: int) -> dict[str, ImageSet]:
    """The images of every domain, all with the same classes.

    Raises:
        InputError: If the data set has no domains, a domain lacks a class, or it cannot be read.
    """
    if dataset == "glyphs":
        found = glyphs.load_domains(seed=seed)
        return {name: images.select(range(_GLYPHS)) for name, images in found.items()}
    if dataset in domains.DOMAINS:
        return data.load(dataset, data_dir, size=64, channels=3)
    if dataset in data.SOURCES:
        raise unknown(
            "data set with domains", dataset, ("glyphs", *domains.DOMAINS), where="--dataset"
        )
    if not Path(dataset).exists():
        raise unknown(
            "data set with domains (nor is there a file or folder)",
            dataset,
            ("glyphs", *domains.DOMAINS),
            where="--dataset",
        )
    return domains.load_domains(dataset, size=64, channels=3)


def held_out(names: str | None, known: Sequence[str], preset: Preset) -> list[str]:
    """The domains to hold out, in turn.

    Raises:
        InputError: For a domain that does not exist, or fewer than three domains.
    """
    if len(known) < 3:
        raise InputError(
            f"{len(known)} domains are too few: one is held out, one validates, one trains",
            where="--dataset",
            fix="give images of at least three domains",
        )
    if names is None:
        return list(known)[: preset.held]
    wanted = [n.strip() for n in names.split(",")]
    for name in wanted:
        if name not in known:
            raise unknown("domain", name, known, where="--domains")
    return list(dict.fromkeys(wanted))


def bench(
    dataset: str,
    data_dir: str | None = None,
    *,
    methods: Sequence[str] = ALL_METHODS,
    preset: str | Preset = "standard",
    settings: str = "5w1s,5w5s",
    domains: str | None = None,
    query: int = 15,
    episodes: int | None = None,
    unlabelled: float = 1 / 3,
    backbone: str | None = None,
    cache: str | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome:
    """Heads for tasks of a domain that is held out, each domain in turn.

    Args:
        dataset: "pacs", "office-caltech10", "glyphs", or a folder or zip of
            <domain>/<class>/<image> with the same classes in every domain.
        data_dir: Where a named data set lies.
        methods: Names; see `ALL_METHODS`.
        preset: Name of a preset, or a preset.
        settings: Ways and shots of the tasks, such as "5w1s,5w5s,10w1s".
        domains: Comma-separated names of the domains to hold out; all in turn by default.
        query: Query images per class; fewer where the smallest class leaves fewer.
        episodes: Test episodes for each domain; the preset's number by default.
        unlabelled: Share of a domain's images that is set aside, without labels, to see the domain.
        backbone: A pretrained backbone instead of EfficientNet-lite0.
        cache: Directory where trained backbones and features are kept between runs.
        seed: Fixes everything.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or the data do not suffice.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, where="--preset")
    p = PRESETS[preset] if isinstance(preset, str) else preset
    if not methods:
        raise InputError("no method was named", where="--methods", fix="name at least one")
    for name in methods:
        if name not in ALL_METHODS:
            raise unknown("method", name, ALL_METHODS, where="--methods")
    if not 0 < unlabelled < 1:
        raise InputError(
            f"the unlabelled share must lie between 0 and 1, got {unlabelled}", where="--unlabelled"
        )
    many = p.episodes if episodes is None else episodes
    check_counts(query=query, episodes=many)
    shapes = shapes_of(settings, 5, 1)
    sets = load_sets(dataset, data_dir, seed)
    held = held_out(domains, list(sets), p)
    classes = len(next(iter(sets.values())).classes)
    for way, _ in shapes:
        if way > classes:
            raise InputError(
                f"a {way}-way task needs {way} classes, every domain has {classes}",
                where="--settings",
                fix=f"choose ways up to {classes}",
            )
    place = None if cache is None else Path(cache)
    net, raw = _features(dataset, sets, p, backbone, place, seed, progress)
    runs: dict[str, list[Run]] = {}
    fitted: dict[str, dict[str, DomainMethod]] = {}
    with tempfile.TemporaryDirectory(prefix="ltdi-bench-") as scratch, one_thread():
        for target in held:
            world, test = _world(target, net, raw, p, shapes, unlabelled, Path(scratch), seed)
            runs[target] = []
            for way, shot in shapes:
                budget = Budget(p.peer_iterations, way, shot, query, p.choices, seed)
                chosen = {name: make_method(name, p.recipe, world, seed) for name in methods}
                fitted.setdefault(target, chosen)
                title = f"{dataset}/{target} {way}w{shot}s"
                runs[target].append(_run(title, chosen, world, test, budget, many, progress, log))
    rows = [row for of_target in runs.values() for run in of_target for row in run.rows]
    whole = [[of_target[number] for of_target in runs.values()] for number in range(len(shapes))]
    if len(held) > 1:
        for (way, shot), same in zip(shapes, whole, strict=True):
            rows += _averages(f"{dataset} {way}w{shot}s", same)
    about = {
        "shapes": [f"{w}w{s}s" for w, s in shapes],
        "held_out": held,
        "classes": list(next(iter(sets.values())).classes),
        "unlabelled": unlabelled,
        "pool": {t: r[0].pool for t, r in runs.items()},
        "query": {run.title: run.query for r in runs.values() for run in r},
        "threads": 1,
        "recipe": asdict(p.recipe),
        "backbone": net.config,
        "mapping": None if net.config["kind"] == "conv" else asdict(FeatureMapping()),
        "peer_iterations": p.peer_iterations,
        "anchor": {t: r[0].anchor for t, r in runs.items()},
        "sampling": {run.title: run.sampling for r in runs.values() for run in r},
        "paired": {run.title: run.paired() for r in runs.values() for run in r}
        | {
            f"{dataset} {w}w{s}s": _mean_paired(same)
            for (w, s), same in zip(shapes, whole, strict=True)
        },
        "nll": {
            run.title: {n: round(float(x.nll.mean()), 5) for n, x in run.scores.items()}
            for r in runs.values()
            for run in r
        },
        "notes": {n: m.note for n, m in next(iter(fitted.values())).items()},
    }
    name = preset if isinstance(preset, str) else "custom"
    return Outcome(Result("domain", dataset, name, seed, about, rows), fitted)


def make_method(name: str, recipe: Recipe, world: DomainWorld, seed: int) -> DomainMethod:
    """The method called `name`, unfitted.

    Raises:
        InputError: If the name is unknown.
    """
    recipe = replace(recipe, meta=replace(recipe.meta, seed=seed))
    if name in RECIPES:
        return GeneratedForDomain(name, name, recipe, world)
    if name == UNNAMED:
        return GeneratedForDomain(name, "lt-di", recipe, world, named=False)
    if name == FAST:
        return GeneratedForDomain(name, "lt-di", recipe, world, patient=False)
    if name == LEARNED:
        return GeneratedForDomain(name, "lt-di", recipe, world, pooled=False)
    if name in ANCHORS:
        return DomainAnchorOnly(
            world, seed, named="unnamed" not in name, pooled="no-em" not in name
        )
    if name in PEERS:
        return PEERS[name]()
    raise unknown("method", name, ALL_METHODS, where="--methods")


@dataclass(frozen=True)
class Run:
    """All methods on the episodes of one held-out domain and shape.

    Attributes:
        title: "<data>/<domain> <way>w<shot>s".
        scores: By method.
        rows: Of the result.
        query: Queries per class.
        pool: Unlabelled images.
        sampling: Of the generators.
        anchor: What was chosen for it.
    """

    title: str
    scores: dict[str, Scores]
    rows: list[Row]
    query: int
    pool: int
    sampling: dict[str, Any]
    anchor: dict[str, Any]

    def paired(self) -> dict[str, dict[str, float]]:
        """lt-di minus every other method, on the same episodes."""
        return leads(self.scores)


def _run(
    title: str,
    methods: dict[str, DomainMethod],
    world: DomainWorld,
    test: Domain,
    budget: Budget,
    episodes: int,
    progress: Progress,
    log: Log,
) -> Run:
    tasks = test.episodes(budget.way, budget.shot, budget.query, episodes, budget.seed + 77_000)
    rows: list[Row] = []
    scores: dict[str, Scores] = {}
    features = test.bank.features
    for name, method in methods.items():
        reset_peak()
        start = time.perf_counter()
        method.fit(world.sources, budget, partial(progress, f"{title}, {name}"))
        train_s = method.train_s or time.perf_counter() - start

        def predict(part: Episodes, method: DomainMethod = method) -> Tensor:
            support, query = features[part.support], features[part.query]
            return method.predict(support, query, part.classes, test.pool)

        scores[name] = score_tasks(predict, tasks)
        row = scored(
            name,
            kind_of(name),
            scores[name],
            latency_ms=latency_of_tasks(predict, tasks),
            prepare_s=method.prepare_s,
            train_s=train_s,
            dataset=title,
        )
        rows.append(row)
        log({"event": "method", **asdict(rows[-1])})
    made = {n: m for n, m in methods.items() if isinstance(m, GeneratedForDomain) and m.generator}
    anchor = {}
    if (True, True) in world.anchors:
        found = world.anchors[True, True][0]
        anchor = {
            n: getattr(found, n).tolist() for n in ("drift", "blend", "trust", "heat", "scale")
        }
    return Run(
        title,
        scores,
        rows,
        tasks.query.shape[2],
        len(test.pool),
        {n: asdict(m.generator.parts.sampling) for n, m in made.items() if m.generator},
        anchor,
    )


def kind_of(name: str) -> str:
    """Whether a method is ours, a control or a peer."""
    if name in ("lt-di", FAST, UNNAMED):
        return "ours"
    return "peer" if name in PEERS else "control"


def _averages(title: str, runs: list[Run]) -> list[Row]:
    """Rows of the mean over held-out domains, whose episodes are independent."""
    out = []
    for same in zip(*(run.rows for run in runs), strict=True):
        many = len(same)
        out.append(
            replace(
                same[0],
                mean=sum(r.mean for r in same) / many,
                ci95=sum(r.ci95**2 for r in same) ** 0.5 / many,
                episodes=sum(r.episodes for r in same),
                latency_ms=sum(r.latency_ms for r in same) / many,
                prepare_s=sum(r.prepare_s for r in same),
                train_s=sum(r.train_s for r in same),
                peak_mb=max(r.peak_mb for r in same),
                dataset=title,
            )
        )
    return out


def _mean_paired(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Mean over held-out domains of `Run.paired`."""
    found = [run.paired() for run in runs]
    out = {}
    for name in found[0]:
        values = [f[name] for f in found]
        out[name] = {
            "mean": round(sum(v["mean"] for v in values) / len(values), 5),
            "ci95": round(sum(v["ci95"] ** 2 for v in values) ** 0.5 / len(values), 5),
        }
    return out


def _features(
    dataset: str,
    sets: dict[str, ImageSet],
    preset: Preset,
    backbone: str | None,
    cache: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[Backbone, dict[str, FeatureBank]]:
    """A frozen backbone that has seen no image of the data, and the features of every domain."""
    if dataset == "glyphs" and backbone is None:
        seen = glyphs.load(seed=seed)["train"]
        # Latin characters are what the domains draw.
        others = [i for i, c in enumerate(seen.classes) if not c.startswith("Latin/")]
        images, plan = seen.select(others), replace(preset.training, seed=seed)

        def train() -> Backbone:
            def step(i: int, n: int, loss: float) -> None:
                progress("backbone", i, n, f"loss {loss:.3f}")

            return train_backbone(images, plan, transform=InputTransform(28, 1), progress=step)

        net = train() if cache is None else cached_backbone(images, plan, cache, train)
    else:
        net = pretrained_backbone(backbone or "efficientnet-lite0")
    total, done, out = sum(len(s) for s in sets.values()), 0, {}
    for name, images in sets.items():

        def step(i: int, n: int, before: int = done) -> None:
            progress("features", before + i, total, "")

        if cache is None:
            out[name] = net.bank(images, progress=step)
        else:
            out[name] = cached_bank(net, images, cache, progress=step)
        done += len(images)
    return net, out


def _world(
    target: str,
    net: Backbone,
    raw: dict[str, FeatureBank],
    preset: Preset,
    shapes: Sequence[tuple[int, int]],
    unlabelled: float,
    scratch: Path,
    seed: int,
) -> tuple[DomainWorld, Domain]:
    """What is known while `target` is held out, and `target` itself.

    Features of pretrained backbones are mapped (`FeatureMap`), as the source domains say.
    """
    others = [name for name in raw if name != target]
    backbone, banks = net, raw
    if net.config["kind"] != "conv":
        everything = torch.cat([raw[name].features for name in others])
        map = FeatureMap(everything.shape[1], FeatureMapping()).fit(everything)
        backbone, banks = net.mapped(map), {n: map.bank(b) for n, b in raw.items()}
    split = {n: split_domain(n, b, share=unlabelled, seed=seed + 5_000) for n, b in banks.items()}
    # The next one after the target, in a circle, validates.
    order = list(raw)
    turn = order.index(target)
    valid = order[(turn + 1) % len(order)]
    sources = Sources(tuple(split[n] for n in others), others.index(valid))
    place = scratch / target
    place.mkdir()
    world = DomainWorld(backbone, sources, tuple(shapes), place, preset.choices)
    return world, split[target]
