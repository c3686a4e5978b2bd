"""Unseen domains: heads for tasks of a domain that nothing was trained on, domain by domain."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ltdi.backbone import FeatureMapping, ProtoTraining
from ltdi.backbone.wrapped import EFFICIENTNET
from ltdi.baselines import FineTune, LinearProbe, Ocd, ProtoNet, SimpleShot
from ltdi.baselines.domains import DomainMethod, FewShot
from ltdi.baselines.erm import Erm, ErmFineTune
from ltdi.baselines.method import Budget
from ltdi.baselines.w_diff import WDiff
from ltdi.collect import Preparation
from ltdi.data.archive import stem_of
from ltdi.errors import InputError, unknown
from ltdi.evaluate import across
from ltdi.generator import Generator
from ltdi.meta import MetaConfig
from ltdi.progress import Log, Progress
from ltdi.recipe import VARIANTS, Diffusion, Network, Recipe, Tasks, named_recipe
from ltdi.report.table import Result, Row
from ltdi.tracks.domain_data import embed, load_sets, world_of
from ltdi.tracks.domain_methods import (
    DomainAnchorOnly,
    DomainWorld,
    GeneratedForDomain,
    Plan,
)
from ltdi.tracks.episodes import check_counts, one_thread, shapes_of
from ltdi.tracks.measured import kept, leads, mean_row, nll_of, sampling_of
from ltdi.tracks.run import Run, run_methods
from ltdi.tracks.track import Outcome, check_methods, chosen_preset, side_of

Runs = Sequence[Run[DomainMethod]]
UNNAMED = "lt-di-unnamed"
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
ALL_METHODS = ("lt-di", UNNAMED, *VARIANTS[1:], LEARNED, *ANCHORS, *PEERS)


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
        side: Side in pixels that EfficientNet-lite0 sees; its own by default.
    """

    recipe: Recipe
    peer_iterations: int
    episodes: int
    choices: int
    held: int | None = None
    training: ProtoTraining = ProtoTraining(iterations=1200)
    side: int | None = None


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


def label(options: Mapping[str, Any]) -> str:
    """Names a run: "pacs-5w1s-5w5s"."""
    dataset = stem_of(Path(str(options["dataset"])).name)
    return f"{dataset}-{str(options['settings']).replace(',', '-').replace(' ', '')}"


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
    side: int | None = None,
    cache: str | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, text: None,
    log: Log = lambda record: None,
) -> Outcome[dict[str, DomainWorld]]:
    """Heads for tasks of a domain that is held out, each domain in turn.

    Args:
        dataset: "pacs", "office-caltech10", "glyphs", or a folder or archive of
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
        side: Side in pixels that it sees; the preset's for EfficientNet-lite0, its own for others.
        cache: Directory where trained backbones and features are kept between runs.
        seed: Fixes everything.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.

    Raises:
        InputError: If a name is unknown or the data do not suffice.
    """
    name, p = chosen_preset(preset, PRESETS)
    check_methods(methods, ALL_METHODS)
    if not 0 < unlabelled < 1:
        raise InputError(
            f"the unlabelled share must lie between 0 and 1, got {unlabelled}", where="--unlabelled"
        )
    many = p.episodes if episodes is None else episodes
    check_counts(query=query, episodes=many)
    shapes = shapes_of(settings, 5, 1)
    sets = load_sets(dataset, data_dir, seed)
    held = held_out(domains, list(sets), p)
    classes = next(iter(sets.values())).classes
    _check_ways(shapes, len(classes))
    kept = None if cache is None else Path(cache)
    spec = backbone if dataset == "glyphs" else backbone or EFFICIENTNET
    side = side_of(side, p.side, spec)
    net, raw = embed(sets, p.training, spec, side, kept, seed, progress)
    recipe = replace(p.recipe, meta=replace(p.recipe.meta, seed=seed))
    worlds: dict[str, DomainWorld] = {}
    runs: dict[str, list[Run[DomainMethod]]] = {}
    with tempfile.TemporaryDirectory(prefix="ltdi-bench-") as scratch, one_thread():
        for target in held:
            worlds[target] = world = world_of(
                target, net, raw, p.choices, shapes, unlabelled, Path(scratch), seed
            )
            runs[target] = []
            for way, shot in shapes:
                budget = Budget(p.peer_iterations, way, shot, query, p.choices, seed)
                made = {name: make_method(name, recipe, world) for name in methods}
                title = f"{dataset}/{target} {way}w{shot}s"
                runs[target].append(run_methods(made, world, budget, many, progress, log, title))
    rows = [row for of_target in runs.values() for run in of_target for row in run.rows]
    if len(held) > 1:
        for title, same in _by_shape(dataset, shapes, runs).items():
            rows += averages(title, same)
    fitted = {target: of_target[0].methods for target, of_target in runs.items()}
    about = {
        "shapes": [f"{w}w{s}s" for w, s in shapes],
        "held_out": held,
        "classes": list(classes),
        "unlabelled": unlabelled,
        "threads": 1,
        "recipe": asdict(p.recipe),
        "backbone": net.config,
        "side": net.transform.size,
        "mapping": None if net.config["kind"] == "conv" else asdict(FeatureMapping()),
        "peer_iterations": p.peer_iterations,
        "pool": {target: len(world.target.pool) for target, world in worlds.items()},
        "anchor": {target: _anchor(world) for target, world in worlds.items()},
        **_measured(dataset, shapes, runs),
        "notes": {n: m.note for n, m in next(iter(fitted.values())).items()},
    }
    result = Result("domain", dataset, name, seed, about, rows)
    return Outcome(result, worlds, fitted, _kept(result, fitted))


