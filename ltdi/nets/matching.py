"""Hidden units have no order: nets are compared after their units have been matched."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltdi.weights import WeightSpace

# Passes over the layers, at most.
_ROUNDS = 3


def assignment(cost: Tensor) -> Tensor:
    """The permutation that minimises sum_i cost[i, p_i], exactly.

    The Hungarian method with potentials, one shortest augmenting path for each row, O(n^3)
    (Jonker and Volgenant, 1987). Nets have tens of units a layer: no library is needed for them.

    Args:
        cost: [n, n].

    Returns:
        [n] column of each row.
    """
    c: NDArray[np.float64] = cost.double().numpy()
    n = len(c)
    u, v = np.zeros(n + 1), np.zeros(n + 1)
    row_of = np.zeros(n + 1, dtype=int)  # of a column; column 0 is where a path begins
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least = np.full(n + 1, np.inf)
        before = np.zeros(n + 1, dtype=int)
        used = np.zeros(n + 1, dtype=bool)
        while True:
            used[column] = True
            i = row_of[column]
            reduced = np.append(np.inf, c[i - 1] - u[i] - v[1:])
            better = ~used & (reduced < least)
            least[better], before[better] = reduced[better], column
            free = np.where(used, np.inf, least)
            following = int(free.argmin())
            delta = free[following]
            u[row_of[used]] += delta
            v[used] -= delta
            least[~used] -= delta
            column = following
            if row_of[column] == 0:
                break
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    out = np.empty(n, dtype=int)
    out[row_of[1:] - 1] = np.arange(n)
    return torch.from_numpy(out)


def match_units(theta: Tensor, reference: Tensor, space: WeightSpace) -> Tensor:
    """The net theta [n] with its hidden units permuted to be near `reference` [n].

    Layer by layer, the units of a hidden layer are assigned by their incoming weights and by the
    outgoing ones of the layer after it, until nothing moves (Ainsworth et al., 2023, algorithm 1).
    The function that the net computes is unchanged, as long as units that a normalisation groups
    stay in their group; `assignment` may move them out of it, so this is for comparing only.

    Args:
        theta: [n].
        reference: [n].
        space: Of a `SmallNet`: convolutions in order, then the head.
    """
    names = [layer.params[0].name for layer in space.layers]
    a, b = space.unflatten(theta), space.unflatten(reference)
    a = {k: t.clone() for k, t in a.items()}
    for _ in range(_ROUNDS):
        moved = False
        for here, after in pairwise(names):
            bias = here.replace("weight", "bias")
            count = len(a[here])
            rows = [torch.cat([w[here].flatten(1), w[bias][:, None]], 1) for w in (a, b)]
            # A head reads all positions of a unit; a convolution its kernel.
            following = [_by_input(w[after], count) for w in (a, b)]
            gain = rows[1] @ rows[0].T + following[1] @ following[0].T
            order = assignment(-gain)
            if not torch.equal(order, torch.arange(count)):
                moved = True
                a[here], a[bias] = a[here][order], a[bias][order]
                shape = a[after].shape
                a[after] = a[after].reshape(len(a[after]), count, -1)[:, order].reshape(shape)
        if not moved:
            break
    return space.flatten(a)


def _by_input(weight: Tensor, units: int) -> Tensor:
    """Outgoing weights [units, ...] of the layer below."""
    return weight.reshape(len(weight), units, -1).transpose(0, 1).flatten(1)
