"""`ltdi.analysis`: spectra are those of the dense Hessian; bounds hold where they are said to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.convergence import DECAYS, FORMS, LAMBDAS, Heads, bound_rows, main, slope_rows
from ltdi.analysis import (
    ConvergenceBound,
    classification_loss,
    convergence_bound,
    curvature_within,
    lanczos,
    largest_eigenvalue,
    softmax_smoothness,
)
from ltdi.collect import HeadPredictor, module_predictor
from ltdi.errors import DivergedError, InputError
from ltdi.weights import WeightSpace, head_space

SEEDS = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.double)


def quadratic(theta: Tensor, matrix: Tensor) -> Tensor:
    return 0.5 * theta @ matrix @ theta


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """Matrices [B, n, n] with eigenvalues [B, n] in random directions."""
    basis = torch.linalg.qr(normal(*values.shape, values.shape[-1], seed=seed)).Q
    return basis @ torch.diag_embed(values) @ basis.mT


def dense(loss: Callable[..., Tensor], theta: Tensor, *data: Tensor) -> Tensor:
    """[B, n, n] by torch's double backward, one task after the other."""
    tasks = zip(theta, *data, strict=True)
    return torch.stack(
        [
            torch.autograd.functional.hessian(lambda x, rest=rest: loss(x, *rest), first)
            for first, *rest in tasks
        ]
    )


# Spectra


@settings(max_examples=20)
@given(
    st.integers(1, 4).flatmap(
        lambda tasks: st.integers(1, 8).flatmap(
            lambda n: st.lists(
                # Whole numbers make repeated eigenvalues, zero and both signs likely.
                st.lists(st.integers(-5, 5).map(float), min_size=n, max_size=n),
                min_size=tasks,
                max_size=tasks,
            )
        )
    ),
    SEEDS,
)
def test_n_steps_give_the_whole_spectrum_of_a_quadratic(eigenvalues: list[list[float]], seed: int):
    values = torch.tensor(eigenvalues, dtype=torch.double).sort(-1).values
    matrix, theta = symmetric(values, seed), normal(*values.shape, seed=seed + 1)
    found = lanczos(quadratic, theta, matrix, rng=generator(seed))
    torch.testing.assert_close(found.values, values, atol=1e-9, rtol=0)
    image = (matrix @ found.vectors.mT).mT
    torch.testing.assert_close(image, found.values[..., None] * found.vectors, atol=1e-8, rtol=0)
    eye = torch.eye(values.shape[-1]).double().expand(len(values), -1, -1)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, eye, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_the_largest_eigenvalue_is_algebraic_not_in_magnitude(dtype: torch.dtype):
    values = torch.linspace(-100.0, 1.0, 30, dtype=torch.double).repeat(3, 1)
    values[1] = torch.linspace(-100.0, -90.0, 30)  # no eigenvalue is positive
    values[2] = torch.linspace(-1.0, 2.0, 30)
    matrix, theta = symmetric(values).to(dtype), normal(3, 30).to(dtype)
    found = largest_eigenvalue(quadratic, theta, matrix, rng=generator())
    assert found.dtype == dtype
    wanted = torch.tensor([1.0, -90.0, 2.0], dtype=dtype)
    torch.testing.assert_close(found, wanted, atol=100 * 20 * torch.finfo(dtype).eps, rtol=0)


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 11))
def test_few_steps_stay_inside_the_spectrum_and_know_how_far_off_they_are(seed: int, steps: int):
    values = normal(3, 12, seed=seed).sort(-1).values
    matrix, theta = symmetric(values, seed + 1), torch.zeros(3, 12).double()
    found = lanczos(quadratic, theta, matrix, iterations=steps, rng=generator(seed))
    assert found.values.shape == found.residual.shape == (3, steps)
    assert bool((found.values[:, -1] <= values[:, -1] + 1e-9).all())
    assert bool((found.values[:, 0] >= values[:, 0] - 1e-9).all())
    image = (matrix @ found.vectors.mT).mT - found.values[..., None] * found.vectors
    torch.testing.assert_close(image.norm(dim=-1), found.residual, atol=1e-8, rtol=1e-6)
    nearest = (found.values[..., None] - values[:, None]).abs().amin(-1)
    assert bool((nearest <= found.residual + 1e-8).all())
    # One more step searches a larger space.
    more = largest_eigenvalue(quadratic, theta, matrix, iterations=steps + 1, rng=generator(seed))
    assert bool((more >= found.values[:, -1] - 1e-9).all())


