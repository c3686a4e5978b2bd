"""`ltdi train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltdi.backbone import Backbone
from ltdi.collect import Preparation
from ltdi.commands.common import OUT, run_in
from ltdi.commands.nets import train_nets
from ltdi.errors import MismatchError
from ltdi.meta import MetaConfig
from ltdi.pipeline import (
    TrainingSet,
    load_shared,
    train_generator,
)
from ltdi.recipe import NET_RECIPE, Diffusion, Network, Recipe, Sampling, Tasks
from ltdi.zoo import Zoo


def train(
    zoo: str,
    out: str,
    diffusion: Diffusion = Diffusion(),
    network: Network = Network(),
    meta: MetaConfig = MetaConfig(),
    sampling: Sampling = Sampling(),
    backbone: str | None = None,
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
        target: "head" or "net": what the zoo must hold; a check for scripts.
        resolved: The command's options, saved beside the run.
    """
    store = Zoo.open(zoo)
    if store.remote is None:  # a damaged shard is better found now than in the middle of the run
        for problem in store.verify():
            raise problem
    about = store.about
    kind = about.get("kind", "head")
    if target not in (None, kind):
        raise MismatchError(
            f"the zoo holds tasks of target {kind!r}, not {target!r}",
            where="--target",
            fix="leave --target out, or collect a zoo of that target",
        )
    if kind == "net":
        net = NET_RECIPE
        recipe = Recipe(
            tasks=Tasks(**_tuples(about["tasks"])),
            prepare=Preparation(**about["prepare"]),
            diffusion=net.diffusion if diffusion == Diffusion() else diffusion,
            network=net.network if network == Network() else network,
            meta=net.meta if meta == MetaConfig() else meta,
            sampling=sampling,
            anchor=net.anchor,
        )
        with run_in(out, "generator", "train.yaml", resolved) as (path, progress, log):
            made = train_nets(store, recipe, path, progress=progress, log=log)
            made.save(path)
        OUT.print(f"generator  {path}  revision {made.revision}", soft_wrap=True)
        return
    shared = load_shared(store)
    if backbone is not None:
        other = Backbone.load(Path(backbone))
        if other.fingerprint != store.about["backbone"]:
            raise MismatchError(
                f"the zoo was collected on backbone {store.about['backbone'][:12]}, "
                f"{backbone} is {other.fingerprint[:12]}",
                where="--backbone",
                fix="leave --backbone out, or collect a zoo on this backbone",
            )
    recipe = Recipe(
        tasks=Tasks(**_tuples(about["tasks"])),
        prepare=Preparation(**about["prepare"]),
        diffusion=diffusion,
        network=network,
        meta=meta,
        sampling=sampling,
        anchor=about["anchor"],
        start=about["start"],
    )
    solved = TrainingSet.of(store)
    with run_in(out, "generator", "train.yaml", resolved) as (path, progress, log):
        generator = train_generator(
            solved,
            shared.anchor,
            shared.backbone,
            recipe,
            out=path,
            valid=shared.valid,
            about={"data": about["data"], "zoo": about},
            progress=progress,
            log=log,
        )
        generator.save(path)
    OUT.print(f"generator  {path}  revision {generator.revision}", soft_wrap=True)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
