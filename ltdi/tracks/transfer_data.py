"""The data of the transfer track: source classes, and targets as pools and test images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from ltdi.lora.names import NameEncoder
from ltdi.progress import Progress
from ltdi.tasks import FeatureBank
from ltdi.unseen import NamedBank, TaskBatch, sample_tasks

# Images of every source class that no method is fitted on.
_HELD_IMAGES = 4


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
class TransferData:
    """All that a run reads.

    Attributes:
        backbone: The frozen feature extractor, with what is done to its features.
        valid: Source classes held out.
        held: Images of `train`'s classes that no method is fitted on.
        about: What was read; JSON-able.
    """

    backbone: Backbone
    encoder: NameEncoder
    train: NamedBank
    valid: NamedBank
    held: NamedBank
    scenes: list[Scene]
    about: dict[str, Any]


def load(
    data_dir: str | None,
    wanted: Sequence[str],
    *,
    encoder: str,
    revision: str | None,
    backbone: str,
    side: int | None,
    pool: int,
    cache: str | None,
    seed: int,
    progress: Progress,
) -> TransferData:
    """Read source and targets, and embed them; the arguments are those of `bench`."""
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
        net = pretrained_backbone(backbone, size=side)
        names = NameEncoder(encoder, revision)
        facts = target_names()
    embed = _Embed(net, None if cache is None else Path(cache), progress)
    removed: dict[str, dict[str, str]] = {}
    parts = []
    for number, source in enumerate(sources):
        equal = find_equal(source.names, facts)
        removed[source.name] = {r.source: f"{r.dataset}: {r.target}" for r in equal.values()}
        keep = [i for i in range(len(source.names)) if i not in equal]
        kept = source.select(keep)
        origin = torch.full((len(keep),), number)
        parts.append(NamedBank(embed.named(kept), kept.names, names(kept.names), origin))
    whole, valid, map = _prepare(NamedBank.joined(parts), seed)
    train, held = _hold_images(whole, _HELD_IMAGES)
    scenes = [_scene(t, embed, names, map, pool, seed) for t in targets]
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
        "side": net.transform.size,
        "features_s": round(time.perf_counter() - start, 2),
        "threads": torch.get_num_threads(),
    }
    return TransferData(net.mapped(map), names, train, valid, held, scenes, about)


class _Embed:
    """Features of image sets, kept where there is a cache."""

    def __init__(self, backbone: Backbone, cache: Path | None, progress: Progress) -> None:
        self.backbone, self.cache, self.progress = backbone, cache, progress

    def bank(self, images: Any) -> FeatureBank:
        def step(i: int, n: int) -> None:
            self.progress("features", i, n, images.name)

        return cached_bank(self.backbone, images, self.cache, progress=step)

    def named(self, source: NamedSet) -> FeatureBank:
        """All parts of a set, joined class by class."""
        banks = [self.bank(part) for part in source.parts]
        groups = [
            torch.cat(of_class) for of_class in zip(*(b.groups() for b in banks), strict=True)
        ]
        return FeatureBank.by_class(groups, [f"{source.name}/{c}" for c in banks[0].classes])


def _hold_images(source: NamedBank, count: int) -> tuple[NamedBank, NamedBank]:
    """The last `count` images of every class apart, for the generalised setting alone."""
    groups, classes = source.bank.groups(), source.bank.classes
    rest = FeatureBank.by_class([g[:-count] for g in groups], classes)
    last = FeatureBank.by_class([g[-count:] for g in groups], classes)
    return replace(source, bank=rest), replace(source, bank=last)


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
    label = held.bank.labels
    rng = torch.Generator().manual_seed(seed + 99_000)
    pick = torch.randperm(len(label), generator=rng)[: pool * len(target.names)]
    images = held.bank.features[pick].unsqueeze(0)
    batch = TaskBatch(text.unsqueeze(0), images, torch.ones(images.shape[:2]), images[:, None, :0])
    answers = test.bank.labels
    return Scene(target.name, batch, label[pick], test.bank.features, answers, held, test)


@dataclass(frozen=True)
class SubTasks:
    """Sub-tasks of one target: the batch, [E, n] labels of its pool, and [E, P, D] test images."""

    batch: TaskBatch
    labels: Tensor
    images: Tensor
    answers: Tensor


def subtasks_of(scene: Scene, tasks: int, seed: int) -> SubTasks:
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
    return SubTasks(batch, labels[rows, order], queries.flatten(1, 2), answers)
