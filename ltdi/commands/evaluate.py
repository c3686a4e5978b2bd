"""`ltdi evaluate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.backbone import Backbone
from ltdi.commands.adapters import evaluate_adapter
from ltdi.commands.common import ERR, OUT, check_domain, check_target, needed
from ltdi.crossdomain import split_domain
from ltdi.data import folder
from ltdi.data.text import Columns
from ltdi.errors import InputError, MismatchError
from ltdi.evaluate import latency_ms, score_tasks
from ltdi.files import claim_file
from ltdi.generator import (
    AdapterGenerator,
    DomainHeadGenerator,
    Generator,
    HeadGenerator,
    ImageGenerator,
)
from ltdi.progress import bars
from ltdi.report.table import Result, show
from ltdi.tasks import Episodes, FeatureBank
from ltdi.tracks.episodes import check_counts
from ltdi.tracks.measured import leads, scored
from ltdi.weights import head_space, prototype_head, query_logits


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
        data_dir: Folder or zip of <class>/<image>; the classes need not be known to anyone. For
            adapters: where GLUE lies, if the task is one of it.
        way: Classes per episode.
        shot: Support images per class.
        query: Query images per class; lowered, with a note, where a class has too few images.
        episodes: Number of episodes.
        steps: Denoising steps; the generator's own number by default.
        temperature: Scale of the noise.
        samples: Weights drawn and averaged.
        seed: Of the episodes and the noise.
        json: File for the result.
        backbone: A saved backbone that must be the generator's own; a check for scripts.
        unlabelled: Folder or zip of images of the same domain, in any folders, for a generator that
            reads a domain; a third of the images, without their labels, by default.
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
        place = needed(data_dir, "--data-dir", "a folder or zip of <class>/<image>")
        if backbone is not None:
            _check_backbone(gen, Path(backbone))
        check_domain(gen, unlabelled=unlabelled, names=names)
        photos = _photos(gen, place, shot, unlabelled, names is not False, seed)
        shape = _Shape(way, shot, _room(photos.bank, shot, query), episodes)
        result = _on_episodes(gen, photos, shape, options, seed)
    else:
        raise InputError(
            f"this generator ({gen.kind}) does not go by labelled samples, and only those that do "
            "are measured here",
            where="--generator",
            fix="see `ltdi bench` for measures of its kind",
        )
    show(result, OUT)
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
    gen: ImageGenerator, place: str, shot: int, unlabelled: str | None, named: bool, seed: int
) -> _Photos:
    t = gen.transform
    images = folder.load(place, size=t.size, channels=t.channels, min_per_class=shot + 1)
    with bars(ERR) as progress:
        bank = gen.bank(images, progress=lambda i, n: progress("features", i, n, ""))
    if not isinstance(gen, DomainHeadGenerator):
        return _Photos(images.name, bank, {})
    if unlabelled is None:
        split = split_domain(images.name, bank, share=1 / 3, seed=seed)
        bank, pool = split.bank, split.pool
    else:
        raw = folder.load_unlabelled(unlabelled, size=t.size, channels=t.channels)
        pool = gen.embed(raw)
    known = gen.anchor.numbers(images.classes) if named else None
    return _Photos(images.name, bank, {"pool": pool}, known)


def _room(bank: FeatureBank, shot: int, query: int) -> int:
    """Query images per class that the smallest class has beside its support."""
    room = int(bank.offsets.diff().min()) - shot
    if room < query:
        ERR.print(f"note: the smallest class leaves {room} query images, not {query}")
    return min(room, query)


@dataclass(frozen=True)
class _Shape:
    """Of the test episodes."""

    way: int
    shot: int
    query: int
    episodes: int


def _on_episodes(
    gen: ImageGenerator, photos: _Photos, shape: _Shape, options: dict[str, Any], seed: int
) -> Result:
    """The generator beside plain class means on the same episodes."""
    bank = photos.bank
    tasks = bank.episodes(**asdict(shape), seed=seed)

    def ours(part: Episodes) -> Tensor:
        s, q = bank.features[part.support], bank.features[part.query]
        return gen.query_logits(gen.weights(s, seed=seed, **photos.described(part), **options), q)

    def prototypes(part: Episodes) -> Tensor:
        x = gen.features(bank.features[part.support])
        y = gen.features(bank.features[part.query])
        head = prototype_head(x.mean(2), 1.0)
        return query_logits(head_space(x.shape[-1], x.shape[1]).flatten(head), y)

    rows, scores = [], {}
    for name, kind, predict in (("lt-di", "ours", ours), ("protonet", "peer", prototypes)):
        scores[name] = score_tasks(predict, tasks)
        rows.append(scored(name, kind, scores[name], latency_ms=latency_ms(predict, tasks)))
    settings = {
        "way": shape.way,
        "shot": shape.shot,
        "query": shape.query,
        "classes": len(bank.classes),
        "generator": gen.revision,
        "sampling": asdict(gen.sampling(**options)),
        "paired": leads(scores),
        "nll": float(scores["lt-di"].nll.mean()),
        "ece": scores["lt-di"].ece,
    }
    return Result("evaluate", photos.name, "none", seed, settings, rows)
