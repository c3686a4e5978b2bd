"""`ltdi.nets.direct`: gradients of the C code are those of double precision."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.nets import NetConfig, SmallNet, net_space
from ltdi.nets.direct import Direct, grouped, library
from ltdi.nets.grouped import Grouped

compiled = pytest.mark.skipif(library() is None, reason="NETS IN C NOT TESTED: no cc, nor CC")

# Pixels that no window sees; three channels; windows side by side; one layer and one group; many.
CONFIGS = {
    "default": NetConfig(),
    "colours": NetConfig(3, 11, (8, 4), (3, 2), (2, 1)),
    "apart": NetConfig(1, 9, (4, 8), (2, 3), (2, 3), groups=2),
    "one layer": NetConfig(1, 7, (6,), (5,), (1,), groups=1),
    "own groups": NetConfig(1, 12, (3, 3), (3, 1), (1, 2), groups=3),
    # One vector more than whole pairs, and channels that fill none; even kernels; every stride.
    "wide": NetConfig(3, 10, (48, 20, 17), (2, 4, 3), (1, 2, 3), groups=1),
    "strides of one": NetConfig(1, 8, (4, 8, 4), (3, 3, 3), (1, 1, 1)),
    "one channel": NetConfig(3, 12, (4, 1), (5, 3), (2, 2), groups=1),
    "one channel of one layer": NetConfig(1, 6, (1,), (3,), (2,), groups=1),
    "one position": NetConfig(1, 3, (8, 4), (5, 3), (1, 1), groups=2),
}


@pytest.fixture
def compilers() -> Iterator[None]:
    """Lets a test look for a compiler anew."""
    library.cache_clear()
    yield
    library.cache_clear()


def drawn(config: NetConfig, nets: int = 3, images: int = 4) -> tuple[list[Tensor], Tensor, Tensor]:
    """Parts, images and targets in double precision."""
    rng = torch.Generator().manual_seed(0)
    space = net_space(config, 3)
    theta = 0.3 * torch.randn(nets, space.size, generator=rng, dtype=torch.float64)
    parts = [x.contiguous() for x in Grouped(config).parts(space.unflatten(theta))]
    x = torch.rand(
        nets, images, config.channels, config.size, config.size, generator=rng, dtype=torch.float64
    )
    target = torch.rand(nets, images, 3, generator=rng, dtype=torch.float64).softmax(2)
    return parts, x, target


def turned(parts: list[Tensor]) -> list[Tensor]:
    """Parts of `Grouped` as single precision and `Direct` have them."""
    return [p.float().movedim(1, -1).contiguous() for p in parts]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference of a part, in units of the gradient."""
    size = max(x.norm().item() for x in expected)
    return max((a - b).norm().item() for a, b in zip(found, expected, strict=True)) / size


