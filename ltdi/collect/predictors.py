"""What is solved: logits of a task as a function of its weights, and gradients in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

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


# Bytes of samples that stay in a core's cache while their tasks are solved.
CACHE = 1 << 22


class HeadPredictor:
    """Logits of a linear head, and the gradient of its loss in closed form."""

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
