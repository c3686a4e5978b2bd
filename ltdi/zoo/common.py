"""What all tasks of a zoo have in common: header, shared tensors, and what lies beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.anchor.frame import Frame
from ltdi.errors import MismatchError
from ltdi.files import locked, read_tensors, write_tensors
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace
from ltdi.zoo.header import HEADER, read_header, write_header
from ltdi.zoo.remote import Remote

BANK = "bank.safetensors"
FRAMES = "frames.safetensors"
LOCK = ".lock"


class Common:
    """A zoo's directory without its shards; `remote` has the files that it lacks."""

    def __init__(self, path: Path, header: dict[str, Any], remote: Remote | None = None) -> None:
        self.path, self.header, self.remote = path, header, remote

    @property
    def space(self) -> WeightSpace:
        """Weight space of the tasks, at the way it was created with."""
        return WeightSpace.from_dict(self.header["space"])

    def space_of(self, setting: Mapping[str, Any]) -> WeightSpace:
        """Weight space of the tasks of one setting, which may give the way."""
        return self.space.with_way(int(setting["way"])) if "way" in setting else self.space

    @property
    def about(self) -> dict[str, Any]:
        """Settings, seeds and versions."""
        return dict(self.header["about"])

    def keep(self, name: str, tensors: Mapping[str, Tensor], note: Any = None) -> dict[str, Tensor]:
        """Store what all tasks share, once, or read what is there already.

        Args:
            name: Such as "start"; the file is `<name>.safetensors`.
            tensors: What is to be stored.
            note: JSON-able; see `note`.

        Returns:
            What was stored first.
        """
        with locked(self.path / LOCK):
            self.header = read_header(self.path / HEADER)
            file = self.path / f"{name}.safetensors"
            if name not in self.header["shared"] or not file.is_file():
                mark = write_tensors(file, tensors)
                self.header["shared"][name] = {"digest": mark, "note": note}
                self._write_header()
        return self.shared(name)

    def shared(self, name: str) -> dict[str, Tensor]:
        """What `keep` stored.

        Raises:
            InputError: If the file is missing.
            DamagedFileError: If it is truncated or altered.
        """
        known = self.header["shared"].get(name, {})
        return read_tensors(self.file(f"{name}.safetensors"), expected=known.get("digest"))

    def note(self, name: str) -> Any:
        """The note that `keep` stored, or None."""
        return self.header["shared"].get(name, {}).get("note")

    def file(self, name: str) -> Path:
        """A file or folder beside the shards, fetched where the zoo is remote."""
        if self.remote:
            self.remote.fetch(name)
        return self.path / name

    def keep_bank(self, bank: FeatureBank) -> None:
        """Store the features that tasks refer to by number, or check that they are these.

        Raises:
            MismatchError: If the zoo was made from others.
        """
        held = self.keep(
            "bank",
            {"features": bank.features, "offsets": bank.offsets},
            {"classes": list(bank.classes)},
        )
        # Not bit by bit: another number of threads rounds differently.
        near = held["features"].shape == bank.features.shape and torch.allclose(
            held["features"], bank.features, rtol=0.02, atol=0.05 * float(bank.features.std())
        )
        named = self.note("bank")["classes"] == list(bank.classes)
        if not (named and near and torch.equal(held["offsets"], bank.offsets)):
            raise MismatchError(
                "the zoo was made from other images: its feature bank is not the one given",
                where=str(self.path / BANK),
                fix="collect from the same data, or into a new directory",
            )

    def bank(self) -> FeatureBank:
        """The features that the tasks refer to."""
        held = self.shared("bank")
        return FeatureBank(held["features"], held["offsets"], tuple(self.note("bank")["classes"]))

    def keep_frames(self, frames: list[Frame], held: list[list[int]] | None = None) -> list[Frame]:
        """Store the frames of the tasks to come, or read those that are there already.

        Args:
            frames: In the order of the numbers that tasks have.
            held: The classes of every frame's tasks.
        """
        names = ("mean", "basis", "between")
        stacked = {n: torch.stack([getattr(f, n) for f in frames]) for n in names}
        return _frames(self.keep("frames", stacked, {"held": held or self.held}))

    def frames(self) -> list[Frame]:
        """By the numbers that tasks have; see `shared` for the errors."""
        return _frames(self.shared("frames"))

    @property
    def held(self) -> list[list[int]]:
        """The classes of every frame's tasks; empty before `keep_frames`."""
        return list((self.note("frames") or {}).get("held", []))

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

    def _write_header(self) -> None:
        write_header(self.path / HEADER, self.header)


def _frames(stacked: Mapping[str, Tensor]) -> list[Frame]:
    rows = zip(stacked["mean"], stacked["basis"], stacked["between"], strict=True)
    return [Frame(*row) for row in rows]


def _describe(space: WeightSpace) -> str:
    return ", ".join(f"{p.name}{list(p.shape)}" for p in space.params[:4])
