"""Exact training checkpoints: one safetensors file with everything that a step depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import DamagedFileError, MismatchError
from ltdi.files import read_metadata, read_tensors, write_tensors

NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """State of a training run after `step` iterations.

    Attributes:
        step: Finished iterations.
        groups: Named tensors by group, such as "model", "ema" and "optimiser".
        rng: State of the run's random generator.
        run: What the run was started with; a resumed run must agree.
    """

    step: int
    groups: dict[str, dict[str, Tensor]]
    rng: Tensor
    run: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one before it stays as `<name>.previous` until it is complete."""
    tensors = {f"{g}/{n}": t for g, ts in checkpoint.groups.items() for n, t in ts.items()}
    tensors["rng"] = checkpoint.rng
    if path.exists():
        path.replace(previous(path))
    meta = {"step": str(checkpoint.step), "run": json.dumps(checkpoint.run, sort_keys=True)}
    write_tensors(path, tensors, meta)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> tuple[Checkpoint | None, str]:
    """The newest readable checkpoint, or None where there is none.

    Returns:
        The checkpoint and a message, empty unless a damaged file was passed over; that file is
        put aside as `<name>.damaged`.

    Raises:
        DamagedFileError: If neither the last nor the previous checkpoint can be read.
        MismatchError: If the checkpoint belongs to a run with other settings.
    """
    message = ""
    damage: DamagedFileError | None = None
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            found = _read(candidate)
        except DamagedFileError as error:
            damage = error
            message = f"{candidate.name} is damaged; going on from the checkpoint before it"
            continue
        _check(found.run, run, candidate)
        if damage is not None:
            # The next save must not put the damaged file in the place of the good one.
            path.replace(path.with_name(path.name + ".damaged"))
        return found, message
    if damage is not None:
        raise damage
    return None, ""


def previous(path: Path) -> Path:
    """Name of the checkpoint before the last."""
    return path.with_name(path.name + ".previous")


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of a torch optimiser as flat named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        f"{i}.{k}": torch.as_tensor(v, dtype=None if torch.is_tensor(v) else torch.float32)
        for i, values in state.items()
        for k, v in values.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    whole = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    whole["state"] = state
    optimiser.load_state_dict(whole)


def _read(path: Path) -> Checkpoint:
    tensors, meta = read_tensors(path), read_metadata(path)
    rng = tensors.pop("rng", None)
    if rng is None or "step" not in meta or "run" not in meta:
        raise DamagedFileError(
            f"{path.name} is not a checkpoint of this library",
            where=str(path),
            fix="remove it, and training begins anew; or choose another directory",
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    return Checkpoint(int(meta["step"]), groups, rng, json.loads(meta["run"]))


def _check(found: Mapping[str, Any], run: Mapping[str, Any], path: Path) -> None:
    wanted = json.loads(json.dumps(run, sort_keys=True))
    differing = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    if differing:
        first = differing[0]
        raise MismatchError(
            f"the checkpoint was made with other settings: {first} was {found.get(first)!r}, "
            f"now {wanted.get(first)!r}",
            where=str(path),
            fix="resume with the same settings, or start in a new directory",
        )
