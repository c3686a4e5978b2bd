"""The ends of the Hessian's spectrum, for the losses of many tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap

from ltdi.collect import Predict
from ltdi.errors import DivergedError, InputError

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Spectrum:
    """Ritz values of B symmetric matrices of size n, from m steps of Lanczos' iteration.

    Attributes:
        values: [B, m] ascending. They lie inside the spectrum, and its two ends are found first;
            with m = n they are the spectrum.
        vectors: [B, m, n] Ritz vectors, orthonormal.
        residual: [B, m] |H v - value v|; an eigenvalue lies within this distance of each value.
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor


def classification_loss(predict: Predict, decay: float = 0.0) -> Loss:
    """Training loss of one task, `(theta [n], inputs [P, ...], labels [P]) -> []`.

    Args:
        predict: Logits of one task; see `ltdi.collect.HeadPredictor`.
        decay: Adds (decay/2)|theta|^2 to the cross entropy, which makes a linear head's loss
            strongly convex with mu = decay.
    """

    def loss(theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(predict(theta, inputs), labels) + 0.5 * decay * theta.square().sum()

    return loss


def lanczos(
    loss: Loss, theta: Tensor, *data: Tensor, iterations: int = 30, rng: torch.Generator
) -> Spectrum:
    """Ends of the spectra of B Hessians at once, from Hessian-vector products alone.

    Lanczos' iteration with full reorthogonalisation (Golub and Van Loan, section 10.3). Where an
    invariant subspace is exhausted, it goes on from a new random vector, so that repeated
    eigenvalues are found too.

    Args:
        loss: Of one task, `(theta [n], *data) -> []`, twice differentiable.
        theta: [B, n] where each task's Hessian is taken.
        *data: What else the loss needs, each [B, ...].
        iterations: m, Hessian-vector products per task; at most n are taken.
        rng: Source of the first vectors.

    Raises:
        InputError: If theta is not [B, n], or there is no iteration.
        DivergedError: If a Hessian is not finite.
    """
    if theta.ndim != 2 or not theta.numel() or iterations < 1:
        raise InputError(
            f"theta has shape {list(theta.shape)} and iterations is {iterations}; expected "
            "[B, n] and at least 1",
            where="lanczos",
            fix="stack the tasks' flat weights, also for a single task",
        )
    product, steps = vmap(_hessian_product(loss)), min(iterations, theta.shape[1])
    basis = theta.new_zeros(len(theta), steps, theta.shape[1])
    small = theta.new_zeros(len(theta), steps, steps)
    image = _random_like(theta, rng)
    scale = theta.new_zeros(len(theta))
    for j in range(steps):
        # Not F.normalize, which leaves vectors below 1e-12 as short as they are.
        basis[:, j] = image / image.norm(dim=-1, keepdim=True)
        image = product(theta, basis[:, j], *data)
        _check_finite(image)
        small[:, j, j] = (image * basis[:, j]).sum(-1)
        image = _orthogonal(image, basis[:, : j + 1])
        rest = image.norm(dim=-1)
        if j + 1 == steps:
            break
        scale = torch.maximum(scale, rest + small[:, j, j].abs())
        # What is left of an exhausted subspace is rounding, not a direction.
        spent = rest <= 100 * torch.finfo(theta.dtype).eps * scale
        if bool(spent.any()):
            fresh = _orthogonal(_random_like(theta, rng), basis[:, : j + 1])
            image = torch.where(spent.unsqueeze(1), fresh, image)
        small[:, j, j + 1] = small[:, j + 1, j] = torch.where(spent, 0.0, rest)
    values, rotation = torch.linalg.eigh(small)
    return Spectrum(values, rotation.mT @ basis, rest[:, None] * rotation[:, -1].abs())


def largest_eigenvalue(
    loss: Loss, theta: Tensor, *data: Tensor, iterations: int = 30, rng: torch.Generator
) -> Tensor:
    """The largest (algebraic) eigenvalue lambda [B] of each task's Hessian; see `lanczos`.

    It is approached from below, and not taken in by a negative eigenvalue of larger magnitude.
    """
    return lanczos(loss, theta, *data, iterations=iterations, rng=rng).values[:, -1]


def _hessian_product(loss: Loss) -> Loss:
    """Map (theta [n], v [n], *data) to H v [n], forward over reverse."""

    def product(theta: Tensor, v: Tensor, *data: Tensor) -> Tensor:
        gradient = grad(loss)
        tangent: Tensor = jvp(lambda point: gradient(point, *data), (theta,), (v,))[1]
        return tangent

    return product


def _orthogonal(x: Tensor, basis: Tensor) -> Tensor:
    """Vectors x [B, n] without their part in the rows of basis [B, m, n]."""
    for _ in range(2):  # the second time against rounding
        x = x - (basis.mT @ (basis @ x.unsqueeze(-1))).squeeze(-1)
    return x


def _random_like(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)


def _check_finite(image: Tensor) -> None:
    bad = (~image.isfinite().all(-1)).nonzero().squeeze(1).tolist()
    if bad:
        raise DivergedError(
            f"the Hessians of {len(bad)} of {len(image)} tasks are not finite, the first that of "
            f"task {bad[0]}",
            where="lanczos",
            fix="drop tasks that diverged; see Trajectories.finite",
        )
