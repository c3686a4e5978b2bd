"""`ltdi evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.backbone import Backbone
from ltdi.baselines import PEERS, Banks, Budget
from ltdi.commands.adapters import evaluate_adapter
from ltdi.commands.common import ERR, OUT, check_domain, check_target, needed
from ltdi.crossdomain import split_domain
from ltdi.data import folder
from ltdi.data.text import Columns
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.evaluate import Scores, latency_ms, on_bank, score_tasks
from ltdi.files import claim_file
from ltdi.generator import (
    AdapterGenerator,
    DomainHeadGenerator,
    Generator,
    HeadGenerator,
    ImageGenerator,
)
from ltdi.generator.linear import LinearHeads
from ltdi.progress import bars
from ltdi.report.table import Result, Row, show
from ltdi.tasks import Episodes, FeatureBank, sample_episodes
from ltdi.tracks.episodes import check_counts
from ltdi.tracks.measured import in_words, leads, nll_of, scored

# Peers that learn nothing but the support, so that any folder will do to tune them.
SIMPLE = ("protonet", "simpleshot", "linear-probe", "finetune")
# The share of the images that a generator that reads a domain gets without their labels.
_ASIDE = 1 / 3


def evaluate(
    generator: str,
    data_dir: str | None = None,
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int = 1000,
    steps: int | None = None,
    temperature: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    peers: str | None = None,
    json: str | None = None,
    backbone: str | None = None,
    unlabelled: str | None = None,
    names: bool | None = None,
    target: str | None = None,
    task: str | None = None,
    support: int = 128,
    columns: Columns = Columns(),
    description: str = "",
) -> None:
    """Measure a generator on few-shot episodes of a folder of images, or on a task of texts.

    Args:
        generator: Directory of a generator, or a name on the hub.
        data_dir: Folder, zip or tar.gz of <class>/<image>; the classes need not be known to
            anyone. For adapters: where GLUE lies, if the task is one of it.
        way: Classes per episode.
        shot: Support images per class.
        query: Query images per class; lowered, with a note, where a class has too few images.
        episodes: Number of episodes.
        steps: Denoising steps; the generator's own number by default.
        temperature: Scale of the noise.
        samples: Weights drawn and averaged.
        seed: Of the episodes and the noise.
        peers: What to compare with, with commas between: protonet, simpleshot, linear-probe,
            finetune. They are tuned on other episodes of the same classes, which favours them. By
            default protonet and, where a task has no more than 100 images, linear-probe.
        json: File for the result.
        backbone: A saved backbone that must be the generator's own; a check for scripts.
        unlabelled: Folder, zip or tar.gz of images of the same domain, in any folders, for a
            generator that reads a domain; a third of the images, without their labels, by default.
        names: Whether the classes are named as those that such a generator knows; true by default.
        target: "head", "net" or "adapter": what the generator must generate; a check for scripts.
        task: For adapters: the text task, as `ltdi collect --data` names one; its part dev is
            measured on.
        support: For adapters: rows of the part train that are generated from.
        columns: Which columns of a text file hold what.
        description: What a text task is, in a sentence.

    Raises:
        InputError: If an option is missing or does not fit the generator, or data cannot be read.
        MismatchError: If the generator or its backbone is another than the one asked for.
    """
    check_counts(shot=shot, query=query, episodes=episodes)
    if peers is None:
        # Logistic regression on hundreds of images takes minutes.
        peers = "protonet,linear-probe" if way * shot <= 100 else "protonet"
    beside = [name.strip() for name in peers.split(",") if name.strip()]
    for name in beside:
        if name not in SIMPLE:
            raise unknown("peer", name, SIMPLE, where="--peers")
    file = claim_file(json, "result") if json else None
    gen = Generator.from_pretrained(generator)
    check_target(gen, target)
    given = {"steps": steps, "temperature": temperature, "samples": samples}
    options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if isinstance(gen, AdapterGenerator):
        name = needed(task, "--task", "a GLUE task such as sst-2, or a file of labelled texts")
        result = evaluate_adapter(
            gen, name, data_dir, columns, description, rows=support, seed=seed, options=options
        )
    elif isinstance(gen, ImageGenerator):
        place = needed(data_dir, "--data-dir", "a folder, zip or tar.gz of <class>/<image>")
        if backbone is not None:
            _check_backbone(gen, Path(backbone))
        check_domain(gen, unlabelled=unlabelled, names=names)
        photos = _photos(gen, place, way, shot, unlabelled, names is not False, seed)
        room = photos.bank.queries_left(shot, query)
        if room < query:
            ERR.print(f"note: the smallest class leaves {room} query images, not {query}")
        tasks = photos.bank.episodes(way=way, shot=shot, query=room, episodes=episodes, seed=seed)
        result = _on_episodes(gen, photos, tasks, options, seed, beside)
    else:
        raise InputError(
            f"this generator ({gen.kind}) does not go by labelled samples, and only those that do "
            "are measured here",
            where="--generator",
            fix="see `ltdi bench` for measures of its kind",
        )
    show(result, OUT)
    if pairs := result.settings.get("paired"):
        OUT.print(in_words(pairs, result.rows[0].episodes))
    if file:
        result.write_json(file)


def _check_backbone(gen: ImageGenerator, path: Path) -> None:
    if not isinstance(gen, HeadGenerator):
        raise MismatchError(
            "a generator of whole nets has no backbone",
            where="--backbone",
            fix="leave --backbone out",
        )
    gen.check_backbone(Backbone.load(path))


@dataclass(frozen=True)
class _Photos:
    """A folder of images as a generator sees it.

    Attributes:
        name: Of the folder.
        bank: Its features, or its images for whole nets.
        told: Further arguments of `weights` that are the same for every task.
        known: [classes] their numbers for a generator that knows them by name.
    """

    name: str
    bank: FeatureBank
    told: dict[str, Any]
    known: Tensor | None = None

    def described(self, tasks: Episodes) -> dict[str, Any]:
        """What `weights` is told of tasks beside their support."""
        return (
            self.told if self.known is None else {**self.told, "names": self.known[tasks.classes]}
        )


def _photos(
    gen: ImageGenerator,
    place: str,
    way: int,
    shot: int,
    unlabelled: str | None,
    named: bool,
    seed: int,
) -> _Photos:
    t = gen.transform
    images = folder.load(place, size=t.size, channels=t.channels, min_per_class=shot + 1)
    # Episodes that cannot be drawn are refused before features take their time.
    sample_episodes(images.offsets, way=way, shot=shot, query=1, episodes=1, seed=seed)
    if isinstance(gen, DomainHeadGenerator) and unlabelled is None:
        _check_left(images.counts, shot, place)
    with bars(ERR) as progress:
        bank = gen.bank(images, progress=lambda i, n: progress("features", i, n, ""))
    if not isinstance(gen, DomainHeadGenerator):
        return _Photos(images.name, bank, {})
    if unlabelled is None:
        split = split_domain(images.name, bank, share=_ASIDE, seed=seed)
        bank, pool = split.bank, split.pool
    else:
        raw = folder.load_unlabelled(unlabelled, size=t.size, channels=t.channels)
        pool = gen.embed(raw)
    known = gen.anchor.numbers(images.classes) if named else None
    return _Photos(images.name, bank, {"pool": pool}, known)


def _check_left(counts: Tensor, shot: int, where: str) -> None:
    """Refuse classes [C] of too few images for a query once a share is set aside."""
    fewest = int(counts.min())
    left = fewest - int(_ASIDE * fewest)
    if left <= shot:
        raise InputError(
            f"the smallest class has {fewest} images; without the third that is set aside as "
            f"unlabelled {left} are left, and {shot} shots leave none of them for a query",
            where=where,
            fix="give images without labels with --unlabelled, lower --shot, or add images",
        )


def _on_episodes(
    gen: ImageGenerator,
    photos: _Photos,
    tasks: Episodes,
    options: dict[str, Any],
    seed: int,
    beside: list[str],
) -> Result:
    """The generator, its anchor where that is a head, and peers on the same episodes."""
    bank, query = photos.bank, tasks.query.shape[2]

    def ours(part: Episodes, **changed: Any) -> Tensor:
        s, q = bank.features[part.support], bank.features[part.query]
        told = {**photos.described(part), **options, **changed}
        return gen.query_logits(gen.weights(s, seed=seed, **told), q)

    methods: dict[str, tuple[str, Callable[[Episodes], Tensor]]] = {"lt-di": ("ours", ours)}
    if isinstance(gen, LinearHeads):
        methods["anchor"] = ("control", partial(ours, strength=0.0, steps=1, temperature=0.0))
    seen = replace(bank, features=gen.features(bank.features[:, None, None])[:, 0, 0])
    rows: list[Row] = []
    scores: dict[str, Scores] = {}
    seconds: dict[str, float] = {}
    with bars(ERR) as progress:
        for name in beside:
            peer = PEERS[name]()
            start = time.perf_counter()
            progress("peers", len(seconds), len(beside), f"tuning {name}")
            # Not the episodes that are measured, but their classes.
            budget = Budget(0, tasks.way, tasks.shot, query, valid_episodes=100, seed=seed + 1)
            peer.fit(Banks(seen, seen), budget)
            seconds[name] = time.perf_counter() - start
            methods[name] = ("peer", on_bank(peer.predict, seen))
        progress("peers", len(beside), len(beside), "")
        for number, (name, (kind, predict)) in enumerate(methods.items()):
            progress("episodes", number, len(methods), name)
            scores[name] = score_tasks(predict, tasks)
            ms, tuned = latency_ms(predict, tasks), seconds.get(name, 0.0)
            rows.append(scored(name, kind, scores[name], latency_ms=ms, train_s=tuned))
        progress("episodes", len(methods), len(methods), "")
    settings = {
        "way": tasks.way,
        "shot": tasks.shot,
        "query": query,
        "classes": len(bank.classes),
        "generator": gen.revision,
        "sampling": asdict(gen.sampling(**options)),
        "paired": leads(scores),
        "nll": nll_of(scores),
        "ece": {name: round(s.ece, 5) for name, s in scores.items()},
    }
    return Result("evaluate", photos.name, "none", seed, settings, rows)
