"""`ltdi.backbone.features`: features of one length, in the order of their variance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.backbone import Backbone, FeatureMap, FeatureMapping
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank

from .conftest import conv, pixels

D = 7


def features(n: int = 200, seed: int = 0) -> Tensor:
    """Skewed, of many lengths, of both signs, wider along some directions than others."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=rng).exp() * torch.linspace(0.2, 3, D)
    return (x - 0.3) * torch.rand(n, 1, generator=rng).exp()


def fitted(power: float = 0.5, width: int = 4) -> FeatureMap:
    return FeatureMap(D, FeatureMapping(power, width)).fit(features())


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 4, D])
def test_mapped_features_have_one_length(power: float, width: int) -> None:
    z = fitted(power, width)(features(seed=1))
    assert z.shape == (200, width) and z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.full((200,), width**0.5))


def test_more_components_than_features_are_all_of_them() -> None:
    assert torch.equal(fitted(width=100)(features()), fitted(width=D)(features()))


def test_at_full_width_only_lengths_and_the_origin_change() -> None:
    """Angles between features, seen from their mean, are kept."""
    x = F.normalize(features(seed=1), dim=1)
    origin = F.normalize(features(), dim=1).mean(0)
    wanted = F.normalize(x - origin, dim=1)
    z = fitted(power=1.0, width=D)(features(seed=1)) / D**0.5
    torch.testing.assert_close(z @ z.T, wanted @ wanted.T, rtol=1e-4, atol=1e-5)


def test_the_components_are_orthonormal_and_sorted_by_variance() -> None:
    map = fitted(width=D)
    torch.testing.assert_close(map.basis.T @ map.basis, torch.eye(D), rtol=0, atol=1e-5)
    x = features().sign() * features().abs().sqrt()
    variance = ((F.normalize(x, dim=1) - map.mean) @ map.basis).var(0)
    assert bool((variance.diff() <= 1e-6).all()) and variance[0] > 2 * variance[-1]
    # Fewer components are the first ones.
    assert torch.equal(fitted(width=3).basis, map.basis[:, :3])


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_length_of_a_feature_does_not_matter(factor: float) -> None:
    map = fitted()
    torch.testing.assert_close(map(factor * features(seed=1)), map(features(seed=1)))


def test_a_power_draws_activations_together_and_keeps_their_sign() -> None:
    map = FeatureMap(2, FeatureMapping(0.5, 2))  # not fitted: neither moved nor turned
    z = map(torch.tensor([[16.0, -1.0], [0.0, 4.0]]))
    torch.testing.assert_close(z[0, 0] / z[0, 1], torch.tensor(-4.0))
    torch.testing.assert_close(z[1], torch.tensor([0.0, 2**0.5]))


def test_fitting_is_deterministic() -> None:
    state = torch.get_rng_state()
    first, second = fitted(), fitted()
    assert torch.equal(first.basis, second.basis) and torch.equal(first.mean, second.mean)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("power", "width"), [(0.0, 4), (-1.0, 4), (1.1, 4), (float("nan"), 4), (0.5, 0), (0.5, -3)]
)
def test_powers_and_widths_out_of_range_are_refused(power: float, width: int) -> None:
    with pytest.raises(InputError, match="must lie in"):
        FeatureMapping(power, width)


def test_a_bank_is_mapped_feature_by_feature() -> None:
    bank = FeatureBank(features(6), torch.tensor([0, 4, 6]), ("a", "b"))
    mapped = fitted().bank(bank)
    assert torch.equal(mapped.features, fitted()(bank.features)) and mapped.width == 4
    assert torch.equal(mapped.offsets, bank.offsets) and mapped.classes == bank.classes


# Mapped backbones.


def mapped(net: Backbone) -> tuple[Backbone, FeatureMap]:
    seen = net.features(pixels(40, 1, 28, 28))
    map = FeatureMap(seen.shape[1], FeatureMapping(width=5)).fit(seen)
    return net.mapped(map), map


@pytest.mark.parametrize("flip", [False, True])
def test_a_mapped_backbone_gives_the_mapped_features(flip: bool) -> None:
    """Of both views together, where there are two: as the map was fitted."""
    net = conv(flip=flip)
    out, map = mapped(net)
    x = pixels(9, 1, 28, 28)
    torch.testing.assert_close(out.features(x), map(net.features(x)))
    assert out.features(x).shape == (9, 5)


@pytest.mark.parametrize("flip", [False, True])
def test_a_saved_mapped_backbone_is_the_same(flip: bool, tmp_path: Path) -> None:
    out, _ = mapped(conv(flip=flip))
    out.save(tmp_path)
    again = Backbone.load(tmp_path)
    x = pixels(9, 1, 28, 28)
    assert again.fingerprint == out.fingerprint and again.config == out.config
    assert torch.equal(again.features(x), out.features(x))


def test_a_map_changes_the_fingerprint_and_keeps_the_precision() -> None:
    net = conv()
    spared = Backbone(net.net, net.transform, {**net.config, "precision": "float32"})
    out, map = mapped(net)
    assert out.fingerprint != net.fingerprint
    other = FeatureMap(len(map.mean), FeatureMapping(width=5))  # not fitted
    assert net.mapped(other).fingerprint != out.fingerprint
    assert (spared.mapped(map).precision, out.precision) == ("float32", "auto")
