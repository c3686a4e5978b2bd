"""Where meta-training computes: a device, and the processes that share the work.

Several processes are started by `accelerate launch` or `torchrun`; Accelerate (an extra) connects
them. Alone on a CPU, none of it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import InputError, unknown
from ltdi.optional import optional
from ltdi.products import fast_products
from ltdi.progress import Log

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")
TRACKERS = ("tensorboard", "trackio", "wandb")


class Team:
    """The processes that train together; one process on the CPU by default.

    Args:
        device: Of this process.
        precision: Type of the denoiser's products: "float32" or "bfloat16".
        accelerator: Accelerate's, where there are several processes.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        precision: str = "float32",
        accelerator: Any = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.precision, self.accelerator = precision, accelerator
        self.rank = int(accelerator.process_index) if accelerator else 0
        self.size = int(accelerator.num_processes) if accelerator else 1

    @classmethod
    def join(cls, device: str = "auto", precision: str = "auto") -> Team:
        """The team that this process was started in.

        Raises:
            InputError: If there is no such device, or Accelerate is missing.
        """
        if device not in DEVICES:
            raise unknown("device", device, DEVICES, where="--device")
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS, where="--precision")
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "no GPU is at hand, or this build of torch knows none",
                where="--device",
                fix="leave --device out, or install a build of torch for your GPU",
            )
        on_gpu = device != "cpu" and torch.cuda.is_available()
        accelerator = None
        place = torch.device("cuda" if on_gpu else "cpu")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            library = optional(
                "accelerate", purpose="training in several processes", extra="accelerate"
            )
            # torch imports it when first needed; its defaults then hold the connections that there
            # are, whose threads outlive `leave`, and one in some runs is aborted at its end.
            import_module("torch.distributed.nn")
            accelerator = library.Accelerator(cpu=not on_gpu)
            place = accelerator.device
        if precision == "auto":
            precision = "bfloat16" if on_gpu else "float32"
        return cls(place, precision, accelerator)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def part(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of a batch [B, tasks, ...], on its device.

        Base learners are shared out; where there is one, as in single-level training, its tasks.

        Raises:
            InputError: If they cannot be shared out evenly.
        """
        learners, tasks = next(iter(batch.values())).shape[:2]
        along, number = (0, learners) if learners > 1 else (1, tasks)
        if number % self.size:
            what = "base learners" if along == 0 else "tasks"
            raise InputError(
                f"{number} {what} cannot be shared among {self.size} processes",
                where="meta.meta_batch" if along == 0 else "meta.tasks",
                fix=f"choose a multiple of {self.size}",
            )
        each = number // self.size
        return {
            k: v.narrow(along, self.rank * each, each).to(self.device) for k, v in batch.items()
        }

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean over all processes, the same in each."""
        if self.size == 1:
            return dict(values)
        flat = torch.cat([v.flatten() for v in values.values()])
        flat = self.accelerator.reduce(flat, "mean")
        parts = flat.split([v.numel() for v in values.values()])
        return {k: p.view_as(v) for (k, v), p in zip(values.items(), parts, strict=True)}

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        """Part when everybody is done: one that ended early could abort those still talking."""
        if self.accelerator is not None:
            self.wait()
            self.accelerator.end_training()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    @contextmanager
    def cast(self) -> Iterator[None]:
        """Context in which the denoiser's products have the team's precision."""
        low = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low), fast_products():
            yield


ALONE = Team()


@contextmanager
def tracked(
    log: Log, names: Sequence[str], path: Path, settings: Mapping[str, Any]
) -> Iterator[Log]:
    """A log that also tells Accelerate's trackers every number of a training step.

    Raises:
        InputError: If a tracker is unknown or not installed.
    """
    if not names:
        yield log
        return
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS, where="--trackers")
        library = "torch.utils.tensorboard" if name == "tensorboard" else name
        optional(library, purpose=f"the tracker {name}", package=name, where="--trackers")
    library = optional("accelerate", purpose="--trackers", extra="accelerate")
    accelerator = library.Accelerator(cpu=True, log_with=list(names), project_dir=str(path))
    accelerator.init_trackers("ltdi", config=_flat(settings))

    def both(record: dict[str, Any]) -> None:
        log(record)
        if "step" in record:
            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
            accelerator.log(numbers, step=numbers.pop("step"))

    try:
        yield both
    finally:
        accelerator.end_training()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of plain values."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, (int, float, str, bool))
            out[prefix + key] = value if plain else str(value)
    return out
