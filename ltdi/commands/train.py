"""`ltdi train`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ltdi.backbone import Backbone
from ltdi.commands.adapters import DEFAULT as ADAPTERS
from ltdi.commands.adapters import train_adapters
from ltdi.commands.collect import Collecting, begin
from ltdi.commands.common import OUT, run_in, silent
from ltdi.commands.nets import train_nets
from ltdi.engine import Engine, Runtime, recipe_of
from ltdi.engine.arrivals import JOURNAL
from ltdi.errors import InputError, MismatchError
from ltdi.files import own_directory
from ltdi.generator import AdapterGenerator, Generator, HeadGenerator, NetGenerator
from ltdi.meta import MetaConfig
from ltdi.meta.team import Team, tracked
from ltdi.pipeline import HeadCollection, load_shared, train_generator
from ltdi.recipe import NET_RECIPE, Diffusion, Network, Recipe, Sampling, Varied
from ltdi.zoo import Zoo
from ltdi.zoo.remote import is_url


def train(
    zoo: str,
    out: str,
    diffusion: Diffusion = Diffusion(),
    network: Network = Network(),
    meta: MetaConfig = MetaConfig(),
    sampling: Sampling = Sampling(),
    backbone: str | None = None,
    collect: Collecting | None = None,
    engine: str = "processes",
    workers: int = 1,
    arrivals: str = "planned",
    target: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    trackers: list[str] | None = None,
    resolved: str = "",
) -> None:
    """Meta-train a generator on a zoo; an interrupted run goes on from its checkpoint.

    Args:
        zoo: Directory that `ltdi collect` made, or a URL of one that fsspec reads.
        out: Directory of the generator.
        diffusion: Chain, objective and loss.
        network: Denoiser.
        meta: REPTILE or single-level training.
        sampling: Defaults of generation; the number of steps is chosen on validation classes when
            the temperature is 0.
        backbone: A saved backbone that must be the zoo's own; a check for scripts.
        collect: Fill the zoo at the same time: the options of `ltdi collect`, such as
            `--collect.data`. Training begins with the first shards.
        engine: Who solves the tasks of --collect: "processes" of this machine, or "ray".
        workers: Their number, of one thread each; 0 solves in this process, when training needs
            a shard.
        arrivals: Which shards training sees: "planned", so many at each iteration, which gives the
            same generator whenever they land; or "landed", all that are there, noted in
            arrivals.jsonl.
        target: "head", "net" or "adapter": what the zoo must hold; a check for scripts.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        precision: Of the denoiser's products: "auto" (bfloat16 on a GPU), "float32" or "bfloat16".
        trackers: Any of tensorboard, trackio and wandb, through Accelerate.
        resolved: The command's options, saved beside the run.

    Raises:
        InputError: If options exclude each other, or the zoo cannot be trained on.
        DamagedFileError: If a file of the zoo is truncated or altered.
        MismatchError: If the zoo or a checkpoint there is another than the one asked for.
        DivergedError: If the loss leaves the finite numbers.
    """
    if collect is not None and (is_url(zoo) or backbone is not None or target is not None):
        raise InputError(
            "--collect fills a directory, with the backbone that --collect.backbone names and the "
            "target that --collect.target names",
            where="--zoo, --backbone and --target",
            fix="give --zoo a local directory, and say --collect.backbone and --collect.target",
        )
    team = Team.join(device, precision)
    if collect is not None and team.size > 1:
        raise InputError(
            f"--collect is for one training process, here are {team.size}",
            where="--collect",
            fix="start `ltdi collect` on its own, and train on its zoo",
        )
    made_by = Engine(engine, workers)
    chosen = (diffusion, network, meta, sampling)
    whole = None if collect is not None else _whole(zoo, backbone, target, team)
    kind = kind_of(whole) if whole is not None else collect and collect.target
    if kind == AdapterGenerator.kind and team.device.type != "cpu":
        raise InputError(
            "a generator of adapters is trained on the CPU",
            where="--device",
            fix="give --device cpu; several processes may share the work",
        )
    settings = {"zoo": zoo, "meta": asdict(meta), "network": asdict(network)}
    with ExitStack() as stack:
        place = run_in(out, "generator", "train.yaml", resolved) if team.main else silent(out)
        path, progress, plain_log = stack.enter_context(place)
        told = trackers or [] if team.main else []
        log = stack.enter_context(tracked(plain_log, told, path, settings))
        runtime = Runtime(path, progress, log, team)
        if whole is not None:
            made = TRAIN[kind_of(whole)][0](whole, _recipe(whole, chosen), runtime)
        else:
            assert collect is not None
            collection = begin(own_directory(zoo, "zoo"), collect, progress)
            recipe = _recipe(collection.zoo, chosen)
            with collection.start(made_by) as running:
                seen = collection.arrivals(
                    recipe.meta.iterations, running, rule=arrivals, journal=path / JOURNAL
                )
                runtime = replace(runtime, arrivals=seen)
                made = TRAIN[kind_of(collection.zoo)][0](collection.zoo, recipe, runtime)
        if team.main:
            made.save(path)
    if team.main:
        OUT.print(f"generator  {path}  revision {made.revision}", soft_wrap=True)
    team.leave()


def train_heads(zoo: Zoo, recipe: Recipe, runtime: Runtime) -> HeadGenerator:
    """Meta-train a generator of heads, with what lies beside the zoo."""
    backbone, valid = load_shared(zoo)
    return train_generator(
        HeadCollection(zoo),
        backbone,
        recipe,
        valid=valid if runtime.team.main else None,
        about={"data": zoo.about["data"], "zoo": zoo.about},
        runtime=runtime,
    )


# How each kind of weights is learnt, and what suits it where nothing is chosen.
TRAIN: dict[str, tuple[Callable[..., Generator], Varied]] = {
    HeadGenerator.kind: (train_heads, Recipe()),
    NetGenerator.kind: (train_nets, NET_RECIPE),
    AdapterGenerator.kind: (train_adapters, ADAPTERS),
}


def _recipe(zoo: Zoo, chosen: tuple[Diffusion, Network, MetaConfig, Sampling]) -> Varied:
    """How a zoo was collected, with what was chosen, or suits the kind where nothing was."""
    suits = TRAIN[kind_of(zoo)][1]
    if isinstance(suits, Recipe):
        own: Any = recipe_of(zoo, suits)
    else:
        own = suits  # how its runs were made says the zoo once it is full
    pairs = zip(("diffusion", "network", "meta"), chosen, strict=False)
    named = {n: x if x != type(x)() else getattr(suits, n) for n, x in pairs}
    recipe: Varied = replace(own, **named, sampling=chosen[-1])
    return recipe


def kind_of(zoo: Zoo) -> str:
    """What kind of weights a zoo holds."""
    return str(zoo.about.get("kind", HeadGenerator.kind))


def _whole(zoo: str, backbone: str | None, target: str | None, team: Team) -> Zoo:
    """A zoo that is to be trained on as it is, verified."""
    store = Zoo.open(zoo)
    if target not in (None, kind_of(store)):
        raise MismatchError(
            f"the zoo holds tasks of target {kind_of(store)!r}, not {target!r}",
            where="--target",
            fix="leave --target out, or collect a zoo of that target",
        )
    if backbone is not None:
        other = Backbone.load(Path(backbone))
        if other.fingerprint != store.about["backbone"]:
            raise MismatchError(
                f"the zoo was collected on backbone {store.about['backbone'][:12]}, "
                f"{backbone} is {other.fingerprint[:12]}",
                where="--backbone",
                fix="leave --backbone out, or collect a zoo on this backbone",
            )
    if (
        store.remote is None and team.main
    ):  # a damaged shard is better found now than in the middle of the run
        for problem in store.verify():
            raise problem
    return store
