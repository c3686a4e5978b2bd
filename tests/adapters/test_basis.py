from __future__ import annotations

import pytest
import torch

from ltdi.adapters.basis import Basis, blocks_of
from ltdi.errors import InputError
from ltdi.weights import WeightSpace

SHAPES = {
    "net.layer.0.a": (2, 3),
    "net.layer.0.b": (4, 2),
    "net.layer.1.a": (2, 3),
    "head.weight": (2, 3),
    "head.bias": (2,),
}
SPACE = WeightSpace.from_shapes(SHAPES, per_class=["head.weight", "head.bias"])


def weights(n: int, space: WeightSpace, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, space.size, generator=torch.Generator().manual_seed(seed))


def test_a_block_is_a_layer_of_the_model_and_class_rows_come_last() -> None:
    names = [[SPACE.layers[j].params[0].name for j in block] for block in blocks_of(SPACE)]
    assert names == [["net.layer.0.a", "net.layer.0.b"], ["net.layer.1.a"], ["head.weight"]]


def test_as_many_directions_as_numbers_lose_nothing() -> None:
    basis = Basis(SPACE, 14)
    theta = weights(40, SPACE)
    basis.fit([(theta, SPACE)])
    for way in (1, 2, 5):
        space = SPACE.with_way(way)
        other = weights(3, space, 1)[:, None]
        z = basis.enter(other, space)
        assert z.shape == (3, 1, basis.latent(way).size)
        torch.testing.assert_close(basis.leave(z, space), other, rtol=1e-4, atol=1e-4)


def test_few_directions_keep_what_varies_most() -> None:
    """Of weights on a line only that line is kept, and the mean is exact."""
    line = weights(1, SPACE, 2)
    theta = 3 + torch.linspace(-1, 1, 9)[:, None] * line
    theta[:, -8:] -= 3  # class rows have no mean
    basis = Basis(SPACE, 1)
    basis.fit([(theta, SPACE)])
    found = basis.leave(basis.enter(theta, SPACE), SPACE)
    torch.testing.assert_close(found[:, :-8], theta[:, :-8], rtol=1e-4, atol=1e-4)
    # The two class rows are two lines: their common direction cannot hold both.
    assert (found[:, -8:] - theta[:, -8:]).norm() > 0.1
    assert basis.leave(torch.zeros(basis.latent(2).size), SPACE)[:-8].mean() > 1


def test_renaming_classes_swaps_their_tokens() -> None:
    basis = Basis(SPACE, 4)
    theta = weights(20, SPACE)
    basis.fit([(theta, SPACE)])
    swapped = SPACE.flatten(
        {n: w.flip(1) if "head" in n else w for n, w in SPACE.unflatten(theta).items()}
    )
    layout = basis.latent(2).tokens
    order = torch.arange(len(layout.class_of))
    order[layout.class_of >= 0] = order[layout.class_of >= 0].flip(0)
    plain = basis.enter(theta, SPACE).unflatten(-1, (-1, 4))
    assert torch.equal(basis.enter(swapped, SPACE).unflatten(-1, (-1, 4)), plain[:, order])


def test_a_basis_needs_directions() -> None:
    with pytest.raises(InputError, match="0 directions"):
        Basis(SPACE, 0)
