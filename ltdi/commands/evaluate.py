"""`ltdi evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ltdi.backbone import Backbone
from ltdi.commands.adapters import evaluate_adapter
from ltdi.commands.common import ERR, OUT, check_domain, check_target, needed
from ltdi.crossdomain import split_domain
from ltdi.data import folder
from ltdi.data.text import Columns
from ltdi.errors import MismatchError
from ltdi.evaluate import latency_of_tasks, paired, query_logits, score_tasks, summarise
from ltdi.files import (
    claim_file,
)
from ltdi.generator import (
    AdapterGenerator,
    DomainHeadGenerator,
    Generator,
    HeadGenerator,
    ImageGenerator,
)
from ltdi.memory import peak_mb
from ltdi.progress import bars
from ltdi.report.table import Result, Row, show
from ltdi.tasks import Episodes
from ltdi.tracks.episodes import check_counts
from ltdi.weights import head_space, prototype_head


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
    resolved: str = "",
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
        resolved: The command's options.
    """
    check_counts(shot=shot, query=query, episodes=episodes)
    file = claim_file(json, "result") if json else None
    loaded = Generator.from_pretrained(generator)
    check_target(loaded, target)
    given = {"steps": steps, "temperature": temperature, "samples": samples}
    options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if isinstance(loaded, AdapterGenerator):
        name = needed(task, "--task", "a GLUE task such as sst-2, or a file of labelled texts")
        result = evaluate_adapter(
            loaded, name, data_dir, columns, description, rows=support, seed=seed, options=options
        )
        show(result, OUT)
        if file:
            result.write_json(file)
        return
    assert isinstance(loaded, ImageGenerator)
    gen = loaded
    folder_dir = needed(data_dir, "--data-dir", "a folder or zip of <class>/<image>")
    if backbone is not None:
        if not isinstance(gen, HeadGenerator):
            raise MismatchError("a generator of whole nets has no backbone", where="--backbone")
        gen.check_backbone(Backbone.load(Path(backbone)))
    check_domain(gen, unlabelled=unlabelled, names=names)
    t = gen.transform
    images = folder.load(folder_dir, size=t.size, channels=t.channels, min_per_class=shot + 1)
    with bars(ERR) as progress:
        bank = gen.bank(images, progress=lambda i, n: progress("features", i, n, ""))
    told: dict[str, Any] = {}
    known: torch.Tensor | None = None
    if isinstance(gen, DomainHeadGenerator):
        if unlabelled is None:
            split = split_domain(images.name, bank, share=1 / 3, seed=seed)
            bank, told["pool"] = split.bank, split.pool
        else:
            pool = folder.load_unlabelled(unlabelled, size=t.size, channels=t.channels)
            told["pool"] = gen.embed(pool)
        if names is not False:
            known = gen.anchor.numbers(images.classes)
    room = int(bank.offsets.diff().min()) - shot
    if room < query:
        ERR.print(f"note: the smallest class leaves {room} query images, not {query}")
        query = room
    tasks = bank.episodes(way=way, shot=shot, query=query, episodes=episodes, seed=seed)

    def ours(part: Episodes) -> torch.Tensor:
        s, q = bank.features[part.support], bank.features[part.query]
        named = told if known is None else {**told, "names": known[part.classes]}
        return gen.query_logits(gen.weights(s, seed=seed, **named, **options), q)

    def prototypes(part: Episodes) -> torch.Tensor:
        x = gen.features(bank.features[part.support])
        y = gen.features(bank.features[part.query])
        head = prototype_head(x.mean(2), 1.0)
        return query_logits(head_space(x.shape[-1], x.shape[1]).flatten(head), y)

    rows, scores = [], {}
    for name, kind, predict in (("lt-di", "ours", ours), ("protonet", "peer", prototypes)):
        scores[name] = score_tasks(predict, tasks)
        summary = summarise(scores[name].accuracy)
        rows.append(
            Row(
                name,
                kind,
                "accuracy",
                summary.mean,
                summary.ci95,
                episodes,
                latency_of_tasks(predict, tasks),
                0.0,
                0.0,
                peak_mb(),
            )
        )
    difference = asdict(paired(scores["lt-di"].accuracy, scores["protonet"].accuracy))
    settings = {
        "way": way,
        "shot": shot,
        "query": query,
        "classes": len(images.classes),
        "generator": gen.revision,
        "sampling": asdict(gen.sampling(**options)),
        "paired": {"protonet": difference},
        "nll": float(scores["lt-di"].nll.mean()),
        "ece": scores["lt-di"].ece,
    }
    result = Result("evaluate", images.name, "none", seed, settings, rows)
    show(result, OUT)
    if file:
        result.write_json(file)