@compiled
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_in_single_precision_are_those_in_double(name: str, weighted: bool):
    config = CONFIGS[name]
    parts, x, target = drawn(config)
    share = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64).expand(3, 4).unsqueeze(2)
    plain = Grouped(config)
    given = share if weighted else None
    expected = plain.gradient(parts, plain.enter(x), target, given)
    share, image, aim = share.float(), x.float(), target.float()
    given = share if weighted else None
    nets, single = Direct(config), turned(parts)
    found = nets.gradient(single, nets.enter(image), aim, given)
    assert [f.shape for f in found] == [p.shape for p in single]
    back = [f.movedim(-1, 1) for f in found]
    other = plain.gradient([p.float() for p in parts], plain.enter(image), aim, given)
    error, usual = distance(back, expected), distance(other, expected)
    assert error < 2e-6 or error < usual
    assert error < 2 * usual + 1e-7
    torch.testing.assert_close(
        nets.logits(single, nets.enter(image)).double(),
        plain.logits(parts, plain.enter(x)),
        rtol=1e-4,
        atol=2e-5,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_torchs_operations_are_autograds(name: str):
    config = CONFIGS[name]
    parts, x, target = drawn(config)
    plain = Grouped(config)
    found = plain.whole(plain.gradient(parts, plain.enter(x), target))
    weights = plain.whole(parts)
    for e in range(len(x)):
        net = SmallNet(config, 3).double()
        net.load_state_dict({k: w[e] for k, w in weights.items()})
        F.cross_entropy(net(x[e]), target[e]).backward()
        for k, p in net.named_parameters():
            torch.testing.assert_close(found[k][e], p.grad)


@compiled
@pytest.mark.parametrize("images", [1, 31, 33, 70])
def test_any_number_of_images_goes_through_a_net(images: int):
    """Some go together; the last of them are fewer."""
    config = CONFIGS["colours"]
    parts, x, target = drawn(config, nets=2, images=images)
    plain, nets = Grouped(config), Direct(config)
    expected = plain.gradient(parts, plain.enter(x), target)
    found = nets.gradient(turned(parts), nets.enter(x.float()), target.float())
    assert distance([f.movedim(-1, 1) for f in found], expected) < 2e-6


@compiled
def test_weights_and_their_parts_are_one():
    config = CONFIGS["wide"]
    space = net_space(config, 3)
    theta = torch.arange(2.0 * space.size).view(2, -1)
    nets = Direct(config)
    whole = nets.whole([p.contiguous() for p in nets.parts(space.unflatten(theta))])
    assert torch.equal(space.flatten(whole), theta)


@compiled
def test_no_nets_and_no_images_are_nothing():
    config = CONFIGS["colours"]
    parts, x, _ = drawn(config, nets=1, images=1)
    nets = Direct(config)
    seen = nets.enter(x.float())
    none = [p[:0] for p in turned(parts)]
    assert nets.logits(none, seen[:0]).shape == (0, 1, 3)
    assert nets.logits(turned(parts), seen[..., :0]).shape == (1, 0, 3)


@compiled
def test_a_target_of_all_nets_is_each_nets():
    parts, x, target = drawn(CONFIGS["colours"])
    single, nets = turned(parts), Direct(CONFIGS["colours"])
    seen, target = nets.enter(x.float()), target[0].float()
    shared = nets.gradient(single, seen, target)
    own = nets.gradient(single, seen, target.expand(3, -1, -1))
    assert all(torch.equal(a, b) for a, b in zip(shared, own, strict=True))


@compiled
def test_windows_that_were_entered_can_be_used_again():
    parts, x, target = drawn(CONFIGS["default"])
    single, nets = turned(parts), Direct(CONFIGS["default"])
    seen = nets.enter(x.float())
    found = [nets.gradient(single, seen, target.float()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_net_that_diverged_shows_and_spoils_no_other(bad: float):
    parts, x, target = drawn(CONFIGS["default"])
    single, nets = turned(parts), Direct(CONFIGS["default"])
    seen = nets.enter(x.float())
    clean = nets.gradient(single, seen, target.float())
    single[0][1, 2, 2, 0, 0] = bad
    assert nets.logits(single, seen)[1].isnan().any()
    for found, expected in zip(nets.gradient(single, seen, target.float()), clean, strict=True):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])


@compiled
def test_which_way_is_taken():
    assert isinstance(grouped(NetConfig(), torch.empty(1)), Direct)
    for other in (torch.empty(1, dtype=torch.float64), torch.empty(1, device="meta")):
        assert not isinstance(grouped(NetConfig(), other), Direct)


@pytest.mark.parametrize("compiler", ["", "no-such-compiler", "false", "'cc"])
def test_without_a_compiler_convolutions_are_torchs(
    compiler: str, monkeypatch: pytest.MonkeyPatch, compilers: None
):
    monkeypatch.setenv("CC", compiler)
    assert library() is None
    assert not isinstance(grouped(NetConfig(), torch.empty(1)), Direct)


def test_without_a_place_to_compile_convolutions_are_torchs(
    monkeypatch: pytest.MonkeyPatch, compilers: None
):
    def none(**_: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("ltdi.nets.direct.TemporaryDirectory", none)
    assert library() is None


@compiled
def test_a_compiler_may_have_options(monkeypatch: pytest.MonkeyPatch, compilers: None):
    monkeypatch.setenv("CC", f"{os.environ.get('CC', 'cc')} -DNOTHING")
    assert library() is not None


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.float64])
def test_memory_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    """The C code is given addresses: half as many bytes would be read beyond their end."""
    parts, x, target = drawn(CONFIGS["colours"])
    single, nets = turned(parts), Direct(CONFIGS["colours"])
    seen = nets.enter(x.float())
    for given in (([*single[:-1], single[-1].to(dtype)], seen), (single, seen.to(dtype))):
        with pytest.raises(TypeError, match="float32"):
            nets.gradient(*given, target.float())
    # Rows that do not lie side by side are read all the same.
    apart = [p.float().movedim(1, -1) for p in parts]
    for found, expected in zip(
        nets.gradient(apart, seen, target.float()),
        nets.gradient(single, seen, target.float()),
        strict=True,
    ):
        assert torch.equal(found, expected)
