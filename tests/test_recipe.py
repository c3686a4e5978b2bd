"""`ltdi.recipe`: every name builds, and a control differs from ours in its one idea."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from ltdi.collect import Preparation
from ltdi.denoiser import ConditionalDenoiser, EquivariantDenoiser, Guide
from ltdi.diffusion import draw, make_schedule
from ltdi.diffusion.losses import LOSSES, Probe
from ltdi.errors import InputError
from ltdi.meta import MetaConfig
from ltdi.parts import build_network
from ltdi.recipe import (
    RECIPES,
    Diffusion,
    Network,
    Recipe,
    Sampling,
    Tasks,
    named_recipe,
    paper_recipe,
)
from ltdi.weights import head_space

# Nothing in it is a default, so that a control that resets a setting is seen.
ODD = Recipe(
    tasks=Tasks((7,), (2,), 9, 40, 20, 3, 0.5, 0.25),
    prepare=Preparation("adamw", 0.02, 30, 5, 0.1, 0.0, 4, 0.1),
    diffusion=Diffusion(10, "linear", "trajectory", "x0", "function"),
    network=Network("transformer", 32, 1, 2),
    meta=MetaConfig("reptile", 11, 2, 5, 0.03, 6, "adam", 3e-3, 0.2, 7, 0.9, 4, 9),
    sampling=Sampling(5, "ddim", 0.3, 2, 1, 0.8, 1.2, 0.5),
    anchor="prototype",
    start_std=0.7,
)


def difference(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of the settings that differ, with the value in `b`."""
    out: dict[str, Any] = {}
    for name in a:
        if isinstance(a[name], dict):
            out |= difference(a[name], b[name], f"{prefix}{name}.")
        elif a[name] != b[name]:
            out[prefix + name] = b[name]
    return out


@pytest.mark.parametrize(
    ("name", "idea"),
    [
        ("lt-di", {}),
        ("mv-di", {"diffusion.objective": "vanilla"}),
        ("tw-di", {"diffusion.objective": "naive"}),
        ("mv-di-matched", {"diffusion.objective": "matched"}),
        ("single-level", {"meta.meta": "none"}),
    ],
)
@pytest.mark.parametrize("base", [Recipe(), ODD], ids=["default", "odd"])
def test_a_control_changes_one_setting(name: str, idea: dict[str, str], base: Recipe) -> None:
    assert difference(asdict(base), asdict(named_recipe(name, base))) == idea


def test_regression_has_no_chain_no_noise_and_one_level() -> None:
    changed = difference(asdict(ODD), asdict(named_recipe("anchored-regression", ODD)))
    assert changed == {
        "diffusion.steps": 1,
        "diffusion.objective": "vanilla",
        "meta.meta": "none",
        "sampling.steps": 1,
        "sampling.temperature": 0.0,
        "sampling.samples": 1,
        "sampling.strength": 1.0,
        "sampling.sharpness": 1.0,
        "sampling.end": 1.0,
    }


def test_the_papers_recipe_is_the_papers() -> None:
    r = named_recipe("mc-di-paper", ODD)
    assert (r.anchor, r.start) == ("none", "gaussian")
    assert (r.diffusion.steps, r.diffusion.objective) == (20, "trajectory")
    assert (r.diffusion.prediction, r.diffusion.loss) == ("eps", "weight")
    m = r.meta
    assert (m.meta, m.inner_lr, m.meta_lr, m.inner_steps) == ("reptile", 0.005, 0.001, 3)
    assert m.outer == "sgd" and r.network.kind == "unet" and r.prepare.sam_rho > 0
    assert (r.sampling.steps, r.sampling.temperature) == (20, 1.0)
    # The budget is that of the base.
    assert r.tasks == replace(ODD.tasks, folds=0)  # nothing is fitted that could know a class
    assert (m.iterations, m.meta_batch, m.tasks, m.seed) == (11, 2, 1, 9)
    assert (r.prepare.steps, r.prepare.segments) == (30, 5)


def test_ours_is_what_the_paper_set_out_to_build() -> None:
    """Trajectories of k >= 2 local targets, two levels, a chain of several steps."""
    r = named_recipe("lt-di")
    assert r.diffusion.objective == "trajectory" and r.diffusion.steps > 1
    assert r.prepare.segments >= 2 and r.meta.meta == "reptile"


@pytest.mark.parametrize("name", RECIPES)
def test_every_name_draws_scores_and_builds_a_network(name: str) -> None:
    """T and k fit together, names are known, and one loss can be taken."""
    r = named_recipe(name, replace(Recipe(), network=Network(width=16, depth=1, heads=2)))
    space, d = head_space(3, 5), r.diffusion
    chain = d.objective == "trajectory" or d.objective == "matched"
    if chain:
        assert d.steps % r.prepare.segments == 0
    schedule = make_schedule(d.schedule, d.steps)
    assert schedule.steps == d.steps
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn(4, r.prepare.segments, space.size, generator=rng)
    noised = draw(d.objective, theta, schedule, prediction=d.prediction, rng=rng)
    network = build_network(space, 3, r.network, d)
    equivariant = r.network.kind == "equivariant"
    assert isinstance(network, EquivariantDenoiser if equivariant else ConditionalDenoiser)
    support = torch.randn(4, 5, 1, 3, generator=rng)
    guide = Guide(theta[:, 0], torch.ones(4, 3), noised.signal, noised.stage)
    out = network(noised.x_t, noised.t, support, torch.ones(4, 5, 1), space, guide)
    probe = Probe(torch.randn(4, 6, 3, generator=rng), theta[:, 0], torch.ones(space.size))
    loss = LOSSES[d.loss](out, noised.target, noised.weight, probe)
    assert out.shape == (4, space.size) and bool(loss.isfinite())
    assert 1 <= r.sampling.steps <= d.steps


def test_the_presets_of_the_chain_divide_at_the_default_k() -> None:
    assert Diffusion().steps % Recipe().prepare.segments == 0
    paper = paper_recipe(Recipe())
    assert paper.diffusion.steps % paper.prepare.segments == 0


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'mv-di-matched'") as caught:
        named_recipe("mv-di-mached")
    assert all(name in str(caught.value) for name in RECIPES)


def test_a_loss_that_cannot_be_computed_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="predictive"):
        Diffusion(prediction="eps", loss="predictive")
