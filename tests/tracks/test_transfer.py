"""`ltdi bench transfer`: what it gives, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.data.transfer import load_target, target_names
from ltdi.errors import InputError
from ltdi.generator import Generator, UnseenGenerator
from ltdi.tasks import Unseen
from ltdi.tracks.transfer import ALL_METHODS, PRESETS, bench

TINY = replace(PRESETS["smoke"], peer_iterations=4, valid_tasks=(4,), valid_ways=(5,), subtasks=20)


def test_every_target_has_rows_for_all_its_classes_and_for_sub_tasks(tmp_path: Path) -> None:
    methods = ("lt-di", "anchor", "supervised", "devise", "devise+em")
    outcome = bench(methods=methods, preset=TINY)
    rows = outcome.result.rows
    assert {row.method for row in rows} == set(methods)
    assert {row.dataset for row in rows} == {
        f"{where}{suffix}"
        for where in ("glyphs", "mean")
        for suffix in ("", "/5-way", "/generalised")
    }
    assert {row.episodes for row in rows if row.dataset == "glyphs/5-way"} == {20}
    kinds = {row.method: row.kind for row in rows}
    assert kinds == {
        "lt-di": "ours",
        "anchor": "control",
        "supervised": "control",
        "devise": "peer",
        "devise+em": "peer",
    }
    joint = {row.method: row for row in rows if row.dataset == "glyphs/generalised"}
    assert {row.metric for row in joint.values()} == {"harmonic mean"}
    # The gate only takes away: no method is better among all classes than among the target's.
    plain = {row.method: row.mean for row in rows if row.dataset == "glyphs"}
    assert all(0 <= joint[m].mean <= 2 * plain[m] / (1 + plain[m]) for m in plain)
    settings = outcome.result.settings
    assert set(settings["paired"]["glyphs/5-way"]) == set(methods[1:])
    assert settings["source"]["removed"] == {"glyphs": {}}
    outcome.publish(tmp_path)
    gen = Generator.from_pretrained(tmp_path / "generator")
    assert isinstance(gen, UnseenGenerator)
    pool = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert gen.generate(Unseen(("one", "two"), pool))["bias"].shape == (2,)


def test_names_alone_have_no_ceiling_and_no_adaptation() -> None:
    outcome = bench(condition="text", methods=("lt-di", "supervised", "icis"), preset=TINY)
    assert {row.method for row in outcome.result.rows} == {"lt-di", "icis"}
    ours = outcome.methods["lt-di"]
    assert ours.generator is not None and not ours.generator.named.pooled  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "texts"}, "unknown condition 'texts'"),
        ({"targets": "cifar11"}, "unknown target set 'cifar11'"),
        ({"side": 224}, "is trained here"),
        ({"pool": 0}, "pool must be at least 1"),
        ({"condition": "text", "methods": ("icis+em",)}, "adapts to unlabelled images"),
        ({"data_dir": "/nowhere"}, "there is no cifar100/ in /nowhere"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench(**options)  # type: ignore[arg-type]


def test_every_peer_has_an_adapted_form() -> None:
    peers = {"icis", "conse", "devise", "d2nwg", "hypernetwork"}
    assert {f"{p}+em" for p in peers} | peers <= set(ALL_METHODS)


@pytest.mark.data
def test_pools_and_test_images_are_disjoint_and_names_are_facts(data_dir: Path) -> None:
    for name in ("oxford-pets", "pacs-photo"):
        target = load_target(name, data_dir)
        assert target.names == target_names()[name]
        seen = {image.numpy().tobytes() for image in target.pool.images}
        assert not any(image.numpy().tobytes() in seen for image in target.test.images)
