"""`ltdi.commands.train`: what is chosen, and what suits the kind of weights."""

from __future__ import annotations

from dataclasses import replace

from ltdi.commands.train import _recipe
from ltdi.meta import MetaConfig
from ltdi.recipe import NET_RECIPE, Diffusion, Network, Recipe, Sampling
from ltdi.zoo import Zoo

UNTOUCHED = (Diffusion(), Network(), MetaConfig(), Sampling())


class Described:
    """A zoo of which only the settings are asked."""

    def __init__(self, **about: object) -> None:
        self.about = about


def zoo(kind: str | None) -> Zoo:
    from dataclasses import asdict

    recipe = NET_RECIPE if kind == "net" else Recipe()
    about = {"tasks": asdict(recipe.tasks), "prepare": asdict(recipe.prepare), "seed": 3}
    about |= {"kind": kind} if kind else {"anchor": "gaussian", "start": "anchor"}
    about |= {"start_std": 0.1, "refine": []}
    return Described(**about)  # type: ignore[return-value]


def test_nets_have_their_own_budget_where_none_is_given() -> None:
    """The plan of arrivals is made for as many iterations as are trained."""
    assert _recipe(zoo("net"), UNTOUCHED).meta.iterations == NET_RECIPE.meta.iterations
    few = replace(MetaConfig(), iterations=7)
    assert _recipe(zoo("net"), (*UNTOUCHED[:2], few, Sampling())).meta.iterations == 7
    assert _recipe(zoo(None), UNTOUCHED).meta == MetaConfig()