def test_a_linear_loss_has_no_curvature_and_an_isotropic_one_the_same_everywhere():
    theta = normal(2, 6)
    flat = lanczos(lambda x: x.sum(), theta, rng=generator())
    assert torch.equal(flat.values, torch.zeros(2, 6).double())
    round_ = lanczos(lambda x: 1.5 * x.square().sum(), theta, rng=generator())
    torch.testing.assert_close(round_.values, torch.full((2, 6), 3.0).double())


@settings(max_examples=20)
@given(SEEDS, st.floats(0, 1), st.integers(2, 4))
def test_heads_agree_with_the_dense_hessian(seed: int, decay: float, way: int):
    features, space = 3, head_space(3, way)
    theta, x = normal(3, space.size, seed=seed), normal(3, 10, features, seed=seed + 1)
    y = torch.arange(10).remainder(way).expand(3, -1)

    def plain(row: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        head = space.unflatten(row)
        loss = F.cross_entropy(F.linear(inputs, head["weight"], head["bias"]), labels)
        return loss + 0.5 * decay * row.square().sum()

    loss = classification_loss(HeadPredictor(space), decay)
    wanted = torch.linalg.eigvalsh(dense(plain, theta, x, y))
    found = lanczos(loss, theta, x, y, rng=generator(seed))
    torch.testing.assert_close(found.values, wanted, atol=1e-9, rtol=0)


def test_a_small_network_has_both_signs_and_both_ends_are_found():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    space = WeightSpace.from_module(module)
    theta, x = normal(4, space.size), normal(4, 9, 3, seed=1)
    y = torch.arange(9).remainder(3).expand(4, -1)
    loss = classification_loss(module_predictor(module, space))
    wanted = torch.linalg.eigvalsh(dense(loss, theta, x, y))
    assert bool((wanted[:, 0] < -0.01).all())
    found = lanczos(loss, theta, x, y, iterations=25, rng=generator())
    torch.testing.assert_close(found.values[:, -1], wanted[:, -1], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.values[:, 0], wanted[:, 0], atol=1e-5, rtol=0)


def test_what_cannot_be_measured_is_refused():
    theta = normal(3, 4)
    theta[2, 1] = float("nan")
    with pytest.raises(DivergedError, match=r"1 of 3 tasks .* task 2"):
        lanczos(lambda x: x.pow(4).sum(), theta, rng=generator())
    for wrong, iterations in ((theta[0], 5), (theta[:, :0], 5), (theta, 0)):
        with pytest.raises(InputError, match="at least 1"):
            lanczos(lambda x: x.square().sum(), wrong, iterations=iterations, rng=generator())


# Smoothness of heads


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 5), st.floats(0.01, 30), st.floats(0, 1))
def test_no_head_is_sharper_than_l(seed: int, way: int, scale: float, decay: float):
    x = normal(2, 8, 3, seed=seed)
    space, y = head_space(3, way), torch.arange(8).remainder(way).expand(2, -1)
    theta = scale * normal(2, space.size, seed=seed + 1)
    loss = classification_loss(HeadPredictor(space), decay)
    lam = largest_eigenvalue(loss, theta, x, y, rng=generator(seed))
    assert bool((lam <= softmax_smoothness(x, decay) * (1 + 1e-9)).all())


