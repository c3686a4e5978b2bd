"""Scores of transfer: all classes of a target, sub-tasks, and source classes among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltdi.baselines.unseen.method import Coordinates
from ltdi.evaluate import across, median_ms, summarise
from ltdi.memory import peak_mb
from ltdi.progress import Progress
from ltdi.report.table import Row
from ltdi.tracks.transfer_data import Scene, SubTasks
from ltdi.unseen import NamedBank, TaskBatch

# (tasks, labels of their pools, images) -> logits; only the ceiling looks at the labels.
Predict = Callable[[TaskBatch, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Gate:
    """Whether an image is of a source class, for the generalised setting.

    It is shared by all methods: an image further from every source class mean (in whitened
    coordinates) than a threshold is taken to be of the target.

    Attributes:
        coordinates: Of the source classes.
        threshold: Squared distance, chosen on validation classes.
        seen: [S] whether a source image that no method was fitted on is taken for one of the
            source, and given its own class.
    """

    coordinates: Coordinates
    threshold: float
    seen: Tensor

    @classmethod
    def fit(cls, train: NamedBank, held: NamedBank, valid: Sequence[TaskBatch]) -> Gate:
        """Choose the threshold with the best harmonic mean on validation images.

        Args:
            train: Source classes.
            held: Images of the same classes that no method is fitted on; half of them choose, the
                other half are measured on.
            valid: Tasks of other classes.
        """
        coordinates = Coordinates.fit(train, whiten=True)
        near, right = cls._nearest(coordinates, held.bank.features)
        right = right == held.bank.labels
        other = torch.cat([b.query.flatten(0, 2) for b in valid])
        far, _ = cls._nearest(coordinates, other)
        choose = torch.arange(len(near)) % 2 == 0

        def score(threshold: float) -> float:
            s = float(((near < threshold) & right)[choose].double().mean())
            u = float((far >= threshold).double().mean())
            return 2 * s * u / max(1e-9, s + u)

        grid = torch.cat([near, far]).quantile(torch.linspace(0.02, 0.98, 49)).tolist()
        best = max(grid, key=score)
        return cls(coordinates, best, ((near < best) & right)[~choose])

    @staticmethod
    def _nearest(coordinates: Coordinates, images: Tensor) -> tuple[Tensor, Tensor]:
        z = coordinates.frame.enter(images)
        distance = torch.cdist(z, coordinates.means).square().min(-1)
        return distance.values, distance.indices

    def passes(self, images: Tensor) -> Tensor:
        """[P] whether images [P, D] are taken to be of the target."""
        return self._nearest(self.coordinates, images)[0] >= self.threshold

    def harmonic(self, right: Tensor, passed: Tensor, seed: int) -> tuple[float, float]:
        """Harmonic mean of both accuracies, and its 95 % interval by bootstrap over images.

        Args:
            right: [P] whether a target image is given its own class among those of the target.
            passed: [P] whether the gate takes it for one of the target.
            seed: Of the bootstrap.
        """
        rng = torch.Generator().manual_seed(seed)
        u, s = (right.bool() & passed).double(), self.seen.double()

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return 2 * a * b / (a + b).clamp(min=1e-9)

        draws = [x[torch.randint(len(x), (300, len(x)), generator=rng)].mean(1) for x in (u, s)]
        return float(mean(u.mean(), s.mean())), 1.96 * float(mean(*draws).std())


_SUFFIXES = {"": "accuracy", "/5-way": "accuracy", "/generalised": "harmonic mean"}


def measure(
    name: str,
    kind: str,
    predict: Predict,
    scenes: Sequence[Scene],
    runs: Sequence[SubTasks],
    gate: Gate,
    seconds: tuple[float, float],
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Tensor], list[Row]]:
    """Rows of one method, and its score on every test image and every sub-task.

    Seconds are those of weight preparation and of training; the seed is that of the bootstrap.
    """
    scores: dict[str, Tensor] = {}
    found: dict[str, list[tuple[float, float]]] = {suffix: [] for suffix in _SUFFIXES}
    rows: list[Row] = []
    with torch.no_grad():
        latency = _latency(predict, scenes)

        def add(where: str, suffix: str, value: float, ci: float, episodes: int) -> None:
            metric, cost = _SUFFIXES[suffix], (latency, *seconds, peak_mb())
            rows.append(Row(name, kind, metric, value, ci, episodes, *cost, where + suffix))

        for number, (scene, run) in enumerate(zip(scenes, runs, strict=True)):
            progress(name, number, len(scenes), scene.name)
            logits = predict(scene.batch, scene.labels.unsqueeze(0), scene.test.unsqueeze(0))
            right = (logits.squeeze(0).argmax(-1) == scene.answers).double()
            each = torch.cat(
                [_right(predict, run, slice(i, i + 50)) for i in range(0, len(run.batch), 50)]
            )
            scores[scene.name], scores[f"{scene.name}/5-way"] = right, each
            passed = gate.passes(scene.test)
            for suffix, (value, ci), episodes in (
                ("", _interval(right), 1),
                ("/5-way", _interval(each), len(each)),
                ("/generalised", gate.harmonic(right, passed, seed), 1),
            ):
                found[suffix].append((value, ci))
                add(scene.name, suffix, value, ci, episodes)
    for suffix, values in found.items():
        if values:
            add("mean", suffix, *across(values), len(runs[0].batch) if suffix == "/5-way" else 1)
    return scores, rows


def _interval(values: Tensor) -> tuple[float, float]:
    s = summarise(values)
    return s.mean, s.ci95


def _right(predict: Predict, run: SubTasks, which: slice) -> Tensor:
    """Accuracy of every sub-task of a slice."""
    logits = predict(run.batch[which], run.labels[which], run.images[which])
    return (logits.argmax(-1) == run.answers).double().mean(-1)


def _latency(predict: Predict, scenes: Sequence[Scene]) -> float:
    """Median milliseconds for the head of the first target (of 10 classes, where one has them)."""
    ten = [s for s in scenes if s.batch.way == 10] or list(scenes)
    if not ten:
        return 0.0
    scene = ten[0]
    call = partial(predict, scene.batch, scene.labels.unsqueeze(0), scene.test[:1].unsqueeze(0))
    return median_ms([call] * 15)


def paired(scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """lt-di minus every other method, on the same images and sub-tasks, by target and over all."""
    if "lt-di" not in scores:
        return {}
    ours = scores["lt-di"]
    out: dict[str, dict[str, Any]] = {}
    for name, theirs in scores.items():
        if name == "lt-di" or not theirs:
            continue
        groups: dict[str, list[tuple[float, float]]] = {}
        for target, values in ours.items():
            found = _interval(values - theirs[target])
            groups.setdefault("mean" + target[len(target.partition("/")[0]) :], []).append(found)
            out.setdefault(target, {})[name] = _pair(*found)
        for target, pairs in groups.items():
            out.setdefault(target, {})[name] = _pair(*across(pairs))
    return out


def _pair(mean: float, ci: float) -> dict[str, float]:
    return {"mean": round(mean, 5), "ci95": round(ci, 5)}
