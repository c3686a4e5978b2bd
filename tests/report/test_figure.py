"""`ltdi.report.figure`: the plane is the one claimed, the files are pictures of a sensible size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ltdi.errors import InputError
from ltdi.report import Chain, plot_chains, plot_curves, principal_plane
from ltdi.report.figure import _View

few = settings(max_examples=12, deadline=None, derandomize=True)


def quadratic(centre: Tensor) -> Callable[[Tensor], Tensor]:
    """A convex loss with its minimum, 0.1, at the centre."""
    return lambda theta: 0.1 + (theta - centre).square().sum(-1)


def chain(seed: int = 0, n: int = 12, steps: int = 6) -> Chain:
    rng = torch.Generator().manual_seed(seed)
    start, noise, end = torch.randn(3, n, generator=rng)
    s = torch.linspace(0, 1, steps + 1).unsqueeze(1)
    path = start + (end - start) * torch.tensor([[0.4], [0.8], [1.0]])
    return Chain((1 - s) * noise + s * end, path, quadratic(end), f"task {seed}")


@given(st.integers(0, 99), st.integers(2, 30), st.integers(3, 9))
@few
def test_planar_points_are_reconstructed(seed: int, n: int, m: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    basis = torch.randn(2, n, generator=rng).double()
    points = torch.randn(m, 2, generator=rng).double() @ basis + torch.randn(n, generator=rng)
    plane = principal_plane(points)
    torch.testing.assert_close(plane.lift(plane.project(points)), points)
    torch.testing.assert_close(plane.share.sum(), torch.ones((), dtype=torch.double))
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.double))


@given(st.integers(0, 99))
@few
def test_projection_is_a_left_inverse_and_the_nearest_point(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(8, 20, generator=rng)
    plane = principal_plane(points)
    flat = torch.randn(5, 2, generator=rng).double()
    torch.testing.assert_close(plane.project(plane.lift(flat)), flat)
    rest = points.double() - plane.lift(plane.project(points))
    torch.testing.assert_close(rest @ plane.axes.T, torch.zeros(8, 2, dtype=torch.double))


@given(st.integers(0, 99))
@few
def test_the_plane_does_not_depend_on_the_order_of_points(seed: int) -> None:
    points = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    one, other = principal_plane(points), principal_plane(points.flip(0))
    torch.testing.assert_close(one.axes, other.axes)
    assert one.share[0] >= one.share[1]


def test_points_on_a_line_still_have_a_plane() -> None:
    points = torch.outer(torch.arange(4.0), torch.ones(3))
    plane = principal_plane(points)
    torch.testing.assert_close(plane.lift(plane.project(points)), points.double())
    torch.testing.assert_close(plane.share, torch.tensor([1.0, 0.0], dtype=torch.double))


@pytest.mark.parametrize(
    "points", [torch.zeros(1, 5), torch.zeros(4, 1), torch.full((3, 3), torch.nan), torch.zeros(3)]
)
def test_points_without_a_plane_are_refused(points: Tensor) -> None:
    with pytest.raises(InputError, match="a plane needs finite points"):
        principal_plane(points)


def test_chain_and_path_lie_inside_the_view() -> None:
    view = _View.of(chain(), 20)
    for points in (view.chain, view.path):
        assert (points[:, 0] > view.x[0]).all() and (points[:, 0] < view.x[-1]).all()
        assert (points[:, 1] > view.y[0]).all() and (points[:, 1] < view.y[-1]).all()


def test_the_drawn_loss_is_the_loss_of_the_lifted_plane() -> None:
    task = chain()
    view = _View.of(task, 15)
    here = view.plane.lift(torch.tensor([[view.x[4], view.y[9]]])).float()
    np.testing.assert_allclose(view.relief[9, 4] * view.low, float(task.loss(here)), rtol=1e-4)
    assert view.relief.min() == 1


def check_picture(path: Path) -> Image.Image:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert 5_000 < path.stat().st_size < 300_000
    picture = Image.open(path)
    assert all(400 < side < 3000 for side in picture.size)
    return picture


def test_figure_of_three_chains(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / name for name in ("a.png", "b.png")]
    for path in paths:
        plot_chains(path, [chain(seed) for seed in range(3)])
    picture = check_picture(paths[0])
    assert picture.width > 2 * picture.height
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    "loss",
    [
        lambda theta: theta[:, 0] * 0,
        lambda theta: theta[:, 0].log(),
        lambda theta: 1e30 * theta.square().sum(-1),
    ],
    ids=["zero", "undefined", "huge"],
)
def test_losses_that_cannot_be_contoured_are_drawn_all_the_same(
    tmp_path: Path, loss: Callable[[Tensor], Tensor]
) -> None:
    task = chain(steps=1)
    plot_chains(tmp_path / "a.png", [Chain(task.theta, task.trajectory, loss)], grid=12)
    check_picture(tmp_path / "a.png")


def test_curves(tmp_path: Path) -> None:
    x = [1, 2, 5, 10, 20]
    curves = {f"method {i}": (x, [0.1 * i + 0.01 * v for v in x], [0.02] * 5) for i in range(9)}
    plot_curves(tmp_path / "curves.png", curves, "steps", "accuracy")
    check_picture(tmp_path / "curves.png")


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no chain"):
        plot_chains(tmp_path / "a.png", [])
    with pytest.raises(InputError, match="no curve"):
        plot_curves(tmp_path / "a.png", {}, "x", "y")
    assert not any(tmp_path.iterdir())