def test_an_undecided_head_of_two_classes_is_as_sharp_as_l():
    x, space = normal(3, 8, 4), head_space(4, 2)
    y = torch.arange(8).remainder(2).expand(3, -1)
    loss = classification_loss(HeadPredictor(space), 0.2)
    lam = largest_eigenvalue(loss, torch.zeros(3, space.size).double(), x, y, rng=generator())
    torch.testing.assert_close(lam, softmax_smoothness(x, 0.2))


@pytest.fixture(scope="module")
def worlds() -> list[Heads]:
    return [Heads.draw(decay, 2, generator(i)) for i, decay in enumerate(DECAYS)]


def test_the_solved_heads_are_at_their_minimum(worlds: list[Heads]):
    for heads in worlds:
        assert float(heads.slope(heads.best).norm(dim=-1).max()) < 1e-10
        away = heads.excess(heads.best + 1e-3 * normal(*heads.best.shape))
        assert bool((away > 0).all())


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_curvature_within_reach_bounds_the_loss_and_far_away_it_must(
    worlds: list[Heads], radius: float
):
    exceeded = 0
    for heads in worlds:
        lam = curvature_within(
            heads.curvature, heads.features, torch.full_like(heads.least, radius)
        )
        for sign in (-1, 1):
            excess = heads.excess(heads.best + sign * radius * heads.sharpest)
            assert bool((excess <= 0.5 * lam * radius**2 + 1e-14).all())
            exceeded += int((excess > 0.5 * heads.curvature * radius**2 + 1e-14).sum())
    assert exceeded > 0  # the curvature at theta* alone would not have done


def test_curvature_within_no_reach_is_lambda_and_grows_without_a_step(worlds: list[Heads]):
    heads = worlds[0]
    zero = torch.zeros_like(heads.least)
    assert torch.equal(curvature_within(heads.curvature, heads.features, zero), heads.curvature)
    reach = 0.01 / (2 * (heads.features.square().sum(-1) + 1).amax(-1)).sqrt()  # s = 0.01
    below, above = (
        curvature_within(heads.curvature, heads.features, f * reach) for f in (1 - 1e-6, 1 + 1e-6)
    )
    assert bool((below < above).all())
    torch.testing.assert_close(below, above, rtol=1e-7, atol=0)


# The bound


def bound(**changes: float) -> ConvergenceBound:
    values = {
        "curvature": 2.0,
        "error": 0.5,
        "gap": 3.0,
        "mu": 0.1,
        "smoothness": 4.0,
        "steps": 7,
    } | changes
    steps = int(values.pop("steps"))
    return convergence_bound(
        **{k: torch.tensor([v], dtype=torch.double) for k, v in values.items()}, steps=steps
    )


def test_special_cases_of_the_bound():
    exact = bound(error=0.0)
    for form in FORMS:
        torch.testing.assert_close(getattr(exact, form), exact.distance)  # lambda / 2 = 1
        double = getattr(bound(curvature=4.0), form)
        torch.testing.assert_close(double, 2 * getattr(bound(), form))
    assert float(bound(steps=0).distance) == pytest.approx(2 * 3.0 / 0.1)
    torch.testing.assert_close(bound(steps=0).product, bound(steps=0).unbiased)
    # Gradient descent on an isotropic loss arrives in one step: only the error is left, or not.
    arrived = bound(mu=4.0, steps=1)
    assert float(arrived.triangle) == pytest.approx(0.5)
    assert float(arrived.unbiased) == pytest.approx(0.5)
    assert float(arrived.product) == 0
    far = bound(steps=100_000)
    assert float(far.triangle) == pytest.approx(0.5)
    assert float(far.product) < 1e-12


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0.01, 1), st.floats(1, 10), st.integers(0, 50))
def test_the_three_forms_are_ordered(
    error: float, gap: float, mu: float, smoothness: float, steps: int
):
    found = bound(error=error, gap=gap, mu=mu, smoothness=smoothness, steps=steps)
    slack = 1 + 1e-9
    assert float(found.product) <= float(found.unbiased) * slack
    assert float(found.unbiased) <= float(found.triangle) * slack
    assert float(found.triangle) <= 2 * float(found.unbiased) * slack


