"""`ltdi train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ltdi.backbone import Backbone
from ltdi.commands.adapters import train_adapters
from ltdi.commands.collect import Collecting, begin
from ltdi.commands.common import OUT, run_in
from ltdi.commands.nets import train_nets
from ltdi.engine import Arrivals, Engine
from ltdi.engine.arrivals import JOURNAL
from ltdi.errors import InputError, MismatchError
from ltdi.files import own_directory
from ltdi.generator import AdapterGenerator, Generator, HeadGenerator, NetGenerator
from ltdi.meta import MetaConfig
from ltdi.pipeline import TrainingSet, load_shared, recipe_of, train_generator
from ltdi.progress import Bars, JsonLog
from ltdi.recipe import NET_RECIPE, Diffusion, Network, Sampling
from ltdi.whole import net_recipe_of
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
        resolved: The command's options, saved beside the run.
    """
    if collect is not None and (is_url(zoo) or backbone is not None or target is not None):
        raise InputError(
            "--collect fills a directory, with the backbone that --collect.backbone names and the "
            "target that --collect.target names",
            where="--zoo, --backbone and --target",
        )
    made_by = Engine(engine, workers)
    chosen = (diffusion, network, meta, sampling)
    whole = None if collect is not None else _whole(zoo, backbone, target)
    with run_in(out, "generator", "train.yaml", resolved) as (path, progress, log):
        if whole is not None:
            made = _train(whole, None, chosen, path, progress, log)
        else:
            assert collect is not None
            collection = begin(own_directory(zoo, "zoo"), collect, progress)
            with collection.start(made_by) as running:
                seen = collection.arrivals(
                    meta.iterations, running, rule=arrivals, journal=path / JOURNAL
                )
                made = _train(collection.zoo, seen, chosen, path, progress, log)
        made.save(path)
    OUT.print(f"generator  {path}  revision {made.revision}", soft_wrap=True)


def _train(
    zoo: Zoo,
    arrivals: Arrivals | None,
    chosen: tuple[Diffusion, Network, MetaConfig, Sampling],
    path: Path,
    progress: Bars,
    log: JsonLog,
) -> Generator:
    """A generator of the kind that the zoo holds, with what was chosen or suits the kind."""
    diffusion, network, meta, sampling = chosen
    if kind_of(zoo) == AdapterGenerator.kind:
        return train_adapters(
            zoo,
            path,
            diffusion=diffusion,
            network=network,
            meta=meta,
            sampling=sampling,
            progress=progress,
            log=log,
        )
    if kind_of(zoo) == NetGenerator.kind:
        collected, suits = net_recipe_of(zoo), NET_RECIPE
        recipe = replace(
            collected,
            diffusion=suits.diffusion if diffusion == Diffusion() else diffusion,
            network=suits.network if network == Network() else network,
            meta=suits.meta if meta == MetaConfig() else meta,
            sampling=sampling,
        )
        return train_nets(zoo, recipe, path, arrivals=arrivals, progress=progress, log=log)
    shared = load_shared(zoo)
    return train_generator(
        TrainingSet.of(zoo, arrivals),
        shared.anchor,
        shared.backbone,
        replace(recipe_of(zoo), diffusion=diffusion, network=network, meta=meta, sampling=sampling),
        out=path,
        valid=shared.valid,
        about={"data": zoo.about["data"], "zoo": zoo.about},
        progress=progress,
        log=log,
    )


def kind_of(zoo: Zoo) -> str:
    """What kind of weights a zoo holds."""
    return str(zoo.about.get("kind", HeadGenerator.kind))


def _whole(zoo: str, backbone: str | None, target: str | None) -> Zoo:
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
    if store.remote is None:  # a damaged shard is better found now than in the middle of the run
        for problem in store.verify():
            raise problem
    return store
