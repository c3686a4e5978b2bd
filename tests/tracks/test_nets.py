"""The track of whole networks: rows, choices, timings, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.baselines.whole import Tuned
from ltdi.errors import InputError
from ltdi.generator import Generator, NetGenerator
from ltdi.nets import InitialTraining, NetConfig
from ltdi.tracks import TRACKS, Outcome, fewshot, net_methods, nets

NET = NetConfig(size=12, widths=(4, 8), kernels=(5, 3), strides=(2, 2))
RECIPE = replace(
    nets.NET_RECIPE,
    tasks=replace(
        nets.NET_RECIPE.tasks, ways=(3,), shots=(1,), per_setting=12, query=6, probe=4, shard=8
    ),
    prepare=replace(nets.NET_RECIPE.prepare, steps=8, batch=12),
    network=replace(nets.NET_RECIPE.network, width=16, heads=2),
    meta=replace(nets.NET_RECIPE.meta, iterations=3, tasks=2, warmup=1),
)
TINY = nets.NetPreset(NET, InitialTraining(iterations=40, classes=16), RECIPE, 2, 12, 8)
METHODS = (
    "lt-di",
    "lt-di+1",
    "mv-di-matched",
    "anchor",
    "anchor-step",
    "protonet",
    "reptile-5",
    "maml-1",
)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return nets.bench("glyphs", methods=METHODS, preset=TINY, way=3, shot=1, query=4)


def test_one_row_for_each_method_on_the_same_episodes(outcome: Outcome):
    rows = {row.method: row for row in outcome.result.rows}
    assert tuple(rows) == METHODS
    kinds = ["ours", "ours", "control", "control", "control", "peer", "peer", "peer"]
    assert [r.kind for r in rows.values()] == kinds
    assert all(r.episodes == 12 and r.latency_ms > 0 for r in rows.values())
    # Without a step a shared initialisation guesses; with the one it was learned for it does not.
    assert rows["anchor"].mean == pytest.approx(1 / 3)
    assert rows["anchor-step"].mean > 0.4
    assert rows["protonet"].mean > 0.4
    settings = outcome.result.settings
    assert set(settings["adapt_ms"]) == set(METHODS) and settings["target"] == "net"
    assert set(settings["paired"]) == set(METHODS) - {"lt-di"}
    assert settings["adapt_ms"]["reptile-5"] > settings["adapt_ms"]["maml-1"]


def test_the_result_is_json_and_the_generator_is_kept(outcome: Outcome, tmp_path: Path):
    data = outcome.result.to_dict()
    assert json.loads(json.dumps(data))["rows"] == data["rows"]
    assert data["settings"]["weights"] > 500
    outcome.publish(tmp_path)
    made = Generator.from_pretrained(tmp_path / "generator")
    assert isinstance(made, NetGenerator)
    assert "glyphs 3-way 1-shot, lt-di" in made.parts.about["metrics"]


def test_peers_never_start_worse_than_the_generator(outcome: Outcome):
    """The common initialisation with its own step size is among the candidates."""
    reptile = outcome.methods["reptile-5"]
    assert isinstance(reptile, Tuned)
    (tried,) = reptile.learner._known.values()
    plans = [plan for plan, _ in tried]
    assert len(plans) in (1 + 10, 2 * (1 + 10)) and all(
        set(logits) == {1, 5, 20} for _, logits in tried
    )
    assert torch.equal(plans[0].theta_0, reptile.learner.initial.theta_0)
    assert float(plans[0].rates[-1]) == pytest.approx(reptile.learner.initial.rate)
    # One step at that rate, with next to nothing below the head, is what theta_0 was learned for.
    assert any(
        torch.equal(p.theta_0, plans[0].theta_0) and p.rates[-1] == plans[0].rates[-1]
        for p in plans[1:]
    )


def test_it_is_the_target_net_of_the_fewshot_track():
    assert TRACKS["nets"].methods == net_methods.ALL_METHODS
    made = fewshot.bench(
        "glyphs", methods=("anchor",), preset=TINY, way=3, query=4, target="net", episodes=3
    )
    assert made.result.track == "nets" and made.result.rows[0].episodes == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 500}, "500-way"),
        ({"shot": 30}, "30 support"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ],
)
def test_what_cannot_be(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        nets.bench("glyphs", **{"preset": TINY, **options})
    with pytest.raises(InputError, match=r"unknown target 'nett'[\s\S]*'net'"):
        fewshot.bench("glyphs", target="nett")