@given(SEEDS, st.integers(0, 30), st.floats(1e-3, 10))
def test_on_quadratics_every_step_of_the_derivation_holds(seed: int, steps: int, error: float):
    """theta* = 0. `unbiased` for the mean over both signs, `product` for fine-tuning."""
    values = normal(4, 6, seed=seed).square() + 0.05
    matrix, start = symmetric(values, seed + 1), normal(4, 6, seed=seed + 2)
    mu, smoothness = values.amin(-1), values.amax(-1)

    def loss(theta: Tensor) -> Tensor:
        return 0.5 * (theta.unsqueeze(-2) @ matrix @ theta.unsqueeze(-1)).flatten()

    def descend(theta: Tensor) -> Tensor:
        for _ in range(steps):
            theta = theta - (matrix @ theta.unsqueeze(-1)).squeeze(-1) / smoothness[:, None]
        return theta

    found = convergence_bound(
        curvature=smoothness,
        error=torch.full((4,), error).double(),
        gap=loss(start),
        mu=mu,
        smoothness=smoothness,
        steps=steps,
    )
    last, slack = descend(start), 1 + 1e-9
    assert bool((last.square().sum(-1) <= found.distance * slack).all())
    move = error**0.5 * F.normalize(normal(4, 6, seed=seed + 3), dim=-1)
    both = torch.stack([loss(last + move), loss(last - move)])
    assert bool((both.amax(0) <= found.triangle * slack).all())
    assert bool((both.mean(0) <= found.unbiased * slack).all())
    reach = (error + 2 * loss(start) / mu).sqrt()
    tuned = descend(reach[:, None] * F.normalize(start, dim=-1))
    assert bool((loss(tuned) <= found.product * slack).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": 0.0}, "contradict"),
        ({"mu": 5.0}, r"5\.\.5 and smoothness 4\.\.4"),
        ({"mu": float("nan")}, "contradict"),
        ({"curvature": -1.0}, "curvature"),
        ({"error": -1.0}, "error"),
        ({"gap": -1.0}, "gap"),
        ({"steps": -1}, "steps"),
    ],
)
def test_constants_that_contradict_are_refused(changes: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        bound(**changes)


# The experiment


def test_on_strongly_convex_heads_the_proved_forms_hold_and_the_product_does_not(
    worlds: list[Heads],
):
    share = {
        (r["form"], r["lambda"], r["M"]): r["holds"] for r in bound_rows(worlds[2:], generator())
    }
    assert share["triangle", LAMBDAS[0], "all"] == 1
    assert share["triangle", LAMBDAS[1], "all"] == 1
    assert share["triangle", LAMBDAS[2], "all"] < 1
    assert share["product", LAMBDAS[0], 1000] < 0.5


def test_the_excess_loss_is_linear_in_the_curvature(worlds: list[Heads]):
    rows = slope_rows(worlds, generator())
    slope = {(r["direction"], r["over"], r["c"]): r["slope"][0] for r in rows}
    ratio = {(r["direction"], r["over"], r["c"]): r["median excess / (this c / 2)"] for r in rows}
    assert slope["sharpest", "lambda", 1e-4] == pytest.approx(1, abs=0.01)
    assert ratio["sharpest", "lambda", 1e-4] == pytest.approx(1, abs=0.01)
    assert slope["random", "mean eigenvalue", 1e-4] == pytest.approx(1, abs=0.1)
    assert ratio["random", "mean eigenvalue", 1e-4] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path):
    json_file = tmp_path / "out.json"
    main(["--quick", "--json", str(json_file)])
    found = json.loads(json_file.read_text())
    assert found["settings"]["quick"] is True
    assert [len(found[part]) for part in ("bound", "slope", "sam")] == [24, 12, 3]
    assert all(row["lambda"] > 0 for row in found["sam"])
