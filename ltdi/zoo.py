"""A zoo: solved tasks on disk (design section 4).

A directory with `zoo.json`, a bank of features, and append-only shards in safetensors. A shard
holds tasks of one way and shot: local targets, anchors, and which items of the bank were support
and query. Every file is written under a temporary name and renamed, and `zoo.json` lists a shard
only when it is complete, so that killing the collector loses at most the shard in flight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.files import own_directory, read_json, read_tensors, write_json, write_tensors
from ltdi.frame import Frame
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace

SCHEMA = 2
INDEX = "zoo.json"
FRAMES = "frames.safetensors"
BANK = "bank.safetensors"


@dataclass(frozen=True)
class SolvedTasks:
    """E solved tasks of one way and shot.

    Attributes:
        theta: [E, k, n] local targets.
        anchor: [E, n] weights that the tasks started from.
        support: [E, way, shot] items of the bank.
        query: [E, way, query] items of the bank.
        frame: [E] number of the frame in whose coordinates theta and anchor are.
        loss: [E] final training loss.
        accuracy: [E] final training accuracy, a fraction.
    """

    theta: Tensor
    anchor: Tensor
    support: Tensor
    query: Tensor
    frame: Tensor
    loss: Tensor
    accuracy: Tensor

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def way(self) -> int:
        """Classes per task."""
        return self.support.shape[1]

    @property
    def shot(self) -> int:
        """Support items per class."""
        return self.support.shape[2]

    def keep(self, which: Tensor) -> SolvedTasks:
        """The tasks where `which` [E] is true."""
        return SolvedTasks(**{name: value[which] for name, value in vars(self).items()})

    @classmethod
    def concat(cls, parts: list[SolvedTasks]) -> SolvedTasks:
        """One set from several of the same way and shot."""
        return cls(**{name: torch.cat([vars(p)[name] for p in parts]) for name in vars(parts[0])})


class Zoo:
    """A zoo directory.

    Args:
        path: Directory.
        index: Content of `zoo.json`.
    """

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path, self.index = path, index

    @classmethod
    def create(
        cls, path: Path | str, space: WeightSpace, bank: FeatureBank, about: Mapping[str, Any]
    ) -> Zoo:
        """Start a zoo, or take up one that was started with the same settings.

        Args:
            path: Directory; new, empty, or a zoo of ours.
            space: Weight space of the tasks (at any way).
            bank: Features of the training classes.
            about: Settings, seeds and versions; JSON-able.

        Raises:
            InputError: If the directory holds something else.
            MismatchError: If it is a zoo with other settings or of other features.
        """
        path = own_directory(path, "zoo")
        if (path / INDEX).exists():
            zoo = cls.open(path)
            zoo.check(space)
            for key, value in about.items():
                if zoo.index["about"].get(key) != value:
                    raise MismatchError(
                        f"the zoo was made with {key} = {zoo.index['about'].get(key)!r}, "
                        f"now {value!r}",
                        where=str(path),
                        fix="collect with the same settings, or into a new directory",
                    )
            zoo._check_bank(bank)
            return zoo
        mark = _write_bank(path, bank)
        index = {
            "schema": SCHEMA,
            "space": space.to_dict(),
            "about": dict(about),
            "classes": list(bank.classes),
            "bank": mark,
            "shards": [],
        }
        zoo = cls(path, index)
        zoo._write_index()
        return zoo

    @classmethod
    def open(cls, path: Path | str) -> Zoo:
        """Open a zoo for reading.

        Raises:
            InputError: If it is not a zoo.
            DamagedFileError: If its index is truncated or altered.
            MismatchError: If it has another schema.
        """
        path = Path(path)
        if not (path / INDEX).is_file():
            raise InputError(
                f"{path} is not a zoo: it has no {INDEX}",
                where="--zoo",
                fix="make one with `ltdi collect --out DIR`",
            )
        index = read_json(path / INDEX)
        found = set(index) if isinstance(index, dict) else set()
        missing = {"schema", "space", "about", "classes", "bank", "shards"} - found
        if missing:
            raise DamagedFileError(
                f"{INDEX} lacks {', '.join(sorted(missing))}",
                where=str(path / INDEX),
                fix="restore the file from a copy, or collect into a new directory",
            )
        if index["schema"] != SCHEMA:
            raise MismatchError(
                f"the zoo has schema {index['schema']}, this version reads {SCHEMA}",
                where=str(path / INDEX),
                fix="collect the zoo anew with this version",
            )
        if index.pop("digest", "") != _checksum(index):
            raise DamagedFileError(
                f"{INDEX} does not match its checksum: it was truncated or altered",
                where=str(path / INDEX),
                fix="restore the file from a copy, or collect into a new directory",
            )
        return cls(path, index)

    @property
    def space(self) -> WeightSpace:
        """Weight space of the tasks, at the way it was created with."""
        return WeightSpace.from_dict(self.index["space"])

    @property
    def about(self) -> dict[str, Any]:
        """Settings, seeds and versions."""
        return dict(self.index["about"])

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Name, digest, way, shot, tasks and dropped tasks of every finished shard."""
        return list(self.index["shards"])

    def bank(self) -> FeatureBank:
        """The features that the tasks refer to."""
        data = read_tensors(self.path / BANK, expected=self.index["bank"])
        return FeatureBank(data["features"], data["offsets"], tuple(self.index["classes"]))

    def append(self, name: str, tasks: SolvedTasks, finite: Tensor) -> dict[str, Any]:
        """Write one shard; tasks that are not finite are dropped and counted.

        Args:
            name: Name of the shard, unique in the zoo.
            tasks: Solved tasks of one way and shot.
            finite: [E] which of them are sound.

        Returns:
            The shard's entry in the index.
        """
        kept = tasks.keep(finite)
        self.check(self.space.with_way(tasks.way))
        path = self.path / f"{name}.safetensors"
        tensors = dict(vars(kept))
        tensors["support"], tensors["query"] = kept.support.int(), kept.query.int()
        entry = {
            "name": name,
            "digest": write_tensors(path, tensors),
            "way": tasks.way,
            "shot": tasks.shot,
            "tasks": len(kept),
            "dropped": len(tasks) - len(kept),
            "loss": round(float(kept.loss.mean()), 6) if len(kept) else None,
            "accuracy": round(float(kept.accuracy.mean()), 6) if len(kept) else None,
        }
        others = [s for s in self.index["shards"] if s["name"] != name]
        # In order of names: a shard made anew takes its old place.
        self.index["shards"] = sorted([*others, entry], key=lambda s: str(s["name"]))
        self._write_index()
        return entry

    def has(self, name: str) -> bool:
        """Whether a shard is finished and still there."""
        listed = any(s["name"] == name for s in self.index["shards"])
        return listed and (self.path / f"{name}.safetensors").is_file()

    def load(self) -> list[SolvedTasks]:
        """All tasks, one set per combination of way, shot and frame.

        Raises:
            InputError: If the zoo has no task.
            DamagedFileError: If a shard is truncated or altered; the others are left alone.
        """
        groups: dict[tuple[int, int, int], list[SolvedTasks]] = {}
        for shard in self.index["shards"]:
            path = self.path / f"{shard['name']}.safetensors"
            if not path.is_file():
                raise DamagedFileError(
                    f"shard {path.name} is listed in {INDEX} but missing",
                    where=str(path),
                    fix="collect again with the same settings: only this shard is made anew",
                )
            try:
                data = read_tensors(path, expected=shard["digest"])
            except DamagedFileError as error:
                raise DamagedFileError(
                    error.what,
                    where=str(path),
                    fix="delete this shard and collect again with the same settings: only it is "
                    "made anew",
                ) from None
            for name in ("support", "query", "frame"):
                data[name] = data[name].long()
            tasks = SolvedTasks(**data)
            if len(tasks):
                key = (tasks.way, tasks.shot, int(tasks.frame[0]))
                groups.setdefault(key, []).append(tasks)
        if not groups:
            raise InputError(
                "the zoo holds no solved task", where=str(self.path), fix="run `ltdi collect`"
            )
        return [SolvedTasks.concat(parts) for _, parts in sorted(groups.items())]

    @property
    def held(self) -> list[list[int]]:
        """The classes of every frame's tasks; empty before `keep_frames`."""
        return list(self.index.get("held", []))

    def keep_frames(self, frames: list[Frame], held: list[list[int]] | None = None) -> list[Frame]:
        """Store the frames of the tasks to come, or read those that are there already.

        Args:
            frames: In the order of `SolvedTasks.frame`.
            held: The classes of every frame's tasks.
        """
        if not (self.path / FRAMES).is_file():
            names = ("mean", "basis", "between")
            stacked = {n: torch.stack([getattr(f, n) for f in frames]) for n in names}
            self.index["frames"] = write_tensors(self.path / FRAMES, stacked)
            self.index["held"] = held or []
            self._write_index()
        return self.frames()

    def frames(self) -> list[Frame]:
        """The frames that `SolvedTasks.frame` counts.

        Raises:
            InputError: If the file is missing.
            DamagedFileError: If it is truncated or altered.
        """
        t = read_tensors(self.path / FRAMES, expected=self.index.get("frames"))
        rows = zip(t["mean"], t["basis"], t["between"], strict=True)
        return [Frame(*row) for row in rows]

    def check(self, space: WeightSpace) -> None:
        """Refuse another weight space.

        Raises:
            MismatchError: If names, shapes or tokens differ; the way may.
        """
        if space.fingerprint != self.space.fingerprint:
            raise MismatchError(
                f"the zoo holds {_describe(self.space)}, not {_describe(space)}",
                where=str(self.path),
                fix="use the zoo with the backbone and weight space that it was collected for",
            )

    def _write_index(self) -> None:
        write_json(self.path / INDEX, {**self.index, "digest": _checksum(self.index)})

    def _check_bank(self, bank: FeatureBank) -> None:
        """Refuse other features: tasks name items of the bank by number. Restores a lost bank."""
        known = self.index["classes"] == list(bank.classes)
        if known and not (self.path / BANK).is_file():
            self.index["bank"] = _write_bank(self.path, bank)
            self._write_index()
            return
        held = self.bank() if known else bank
        # Not bit by bit: another number of threads rounds differently.
        near = held.features.shape == bank.features.shape and torch.allclose(
            held.features, bank.features, rtol=0.02, atol=0.05 * float(bank.features.std())
        )
        if not (known and near and torch.equal(held.offsets, bank.offsets)):
            raise MismatchError(
                "the zoo was made from other images: its feature bank is not the one given",
                where=str(self.path / BANK),
                fix="collect from the same data, or into a new directory",
            )


def _checksum(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:32]


def _write_bank(path: Path, bank: FeatureBank) -> str:
    return write_tensors(path / BANK, {"features": bank.features, "offsets": bank.offsets})


def _describe(space: WeightSpace) -> str:
    return ", ".join(f"{p.name}{list(p.shape)}" for p in space.params[:4])
