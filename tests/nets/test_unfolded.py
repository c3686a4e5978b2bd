"""`ltdi.nets.unfolded`: products of windows are grouped convolutions, and more exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ltdi.nets import NetConfig, net_space
from ltdi.nets.grouped import Grouped
from ltdi.nets.unfolded import Unfolded, grouped
from ltdi.nets.windows import Windows, library

compiled = pytest.mark.skipif(library() is None, reason="WINDOWS IN C NOT TESTED: no cc, nor CC")

# Pixels that no window sees; three channels; windows side by side; one layer and one group; many.
CONFIGS = {
    "default": NetConfig(),
    "colours": NetConfig(3, 11, (8, 4), (3, 2), (2, 1)),
    "apart": NetConfig(1, 9, (4, 8), (2, 3), (2, 3), groups=2),
    "one layer": NetConfig(1, 7, (6,), (5,), (1,), groups=1),
    "own groups": NetConfig(1, 12, (3, 3), (3, 1), (1, 2), groups=3),
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
    single, share = [p.float() for p in parts], share.float()
    given = share if weighted else None
    errors = []
    for nets in (Unfolded(config), plain):
        found = nets.gradient(single, nets.enter(x.float()), target.float(), given)
        assert [f.shape for f in found] == [p.shape for p in parts]
        assert all(f.is_contiguous() for f in found)
        errors.append(distance(found, expected))
    assert errors[0] < 2e-6 and errors[0] < 2 * errors[1] + 1e-7
    unfolded = Unfolded(config)
    logits = unfolded.logits(single, unfolded.enter(x.float()))
    torch.testing.assert_close(
        logits.double(), plain.logits(parts, plain.enter(x)), rtol=1e-4, atol=1e-5
    )


@compiled
def test_a_target_of_all_nets_is_each_nets():
    parts, x, target = drawn(CONFIGS["colours"])
    single, nets = [p.float() for p in parts], Unfolded(CONFIGS["colours"])
    seen, target = nets.enter(x.float()), target[0].float()
    shared = nets.gradient(single, seen, target)
    own = nets.gradient(single, seen, target.expand(3, -1, -1))
    assert all(torch.equal(a, b) for a, b in zip(shared, own, strict=True))


@compiled
def test_windows_that_were_entered_can_be_used_again():
    parts, x, target = drawn(CONFIGS["default"])
    single, nets = [p.float() for p in parts], Unfolded(CONFIGS["default"])
    seen = nets.enter(x.float())
    found = [nets.gradient(single, seen, target.float()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_net_that_diverged_shows_and_spoils_no_other(bad: float):
    parts, x, target = drawn(CONFIGS["default"])
    single, nets = [p.float() for p in parts], Unfolded(CONFIGS["default"])
    seen = nets.enter(x.float())
    clean = nets.gradient(single, seen, target.float())
    single[0][1, 0, 2, 2, 0] = bad
    assert nets.logits(single, seen)[1].isnan().any()
    for found, expected in zip(nets.gradient(single, seen, target.float()), clean, strict=True):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])


@compiled
def test_which_way_is_taken():
    assert isinstance(grouped(NetConfig(), torch.empty(1)), Unfolded)
    for other in (torch.empty(1, dtype=torch.float64), torch.empty(1, device="meta")):
        assert not isinstance(grouped(NetConfig(), other), Unfolded)


@pytest.mark.parametrize("compiler", ["", "no-such-compiler", "false"])
def test_without_a_compiler_convolutions_are_torchs(
    compiler: str, monkeypatch: pytest.MonkeyPatch, compilers: None
):
    monkeypatch.setenv("CC", compiler)
    assert library() is None
    assert not isinstance(grouped(NetConfig(), torch.empty(1)), Unfolded)


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.float64])
def test_memory_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    """The C code is given addresses: half as many bytes would be read beyond their end."""
    x = torch.zeros(1, 7, 7, 1)
    windows = Windows(7, 1, 0, 5, 1, 2)
    windows.forward(x, x)
    for y in (x.to(dtype), x.expand(2, -1, -1, -1)):
        with pytest.raises(TypeError, match="contiguous float32"):
            windows.forward(y, x)
