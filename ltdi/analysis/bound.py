"""The paper's bound on the loss of a generated weight, and what can be proved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.errors import InputError


@dataclass(frozen=True)
class ConvergenceBound:
    """Three bounds of L(theta_hat) - L(theta*) for B tasks; see `convergence_bound`.

    Attributes:
        distance: [B] of |theta_M - theta*|^2 after M steps, (2 psi/mu)(1 - mu/l)^M.
        triangle: [B] (lambda/2)(sqrt(c) + sqrt(distance))^2. Always holds.
        unbiased: [B] (lambda/2)(c + distance). Holds in expectation if the generator's error has
            mean zero, and for each error that does not point away from theta*.
        product: [B] (lambda/2)(c + 2 psi/mu)(1 - mu/l)^M. Holds where c shrinks with M as well.
    """

    distance: Tensor
    triangle: Tensor
    unbiased: Tensor
    product: Tensor


def convergence_bound(
    *, curvature: Tensor, error: Tensor, gap: Tensor, mu: Tensor, smoothness: Tensor, steps: int
) -> ConvergenceBound:
    """The paper's bound on the loss of a generated weight, and what can be proved (2502.01117).

    theta* minimises L, gradient descent with rate 1/l runs from theta_0 to theta_M, the generator
    imitates theta_M and returns theta_hat. Assumed, not measured by any of this: L is mu-strongly
    convex and l-smooth (true of an L2-regularised linear head, false of deep networks; Adam is
    not gradient descent), and |theta_hat - theta_M|^2 <= c on the task at hand. Then

    1. L(theta_M) - L(theta*) <= psi (1 - mu/l)^M                     (descent, strong convexity)
    2. |theta_M - theta*|^2 <= (2 psi/mu) (1 - mu/l)^M = distance     (strong convexity)
    3. |theta_hat - theta*| <= sqrt(c) + sqrt(distance)               (triangle inequality)
    4. L(theta_hat) - L(theta*) <= (lambda/2) |theta_hat - theta*|^2  (zero gradient at theta*)

    give `triangle`. Step 4 needs a lambda that bounds the Hessian from theta* to theta_hat:
    `softmax_smoothness` or `curvature_within`. With lambda at theta* alone it is Taylor's
    expansion, whose error is of third order in the distance.

    `unbiased` lacks the cross term 2 <theta_hat - theta_M, theta_M - theta*>; it is at least half
    of `triangle`. `product` is the paper's bound as it was handed to this project. It differs from
    `unbiased` by one bracket, and lets the generator's error vanish as M grows. But that error
    is made after the M steps: theta_hat stays sqrt(c) away from theta_M, so for c > 0 and large M
    it does not hold. It does if c = 0, or if the M steps are taken *from* a generated weight
    whose squared distance to theta* is at most c + 2 psi/mu, that is, for fine-tuning one. All
    three are linear in lambda, the part that sharpness-aware preparation aims at.

    Args:
        curvature: [B] lambda.
        error: [B] c, the generator's squared error |theta_hat - theta_M|^2.
        gap: [B] psi = L(theta_0) - L(theta*).
        mu: [B] strong convexity.
        smoothness: [B] l.
        steps: M.

    Raises:
        InputError: If 0 < mu <= l does not hold, or another quantity is negative.
    """
    if not bool(((mu > 0) & (mu <= smoothness)).all()):
        raise InputError(
            f"strong convexity {_range(mu)} and smoothness {_range(smoothness)} contradict "
            "0 < mu <= l",
            where="convergence_bound",
            fix="regularise the loss, or give an upper bound of its Hessian as smoothness",
        )
    for name, value in (("curvature", curvature), ("error", error), ("gap", gap)):
        if not bool((value >= 0).all()):
            raise InputError(f"{name} {_range(value)} is negative", where="convergence_bound")
    if steps < 0:
        raise InputError(f"steps must not be negative, got {steps}", where="convergence_bound")
    rate, start = (1 - mu / smoothness) ** steps, 2 * gap / mu
    distance, half = start * rate, curvature / 2
    return ConvergenceBound(
        distance=distance,
        triangle=half * (error.sqrt() + distance.sqrt()).square(),
        unbiased=half * (error + distance),
        product=half * (error + start) * rate,
    )


def softmax_smoothness(features: Tensor, decay: float = 0.0) -> Tensor:
    """Smoothness l [B] of a linear head's `classification_loss`, everywhere.

    Its Hessian is the mean over samples of (diag(p) - p p^T) kron x x^T, and the first factor's
    eigenvalues are at most 1/2 (Boehning, 1992), so l = lambda_max(X^T X / P) / 2 + decay.

    Args:
        features: [B, P, D] inputs, to which the bias adds a constant 1.
        decay: L2 penalty.
    """
    x = _with_bias(features)
    top: Tensor = torch.linalg.matrix_norm(x, 2)
    return top.square() / (2 * x.shape[-2]) + decay


def curvature_within(eigenvalue: Tensor, features: Tensor, radius: Tensor) -> Tensor:
    """Curvature [B] that bounds a linear head's loss around its minimum theta*.

    For all |theta - theta*| <= radius, L(theta) - L(theta*) <= (this / 2) |theta - theta*|^2.
    Along a line, the third derivative of softmax's cross entropy is at most s times the second,
    s = sqrt(2) max|x| radius being the most that two logits can part (self-concordance; Bach,
    2010). Integrated twice, this multiplies lambda by 2 (e^s - s - 1) / s^2, which is 1 for
    small errors and soon vacuous for large ones: then `softmax_smoothness` is the better one.

    Args:
        eigenvalue: [B] lambda at theta*.
        features: [B, P, D] inputs, to which the bias adds a constant 1.
        radius: [B] largest distance from theta*.
    """
    s = 2**0.5 * _with_bias(features).norm(dim=-1).amax(-1) * radius
    series = 1 + s / 3 + s.square() / 12
    # The closed form cancels to nothing near zero.
    exact = 2 * (torch.expm1(s) - s) / s.square().clamp(min=1e-12)
    return eigenvalue * torch.where(s < 1e-2, series, exact)


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def _range(value: Tensor) -> str:
    return f"{float(value.min()):.3g}..{float(value.max()):.3g}"
