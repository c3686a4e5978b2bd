"""Meta-training: REPTILE over any loss of a batch, with exact resume.

One iteration gives a copy of phi to each of B base learners. A copy takes K inner steps of SGD on
its own tasks; then phi moves towards the mean of the copies (Nichol et al., 2018; paper,
section 4.3). All copies run at once: their parameters are stacked and the loss is vectorised over
them with `torch.func`. Single-level training is the case B = K = 1.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ltdi.errors import DivergedError, check
from ltdi.memory import keep_freed
from ltdi.meta.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from ltdi.meta.team import ALONE, Team

Params = dict[str, Tensor]
Batch = dict[str, Tensor]
Loss = Callable[[Params, Batch], Tensor]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class MetaConfig:
    """How phi is trained.

    Attributes:
        meta: "reptile", or "none" for single-level training on the same number of samples.
        iterations: Outer iterations.
        meta_batch: B, base learners per iteration.
        inner_steps: K.
        inner_lr: eta, step size of the inner SGD.
        tasks: Tasks per base learner and inner step (the paper has 1).
        outer: "sgd" moves phi by meta_lr times the mean displacement, as the paper does; "adam"
            takes the displacement as a gradient for AdamW.
        meta_lr: zeta, or AdamW's step size.
        weight_decay: Of AdamW.
        warmup: Iterations of linear warm-up, followed by a cosine decay to zero.
        ema: Decay of the exponential moving average that is used after training.
        checkpoint_every: Iterations between checkpoints.
        seed: Of initialisation and sampling.
    """

    meta: str = "reptile"
    iterations: int = 600
    meta_batch: int = 4
    inner_steps: int = 3
    inner_lr: float = 0.05
    tasks: int = 32
    outer: str = "adam"
    meta_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50
    ema: float = 0.99
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        names = {"meta": ("reptile", "none"), "outer": ("sgd", "adam")}
        least = ("iterations", "meta_batch", "inner_steps", "tasks", "checkpoint_every")
        check("meta", self, known=names, ranges={name: (1, math.inf) for name in least})

    @property
    def learners(self) -> tuple[int, int, int]:
        """(B, K, tasks) as they are run; single-level training puts all samples in one batch."""
        if self.meta == "none":
            return 1, 1, self.meta_batch * self.inner_steps * self.tasks
        return self.meta_batch, self.inner_steps, self.tasks


def reptile_displacement(
    phi: Mapping[str, Tensor], batches: list[Batch], loss: Loss, inner_lr: float
) -> tuple[Params, Tensor]:
    """Mean movement of B base learners over K inner steps.

    Args:
        phi: The outer parameters.
        batches: K batches; every tensor has a leading dimension B.
        loss: Loss of one learner, `(params, batch) -> scalar`.
        inner_lr: eta.

    Returns:
        (1/B) sum_i (phi_i - phi) and the mean loss [].
    """
    learners = len(next(iter(batches[0].values())))
    # Written over in each step: to ask for so much new memory takes longer than to fill it.
    weights = {k: _copies(p.detach(), learners) for k, p in phi.items()}
    # Summed on its own: phi_i - phi would lose small movements to rounding.
    moved = [torch.zeros_like(w.detach()[0]) for w in weights.values()]
    losses = []
    for number, batch in enumerate(batches, 1):
        gradient, value = _gradient(weights, batch, loss)
        for one in range(learners):
            torch._foreach_add_(moved, [g[one] for g in gradient], alpha=-inner_lr / learners)
        if number < len(batches):
            with torch.no_grad():
                torch._foreach_add_(list(weights.values()), gradient, alpha=-inner_lr)
        losses.append(value)
    mean = {k: m.contiguous() for k, m in zip(phi, moved, strict=True)}
    return mean, torch.stack(losses).mean()


def _copies(p: Tensor, learners: int) -> Tensor:
    """A parameter for each learner [B, ...], laid out in memory as its gradient will be.

    The gradient of a matrix comes transposed; to add it to one that is not takes twice as long.
    """
    if p.ndim == 2:
        one = p.mT.contiguous()  # to transpose every copy takes three times as long
        copies = one.expand(learners, -1, -1).clone(memory_format=torch.contiguous_format)
        return copies.mT.requires_grad_()
    return p.repeat(learners, *[1] * p.ndim).requires_grad_()


def _gradient(params: Params, batch: Batch, loss: Loss) -> tuple[list[Tensor], Tensor]:
    """Gradients [B, ...] and losses [B] of B learners on their own batches.

    Only the loss is vectorised, and the sum over learners differentiated: the parameters of one do
    not enter the loss of another, and a plain backward pass is faster than a vectorised one.
    """
    if len(next(iter(batch.values()))) == 1:
        alone = loss({k: p[0] for k, p in params.items()}, {k: x[0] for k, x in batch.items()})
        losses = alone.unsqueeze(0)
    else:
        losses = vmap(loss)(params, batch)
    used = torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)
    pairs = zip(params.values(), used, strict=True)
    return [torch.zeros_like(p) if g is None else g for p, g in pairs], losses.detach()


class MetaTrainer:
    """Runs outer iterations over the parameters of a module.

    Args:
        module: Holds phi; only its parameters are trained.
        loss: Loss of one base learner as a function of its parameters.
        draw: `(rng, tasks) -> Batch`, called once per inner step with B * tasks; every tensor has
            that leading dimension.
        config: See `MetaConfig`.
        run: Further settings that a resumed run must share.
        before: Called with the number of every iteration before it begins.
        team: Device and processes; the module is on the device. Every process draws the same
            batches and works on its share of their base learners.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        draw: Callable[[torch.Generator, int], Batch],
        config: MetaConfig,
        run: Mapping[str, Any] | None = None,
        before: Callable[[int], None] | None = None,
        team: Team = ALONE,
    ) -> None:
        keep_freed()
        self.before, self.team = before, team
        self.module, self.loss, self.draw, self.config = module, loss, draw, config
        self.names = [name for name, _ in module.named_parameters()]
        self.phi = dict(module.named_parameters())
        self.ema = {k: p.detach().clone() for k, p in self.phi.items()}
        self.rng = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.run = {**asdict(config), **(run or {})}
        self.optimiser: torch.optim.Optimizer | None = None
        if config.outer == "adam":
            self.optimiser = torch.optim.AdamW(
                self.phi.values(), lr=config.meta_lr, weight_decay=config.weight_decay, fused=True
            )

    def iterate(self) -> float:
        """One outer iteration.

        Returns:
            The mean loss before the update.

        Raises:
            DivergedError: If the loss or the movement is not finite; phi is left as it was.
        """
        c = self.config
        learners, inner, tasks = c.learners
        batches = [self._batch(learners, tasks) for _ in range(inner)]
        with self.team.cast():
            moved, loss = reptile_displacement(self.phi, batches, self.loss, c.inner_lr)
        moved = self.team.mean({**moved, "": loss})
        loss = moved.pop("")
        # A step too far shows in the loss only one step later.
        sums = [m.sum() for m in moved.values()]
        if not bool(torch.stack([loss, *sums]).isfinite().all()):
            raise DivergedError(
                f"training left the finite numbers at iteration {self.step}: loss {float(loss)}",
                where="meta-training",
                fix="lower meta.inner_lr or meta.meta_lr, or resume from the last checkpoint",
            )
        rate = c.meta_lr * self._decay()
        with torch.no_grad():
            if self.optimiser is None:
                for k, p in self.phi.items():
                    p.add_(moved[k], alpha=rate)
            else:
                # K inner steps of SGD move by -eta times a sum of K gradients.
                for k, p in self.phi.items():
                    p.grad = moved[k].div_(-c.inner_lr * inner)
                self.optimiser.param_groups[0]["lr"] = rate
                self.optimiser.step()
            # A short run would otherwise remember its initialisation.
            decay = min(c.ema, self.step / (self.step + 10))
            torch._foreach_lerp_(list(self.ema.values()), list(self.phi.values()), 1 - decay)
        self.step += 1
        return float(loss)

    def fit(
        self,
        checkpoint: Path | None = None,
        *,
        progress: Progress | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Train to the configured number of iterations, from a checkpoint where there is one.

        Ctrl-C writes a checkpoint before it leaves. Afterwards the module holds the average.

        Args:
            checkpoint: File to resume from and to write.
            progress: Called as progress(iteration, iterations, loss).
            log: Called with one record per logged iteration.
        """
        if checkpoint is not None:
            with self.team.main_first():
                message = self.resume(checkpoint)
            if message and log:
                log({"event": "warning", "message": message})
        total = self.config.iterations
        if self.before and self.step >= total > 0:
            self.before(total - 1)  # what the last iteration saw is still to be known
        try:
            while self.step < total:
                if self.before:
                    self.before(self.step)
                with _unbroken():
                    loss = self.iterate()
                if progress:
                    progress(self.step, total, loss)
                if log and (self.step % 10 == 0 or self.step == total):
                    log({"event": "train", "step": self.step, "loss": loss})
                if checkpoint and self.step % self.config.checkpoint_every == 0:
                    self.save(checkpoint)
        except KeyboardInterrupt:
            if checkpoint:
                self.save(checkpoint)
            raise
        if checkpoint:
            self.save(checkpoint)
        with torch.no_grad():
            for k, p in self.phi.items():
                p.copy_(self.ema[k])

    def save(self, path: Path) -> None:
        """Write a checkpoint; where there are several processes, the main one does."""
        if not self.team.main:
            return
        groups = {
            "model": {k: p.detach() for k, p in self.phi.items()},
            "ema": self.ema,
            "optimiser": optimiser_tensors(self.optimiser) if self.optimiser else {},
        }
        save_checkpoint(path, Checkpoint(self.step, groups, self.rng.get_state(), self.run))

    def resume(self, path: Path) -> str:
        """Take up a checkpoint, if there is one; see `load_checkpoint` for message and errors."""
        found, message = load_checkpoint(path, self.run)
        if found is None:
            return message
        with torch.no_grad():
            for k, p in self.phi.items():
                p.copy_(found.groups["model"][k])
                self.ema[k].copy_(found.groups["ema"][k])
        if self.optimiser is not None and "optimiser" in found.groups:
            restore_optimiser(self.optimiser, found.groups["optimiser"])
        self.rng.set_state(found.rng)
        self.step = found.step
        return message

    def _batch(self, learners: int, tasks: int) -> Batch:
        flat = self.draw(self.rng, learners * tasks)
        return self.team.part({k: v.unflatten(0, (learners, tasks)) for k, v in flat.items()})

    def _decay(self) -> float:
        c = self.config
        warm = min(1.0, (self.step + 1) / max(1, c.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / c.iterations))


@contextlib.contextmanager
def _unbroken() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done: half an iteration cannot be resumed exactly."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *caught: pending.append(caught))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        before(*pending[0])
