"""Weight preparation: optimise hundreds of tasks at once and keep their trajectories.

All tasks of a batch take their steps together: the loss of one task is differentiated with
`torch.func.grad` and vectorised with `torch.func.vmap`, whatever the kind of weights. Functional
components live here, not in meta-training (paper, section 4.2): sharpness-aware minimisation
(SAM, Foret et al., 2021) and augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ltdi.errors import InputError, unknown
from ltdi.memory import keep_freed
from ltdi.products import MANY, fast_products
from ltdi.weights import WeightSpace

Predict = Callable[[Tensor, Tensor], Tensor]


# Gradients of E tasks in parts of their weights, for picked samples [E, batch] or, without, all.
Slope = Callable[[list[Tensor], Tensor | None], list[Tensor]]


@runtime_checkable
class Closed(Protocol):
    """A `Predict` that knows the gradient of its loss in closed form, for many tasks at once.

    Weights are solved in parts of its choosing, tensors [E, ...]: in the layout that products like.

    Attributes:
        products: Whether its time goes into large products (`ltdi.products`).
    """

    products: bool

    def __call__(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(theta [n], inputs [P, ...]) -> [P, way]."""
        ...

    def logits(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(theta [E, n], inputs [E, P, ...]) -> [E, P, way]; no task reads another's."""
        ...

    def together(self, inputs: Tensor, batch: int) -> int:
        """How many tasks with inputs [E, P, ...] and so many samples a step suit the cache."""
        ...

    def parts(self, theta: Tensor) -> list[Tensor]:
        """Parts of weights theta [E, n]."""
        ...

    def whole(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `parts`: [E, n]."""
        ...

    def slope(self, inputs: Tensor, labels: Tensor, smoothing: float) -> Slope:
        """The gradient of the mean cross entropy on inputs [E, P, ...] with labels [E, P]."""
        ...


@dataclass(frozen=True)
class Preparation:
    """How trajectories are made.

    Attributes:
        optimiser: "adam", "adamw" or "sgd" (with momentum 0.9).
        lr: Step size.
        steps: M, optimisation steps per task.
        segments: k, local targets kept; they end segments of equal length.
        weight_decay: L2 penalty on the distance to theta_0 (decoupled for adamw).
        sam_rho: Radius of sharpness-aware minimisation; 0 switches it off.
        batch: Samples per task and step; 0 takes all of them.
        label_smoothing: Of the cross entropy.
    """

    optimiser: str = "adam"
    lr: float = 0.05
    steps: int = 60
    segments: int = 3
    weight_decay: float = 0.0
    sam_rho: float = 0.0
    batch: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise unknown("optimiser", self.optimiser, OPTIMISERS, where="prepare.optimiser")
        if self.segments < 1 or self.steps < 1 or self.steps % self.segments:
            raise InputError(
                f"M = {self.steps} optimiser steps cannot hold k = {self.segments} equal segments",
                where="prepare.steps and prepare.segments",
                fix="choose steps as a multiple of segments",
            )
        for name, low in (("lr", 0.0), ("weight_decay", -1e-30), ("sam_rho", -1e-30)):
            # Written so that NaN is refused too.
            if not low < getattr(self, name) < float("inf"):
                raise InputError(
                    f"{name} = {getattr(self, name)} is no step size, penalty or radius",
                    where=f"prepare.{name}",
                    fix="give a finite number, not below 0; above 0 for lr",
                )


@dataclass(frozen=True)
class Trajectories:
    """Solved tasks.

    Attributes:
        theta: [E, k, n] local targets theta_d, theta_2d, .., theta_M.
        loss: [E] training loss at theta_M.
        accuracy: [E] training accuracy at theta_M, a fraction.
        finite: [E] whether every number is finite; the others are to be dropped.
    """

    theta: Tensor
    loss: Tensor
    accuracy: Tensor
    finite: Tensor


class Adam:
    """Torch's Adam (betas 0.9 and 0.999) over a few tensors that hold all tasks.

    Where torch has it, it is the kernel that `torch.optim.Adam(fused=True)` calls, without the
    20 us of bookkeeping around it, which are as much as 50 heads take.

    Args:
        parts: Updated in place.
        lr: Step size.
    """

    def __init__(self, parts: list[Tensor], lr: float) -> None:
        self.parts, self.lr = parts, lr
        self.mean = [torch.zeros_like(x) for x in parts]
        self.square = [torch.zeros_like(x) for x in parts]
        self.steps = parts[0].new_zeros((), dtype=torch.float32)

    def step(self, gradients: list[Tensor]) -> None:
        """One step against contiguous gradients."""
        self.steps += 1
        if FUSED is None:
            return self._by_hand(gradients)
        FUSED(
            self.parts,
            gradients,
            self.mean,
            self.square,
            [],
            [self.steps] * len(self.parts),
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _by_hand(self, gradients: list[Tensor]) -> None:
        steps = int(self.steps)
        first, second = 1 - 0.9**steps, 1 - 0.999**steps
        for x, g, mean, square in zip(self.parts, gradients, self.mean, self.square, strict=True):
            mean.lerp_(g, 0.1)
            square.mul_(0.999).addcmul_(g, g, value=0.001)
            x.addcdiv_(mean, square.div(second).sqrt_().add_(1e-8), value=-self.lr / first)


class SGD:
    """Gradient descent with momentum 0.9; see `Adam`."""

    def __init__(self, parts: list[Tensor], lr: float) -> None:
        self.parts, self.lr = parts, lr
        self.mean = [torch.zeros_like(x) for x in parts]

    def step(self, gradients: list[Tensor]) -> None:
        """One step."""
        torch._foreach_mul_(self.mean, 0.9)
        torch._foreach_add_(self.mean, gradients)
        torch._foreach_add_(self.parts, self.mean, alpha=-self.lr)


# Not part of torch's public interface: a version may lack it.
FUSED: Callable[..., None] | None = getattr(torch, "_fused_adam_", None)
# The decay of adamw is towards theta_0, not towards zero, and so not the optimiser's.
OPTIMISERS: dict[str, type[Adam] | type[SGD]] = {"adam": Adam, "adamw": Adam, "sgd": SGD}
# Bytes of samples that stay in a core's cache while their tasks are solved.
CACHE = 1 << 22


class HeadPredictor:
    """Logits of a linear head, and the gradient of its loss in closed form.

    Args:
        space: Weight space of the head.
    """

    products = True

    def __init__(self, space: WeightSpace) -> None:
        self.space = space

    def __call__(self, theta: Tensor, features: Tensor) -> Tensor:
        """(theta [n], features [P, D]) -> [P, way]."""
        head = self.space.unflatten(theta)
        return F.linear(features, head["weight"], head["bias"])

    def logits(self, theta: Tensor, features: Tensor) -> Tensor:
        """See `Closed.logits`."""
        rows = theta.view(len(theta), -1, features.shape[-1] + 1)
        return (rows[..., :-1] @ features.mT + rows[..., -1:]).mT

    def together(self, features: Tensor, batch: int) -> int:
        """See `Closed.together`: as many as share the cache."""
        return max(1, CACHE // max(1, features[0].nbytes))

    def parts(self, theta: Tensor) -> list[Tensor]:
        """Weights [E, way - 1, D] and biases [E, way - 1, 1] of all classes but the last.

        Between and behind them are those of the last class, [E, 1, D] and [E, 1, 1], with their
        sign turned: their gradient is the sum of the others' then.
        """
        rows = theta.view(len(theta), int(self.space.params[0].units), -1)
        weights, biases = rows[..., :-1], rows[..., -1:]
        return [weights[:, :-1], -weights[:, -1:], biases[:, :-1], -biases[:, -1:]]

    def whole(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `parts`: [E, n]."""
        others, last, bias, last_bias = parts
        rows = torch.cat([torch.cat([others, bias], 2), -torch.cat([last, last_bias], 2)], 1)
        return rows.flatten(1)

    def slope(self, features: Tensor, labels: Tensor, smoothing: float) -> Slope:
        """See `Closed.slope`.

        Softmax does not see what is added to all logits, so that logits relative to the last class
        are enough, and its gradient sums to zero over classes: both products are of way - 1 rows.
        """
        way, (tasks, samples) = int(self.space.params[0].units), labels.shape
        hot = labels[:, None] == torch.arange(way - 1)[:, None]
        targets = hot.to(features.dtype) * (1 - smoothing) + smoothing / way  # [E, way - 1, P]
        rows = torch.arange(tasks)[:, None]
        # Written over, but for the last row, which is zero.
        scratch = features.new_zeros(tasks, way, samples)

        def gradient(parts: list[Tensor], pick: Tensor | None) -> list[Tensor]:
            x, y = features, targets
            if pick is not None:
                x, y = features[rows, pick], targets.mT[rows, pick].mT
            others, last, bias, last_bias = parts
            logits = scratch[..., : x.shape[1]]
            # Classes first: the long side of the product is what the processor works along.
            product = torch.bmm(others + last, x.mT)
            torch.add(product, bias + last_bias, out=logits[:, :-1])
            wrong = logits.softmax(1)[:, :-1] - y
            g = torch.baddbmm(others, wrong, x, beta=0, alpha=1 / x.shape[1])
            h = wrong.sum(2, keepdim=True).div_(x.shape[1])
            return [g, g.sum(1, keepdim=True), h, h.sum(1, keepdim=True)]

        return gradient


def module_predictor(module: nn.Module, space: WeightSpace) -> Predict:
    """Logits of any module whose parameters in `space` are replaced by theta [n]."""

    def predict(theta: Tensor, inputs: Tensor) -> Tensor:
        out: Tensor = functional_call(module, space.unflatten(theta), (inputs,))
        return out

    return predict


def optimise(
    predict: Predict,
    theta_0: Tensor,
    inputs: Tensor,
    labels: Tensor,
    preparation: Preparation,
    *,
    rng: torch.Generator | None = None,
) -> Trajectories:
    """Solve E classification tasks at once.

    Args:
        predict: Logits of one task, `(theta [n], inputs [P, ...]) -> [P, way]`.
        theta_0: [E, n] start of every task.
        inputs: [E, P, ...] samples of every task.
        labels: [E, P] or [P] labels, 0 <= label < way.
        preparation: Optimiser, steps, segments, SAM.
        rng: Source of minibatches; needed when `preparation.batch` > 0.
    """
    keep_freed()
    p = preparation
    labels = labels.expand(len(theta_0), -1) if labels.ndim == 1 else labels
    picks = [_minibatch(labels, p.batch, rng) for _ in range(p.steps)]
    closed = predict if isinstance(predict, Closed) else None
    large = closed.products if closed else len(theta_0) >= MANY
    each = closed.together(inputs, p.batch) if closed else max(1, len(theta_0))
    found = []
    with fast_products() if large else nullcontext():
        for at in range(0, max(1, len(theta_0)), each):
            some = slice(at, at + each)
            of = [None if pick is None else pick[some] for pick in picks]
            found.append(_solved(predict, theta_0[some], inputs[some], labels[some], of, p))
    return found[0] if len(found) == 1 else _joined(found)


def _solved(
    predict: Predict,
    theta_0: Tensor,
    inputs: Tensor,
    labels: Tensor,
    picks: list[Tensor | None],
    p: Preparation,
) -> Trajectories:
    """`optimise` for tasks that share every operation, on picked samples of each step."""
    closed = predict if isinstance(predict, Closed) else None
    gradient = _gradient(predict, p, inputs, labels)
    start, kept = [theta_0.detach()], []
    if closed:
        start = closed.parts(start[0])
    parts = [x.clone(memory_format=torch.contiguous_format) for x in start]
    optimiser = OPTIMISERS[p.optimiser](parts, p.lr)
    every = p.steps // p.segments
    # Nothing of a closed form is recorded: 3 % of a head.
    with torch.inference_mode() if closed else nullcontext():
        for step, pick in enumerate(picks, 1):
            g = gradient(parts, start, pick)
            if p.sam_rho > 0:
                g = gradient(_climbed(parts, g, p.sam_rho), start, pick)
            if p.optimiser == "adamw":
                for x, x_0 in zip(parts, start, strict=True):
                    x.sub_(x - x_0, alpha=p.lr * p.weight_decay)
            optimiser.step(g)
            if step % every == 0:
                kept.append(closed.whole(parts) if closed else parts[0].clone())
    path = torch.stack(kept, 1)
    theta = path[:, -1]
    whole = closed.logits if closed else vmap(predict)
    logits = whole(theta, inputs).mT
    loss = F.cross_entropy(logits, labels, reduction="none").mean(1)
    # Over a dimension that is not the last one, max is 25 times as fast as argmax.
    accuracy = (logits.max(1).indices == labels).float().mean(1)
    # Both are NaN where there is one.
    finite = path.amax((1, 2)).isfinite() & path.amin((1, 2)).isfinite() & loss.isfinite()
    return Trajectories(path, loss, accuracy, finite)


def _climbed(parts: list[Tensor], gradients: list[Tensor], rho: float) -> list[Tensor]:
    """Weights of every task moved by a distance of rho along its gradient."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    size = rho / norm.clamp(min=1e-12)
    return [
        x + size.view(-1, *[1] * (x.ndim - 1)) * g for x, g in zip(parts, gradients, strict=True)
    ]


Gradient = Callable[[list[Tensor], list[Tensor], Tensor | None], list[Tensor]]


def _gradient(predict: Predict, p: Preparation, inputs: Tensor, labels: Tensor) -> Gradient:
    """Gradients `(theta, theta_0, picked samples [E, batch] or None)`, in parts of theta."""
    pull = 0.0 if p.optimiser == "adamw" else p.weight_decay
    if isinstance(predict, Closed):
        slope = predict.slope(inputs, labels, p.label_smoothing)

        def closed(parts: list[Tensor], start: list[Tensor], pick: Tensor | None) -> list[Tensor]:
            g = slope(parts, pick)
            if pull:
                for part, now, then in zip(g, parts, start, strict=True):
                    part.add_(now - then, alpha=pull)
            return g

        return closed

    rows = torch.arange(len(inputs))[:, None]

    def loss_of(theta: Tensor, start: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(predict(theta, x), y, label_smoothing=p.label_smoothing)
        return loss + 0.5 * pull * (theta - start).square().sum() if pull else loss

    each = vmap(grad(loss_of))

    def general(parts: list[Tensor], start: list[Tensor], pick: Tensor | None) -> list[Tensor]:
        x, y = (inputs, labels) if pick is None else (inputs[rows, pick], labels[rows, pick])
        out: Tensor = each(parts[0], start[0], x, y)
        return [out.contiguous()]  # the fused optimiser reads memory in order

    return general


def _joined(parts: list[Trajectories]) -> Trajectories:
    names = [f.name for f in fields(Trajectories)]
    return Trajectories(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def _minibatch(labels: Tensor, batch: int, rng: torch.Generator | None) -> Tensor | None:
    """Samples [E, batch] of every task, or None for all of them."""
    if batch <= 0 or batch >= labels.shape[1]:
        return None
    return torch.rand(labels.shape, generator=rng).argsort(1)[:, :batch].clone()
