"""`ltdi.denoiser.DomainDenoiser`: it starts as its anchor, reads the pool, and knows no order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi.anchor.domain import Scene
from ltdi.crossdomain import head_of, make_anchor
from ltdi.denoiser import DomainDenoiser, DomainGuide, DomainWalk, Guide
from ltdi.errors import InputError
from ltdi.weights import head_space
from tests.domains import make_domains

DOMAINS = make_domains()
SPACE = head_space(12, 4)


def network(fresh: bool = False) -> DomainDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DomainDenoiser(steps=20, width=16, depth=1, heads=2)
        if not fresh:
            for p in net.write.parameters():
                torch.nn.init.normal_(p, std=0.2)
    return net.eval().requires_grad_(False)


def example() -> tuple[torch.Tensor, torch.Tensor, DomainGuide]:
    """Support, its mask, and all that is known of five tasks."""
    target = DOMAINS[-1]
    tasks = target.episodes(4, 2, 5, 5, 0)
    anchor = make_anchor(DOMAINS[:3], 0.3, head_of(DOMAINS[:3])).changed(blend=1.0)
    seen = anchor.at(target.pool, tasks.classes)
    z = seen.frame(12).enter(target.bank.features[tasks.support])
    mask = torch.ones(z.shape[:3])
    start, scene = seen.look(z, mask, SPACE)
    between = seen.frame(12).between.expand(5, -1)
    return z, mask, DomainGuide(start, between, torch.full((5,), 0.3), torch.ones(5), scene)


def predict(net, x, z, mask, guide):
    t = torch.full((5,), 3)
    return net.denoise(x, t, net.encode(z, mask), SPACE, guide).unflatten(-1, (4, 13))


X = torch.randn(5, SPACE.size, generator=torch.Generator().manual_seed(1))


def test_a_fresh_network_is_its_anchor():
    z, mask, guide = example()
    out = predict(network(fresh=True), X, z, mask, guide)
    torch.testing.assert_close(out, torch.zeros_like(out))


def test_everything_known_of_the_domain_matters():
    z, mask, guide = example()
    net, out = network(), None
    out = predict(net, X, z, mask, guide)
    for name, value in vars(guide.scene).items():
        scene = replace(guide.scene, **{name: 0.7 * value + 0.2})
        moved = predict(net, X, z, mask, replace(guide, scene=scene)) - out
        assert moved.abs().amax((1, 2)).min() > 1e-6, name


def test_permuting_classes_permutes_rows():
    z, mask, guide = example()
    order = torch.tensor([2, 0, 3, 1])
    net = network()
    out = predict(net, X, z, mask, guide)

    def moved(flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(-1, (4, 13))[:, order].flatten(1)

    s = guide.scene
    scene = replace(s, prior=s.prior[:, order], lean=s.lean[:, order])
    other = replace(guide, anchor=moved(guide.anchor), scene=scene)
    permuted = predict(net, moved(X), z[:, order], mask, other)
    torch.testing.assert_close(permuted, out[:, order], atol=1e-4, rtol=1e-4)


def test_the_order_of_the_pool_and_of_the_other_classes_does_not_matter():
    z, mask, guide = example()
    net, s = network(), guide.scene
    turned = Scene(s.pool.flip(1), s.prior, s.others.flip(1), s.absent.flip(1), s.lean, s.scale)
    torch.testing.assert_close(
        predict(net, X, z, mask, replace(guide, scene=turned)),
        predict(net, X, z, mask, guide),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_of_a_walk_is_that_of_the_network(padded: bool):
    """With everything shared worked out before, for whole supports and for padded ones."""
    z, mask, guide = example()
    if padded:
        mask = mask.clone()
        mask[:, 1, 1] = 0
    net = network()
    code, pace = (
        net.encode(z, mask),
        net.pace(torch.tensor([3]), guide.signal[:1], guide.stage[:1], 4),
    )
    told = [tuple(part[0, 0] for part in block) for block in pace]
    step = DomainWalk(net, code, guide).step(X, 0.3, told).unflatten(-1, (4, 13))
    torch.testing.assert_close(step, predict(net, X, z, mask, guide), atol=1e-5, rtol=1e-5)


def test_it_needs_a_scene():
    z, mask, guide = example()
    plain = Guide(guide.anchor, guide.between, guide.signal, guide.stage)
    with pytest.raises(InputError, match="needs the scene"):
        predict(network(), X, z, mask, plain)
