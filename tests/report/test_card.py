"""`ltdi.report.card`: the hub can read it, a person learns what matters, nothing private leaks."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ltdi
from ltdi.anchor import Anchor
from ltdi.backbone import Backbone, ConvNet, InputTransform
from ltdi.generator import Generator, HeadGenerator
from ltdi.parts import Parts, build_network
from ltdi.recipe import Diffusion, Network, Recipe, Sampling
from ltdi.report import model_card
from ltdi.weights import Normaliser, head_space

SECTIONS = ["How to use it", "Data", "Settings", "Metrics", "Limits", "Revision", "Citation"]


def config(**about: Any) -> dict[str, Any]:
    """As `Generator` saves it."""
    recipe = Recipe()
    value = {
        "revision": "0123456789abcdef",
        "diffusion": asdict(recipe.diffusion),
        "network": asdict(recipe.network),
        "sampling": asdict(Sampling(steps=7)),
        "anchor": recipe.anchor,
        "backbone": {"config": {}, "transform": {"channels": 3, "size": 32}},
        "about": {"recipe": asdict(recipe), **about},
    }
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def section(card: str, name: str) -> str:
    return card.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_the_front_matter_is_the_hubs() -> None:
    card = model_card(config())
    assert card.startswith("---\n")
    assert front_matter(card) == {
        "library_name": "ltdi",
        "license": "apache-2.0",
        "tags": ["weight-generation", "diffusion", "few-shot", "meta-learning"],
    }


def test_sections_revision_and_paper() -> None:
    card = model_card(config())
    assert re.findall(r"^## (.*)", card, re.M) == SECTIONS
    assert "0123456789abcdef" in section(card, "Revision")
    assert "2502.01117" in section(card, "Citation")


def test_every_setting_is_in_the_table() -> None:
    data = config()
    table = section(model_card(data), "Settings")
    assert "| anchor | anchor | gaussian |" in table
    for group in ("diffusion", "network", "meta"):
        for key, value in data["about"]["recipe"][group].items():
            shown = f"{value:g}" if isinstance(value, float) else value
            assert f"| {group} | {key} | {shown} |" in table
    # The generator's own sampling, not the one that its recipe began with.
    assert "| sampling | steps | 7 |" in table


def test_metrics_are_shown_and_their_absence_is_said() -> None:
    metrics = {"glyphs 5-way 1-shot": {"mean": 0.91234, "ci95": 0.0021, "episodes": 600}}
    text = section(model_card(config(metrics=metrics)), "Metrics")
    assert "| glyphs 5-way 1-shot | 0.91234 | 0.0021 | 600 |" in text
    assert "None were measured" in section(model_card(config()), "Metrics")


def test_limits_name_ways_shots_and_the_anchor() -> None:
    text = section(model_card(config()), "Limits")
    for part in ("2 to 50", "Trained ways: 5", "trained shots: 1, 5", "Bayes head", "calibrated"):
        assert part in text
    assert "There is no anchor" in section(model_card({**config(), "anchor": "none"}), "Limits")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("/home/some one/sets/pets.zip", "Source: pets.zip"),
        ("C:\\Users\\some one\\pets", "Source: pets"),
        ("file:///home/some/pets", "Source: pets"),
        ("images in ~/some/pets, resized", "Source: images in pets, resized"),
        ("of ../some/pets and '/some/cats'", "Source: of pets and 'cats'"),
        ("glyphs", "Source: glyphs"),
        ("from https://example.org/a/b and/or c", "Source: from https://example.org/a/b and/or c"),
        ({"path": "/some/pets", "split": "a|b"}, "| split | a\\|b |"),
        ("<script>\n# [x](http://y)", "Source: \\<script> # \\[x](http://y)"),
    ],
)
def test_data_are_named_without_directories(data: Any, shown: str) -> None:
    text = section(model_card(config(data=data)), "Data")
    assert shown in text
    assert "some" not in text


def test_a_bare_configuration_has_a_card_too() -> None:
    card = model_card({})
    assert front_matter(card)["library_name"] == "ltdi"
    assert "not recorded" in section(card, "Data")


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    space, shape, diffusion = head_space(16, 5), Network(width=16, depth=1), Diffusion(steps=4)
    net = {"kind": "conv", "channels": 1, "width": 8, "size": 28}
    backbone = Backbone(ConvNet(1, 8, 28), InputTransform(), net)
    parts = Parts(
        space=space,
        network=build_network(space, 16, shape, diffusion),
        anchor=Anchor(),
        normaliser=Normaliser.fit(torch.randn(4, space.size), space),
        diffusion=diffusion,
        shape=shape,
        sampling=Sampling(),
        host=backbone,
    )
    path = HeadGenerator(parts).save(tmp_path / "generator")
    card = (path / "README.md").read_text(encoding="utf-8")
    snippet = re.findall(r"```python\n(.*?)```", card, re.S)[0]
    monkeypatch.setattr(ltdi, "Generator", Generator, raising=False)
    names: dict[str, Any] = {}
    exec(snippet.replace('"GENERATOR"', repr(str(path))), names)
    assert names["weights"]["weight"].shape == (5, 16)
    torch.testing.assert_close(names["probabilities"].sum(-1), torch.ones(3))
