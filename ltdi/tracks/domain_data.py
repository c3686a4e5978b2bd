"""The data of unseen domains: images domain by domain, their features, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ltdi import data
from ltdi.backbone import (
    Backbone,
    FeatureMap,
    FeatureMapping,
    ProtoTraining,
    cached_banks,
    pretrained_backbone,
)
from ltdi.baselines.domains import Sources
from ltdi.crossdomain import split_domain
from ltdi.data import ImageSet, domains, glyphs
from ltdi.errors import unknown
from ltdi.progress import Progress
from ltdi.tasks import FeatureBank
from ltdi.tracks.domain_methods import (
    DomainWorld,
)
from ltdi.tracks.episodes import trained_backbone

# Classes of drawn characters.
_GLYPHS = 10


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


def embed(
    sets: dict[str, ImageSet],
    training: ProtoTraining,
    backbone: str | None,
    side: int | None,
    cache: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[Backbone, dict[str, FeatureBank]]:
    """A frozen backbone that has seen no image of the data, and the features of every domain.

    A pretrained one sees images of `side`; None trains one on characters that no domain has.
    """
    if backbone is None:
        seen = glyphs.load(seed=seed)["train"]
        # Latin characters are what the domains draw.
        others = [i for i, c in enumerate(seen.classes) if not c.startswith("Latin/")]
        plan = replace(training, seed=seed)
        net = trained_backbone(seen.select(others), plan, cache, progress)
    else:
        net = pretrained_backbone(backbone, size=side)
    banks = cached_banks(
        net, list(sets.values()), cache, progress=lambda i, n: progress("features", i, n, "")
    )
    return net, dict(zip(sets, banks, strict=True))


def world_of(
    target: str,
    net: Backbone,
    raw: dict[str, FeatureBank],
    choices: int,
    shapes: Sequence[tuple[int, int]],
    unlabelled: float,
    scratch: Path,
    seed: int,
) -> DomainWorld:
    """What is known while `target` is held out, and `target` itself to measure on.

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
    return DomainWorld(place, backbone, sources, split[target], tuple(shapes), choices, seed)
