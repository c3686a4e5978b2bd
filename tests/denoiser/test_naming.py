"""`ltdi.denoiser.naming`: symmetries, and where it starts."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.denoiser import Guide, NamedCode, NamingDenoiser
from ltdi.weights import head_space

B, WAY, D, N = 2, 5, 6, 30


def network(trained: bool = True) -> NamingDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NamingDenoiser(steps=4, width=16, depth=1, heads=2)
        if trained:
            torch.nn.init.normal_(net.write.weight, std=0.3)
    return net.eval()


def task(seed: int = 0) -> tuple[NamedCode, Guide, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    code = NamedCode(
        torch.randn(B, WAY, D, generator=rng),
        torch.rand(B, WAY, generator=rng),
        torch.randn(B, N, D, generator=rng),
        torch.ones(B, N),
    )
    start = torch.randn(B, WAY * (D + 1), generator=rng)
    guide = Guide(start, torch.ones(B, D), torch.full((B,), 0.7), torch.ones(B))
    return code, guide, torch.randn(B, WAY * (D + 1), generator=rng)


@torch.no_grad()
def run(net: NamingDenoiser, code: NamedCode, guide: Guide, x: Tensor) -> Tensor:
    out: Tensor = net(x, torch.full((B,), 2), code, head_space(D, WAY), guide)
    return out.unflatten(-1, (WAY, D + 1))


def test_a_fresh_network_predicts_the_start() -> None:
    assert not run(network(trained=False), *task()).any()


def test_permuting_the_classes_permutes_the_rows() -> None:
    code, guide, x = task()
    turn = torch.tensor([2, 0, 4, 1, 3])

    def rows(theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (WAY, D + 1))[:, turn].flatten(1)

    moved = NamedCode(code.mean[:, turn], code.certainty[:, turn], code.pool, code.mask)
    other = Guide(rows(guide.anchor), guide.between, guide.signal, guide.stage)
    net = network()
    torch.testing.assert_close(
        run(net, moved, other, rows(x)), run(net, code, guide, x)[:, turn], rtol=1e-4, atol=1e-5
    )


def test_rotating_the_features_rotates_the_rows() -> None:
    code, guide, x = task()
    rng = torch.Generator().manual_seed(5)
    q = torch.linalg.qr(torch.randn(D, D, generator=rng)).Q

    def turn(theta: Tensor) -> Tensor:
        r = theta.unflatten(-1, (WAY, D + 1))
        return torch.cat([r[..., :-1] @ q, r[..., -1:]], -1).flatten(1)

    moved = NamedCode(code.mean @ q, code.certainty, code.pool @ q, code.mask)
    other = Guide(turn(guide.anchor), guide.between, guide.signal, guide.stage)
    net = network()
    torch.testing.assert_close(
        run(net, moved, other, turn(x)).flatten(1),
        turn(run(net, code, guide, x).flatten(1)),
        rtol=1e-3,
        atol=1e-4,
    )


def test_masked_images_are_not_seen() -> None:
    code, guide, x = task()
    mask = torch.ones(B, N)
    mask[:, 20:] = 0
    far = torch.where(mask.unsqueeze(-1) > 0, code.pool, torch.tensor(7.0))
    short = NamedCode(code.mean, code.certainty, code.pool[:, :20], mask[:, :20])
    masked = NamedCode(code.mean, code.certainty, far, mask)
    net = network()
    torch.testing.assert_close(
        run(net, short, guide, x), run(net, masked, guide, x), rtol=1e-4, atol=1e-5
    )


def test_names_alone_are_enough() -> None:
    code, guide, x = task()
    alone = NamedCode(code.mean, code.certainty, code.pool[:, :0], code.mask[:, :0])
    assert run(network(), alone, guide, x).isfinite().all()