def _kept(result: Result, fitted: Mapping[str, Mapping[str, DomainMethod]]) -> dict[str, Generator]:
    """Our generator for each held-out domain."""
    out = {}
    for domain, methods in fitted.items():
        own = [row for row in result.rows if f"/{domain} " in (row.dataset or "")]
        told = replace(result, dataset=f"{result.dataset} without {domain}", rows=own)
        for name, generator in kept(methods, told, lambda row: row.dataset or "").items():
            out[f"{name}-{domain}"] = generator
    return out


def _check_ways(shapes: Sequence[tuple[int, int]], classes: int) -> None:
    """Refuse tasks of more classes than there are."""
    for way, _ in shapes:
        if way > classes:
            raise InputError(
                f"a {way}-way task needs {way} classes, every domain has {classes}",
                where="--settings",
                fix=f"choose ways up to {classes}",
            )


def _by_shape(
    dataset: str, shapes: Sequence[tuple[int, int]], runs: Mapping[str, Runs]
) -> dict[str, Runs]:
    """Runs of all held-out domains by the title of their mean."""
    return {
        f"{dataset} {w}w{s}s": [of_target[number] for of_target in runs.values()]
        for number, (w, s) in enumerate(shapes)
    }


def _measured(
    dataset: str, shapes: Sequence[tuple[int, int]], runs: Mapping[str, Runs]
) -> dict[str, Any]:
    """What is told beside the rows: by held-out domain, or by the title of a run."""
    each = [run for of_target in runs.values() for run in of_target]
    means = {t: mean_paired(same) for t, same in _by_shape(dataset, shapes, runs).items()}
    return {
        "query": {run.label: run.query for run in each},
        "sampling": {run.label: sampling_of(run.methods) for run in each},
        "paired": {run.label: leads(run.scores) for run in each} | means,
        "nll": {run.label: nll_of(run.scores) for run in each},
    }


def _anchor(world: DomainWorld) -> dict[str, Any]:
    """What was chosen for the anchor that names classes and reads the pool."""
    if (True, True) not in world.anchors:
        return {}
    (found, _), _ = world.anchors[True, True]
    return {n: getattr(found, n).tolist() for n in ("drift", "blend", "trust", "heat", "scale")}


def averages(title: str, runs: Runs) -> list[Row]:
    """Rows of the mean over held-out domains, whose episodes are independent."""
    return [
        mean_row(
            same,
            prepare_s=sum(r.prepare_s for r in same),
            train_s=sum(r.train_s for r in same),
            peak_mb=max(r.peak_mb for r in same),
            dataset=title,
        )
        for same in zip(*(run.rows for run in runs), strict=True)
    ]


def mean_paired(runs: Runs) -> dict[str, dict[str, float]]:
    """Mean over held-out domains of what lt-di leads by."""
    found = [leads(run.scores) for run in runs]
    out = {}
    for name in found[0]:
        mean, ci95 = across([(f[name]["mean"], f[name]["ci95"]) for f in found])
        out[name] = {"mean": round(mean, 5), "ci95": round(ci95, 5)}
    return out


def make_method(name: str, recipe: Recipe, world: DomainWorld) -> DomainMethod:
    """The method called `name`, unfitted."""
    if name in PEERS:
        return PEERS[name]()
    if name in ANCHORS:
        return DomainAnchorOnly(world, named="unnamed" not in name, pooled="no-em" not in name)
    own = named_recipe(name if name in VARIANTS else "lt-di", recipe)
    plan = Plan(own, named=name != UNNAMED, pooled=name != LEARNED)
    return GeneratedForDomain(plan, name in ("lt-di", UNNAMED), world)
