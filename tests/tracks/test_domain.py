"""`ltdi.tracks.domain`: every domain is held out in turn, and nothing of it is learned from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import ltdi
from ltdi import cli, files
from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.conv import ConvNet
from ltdi.errors import InputError
from ltdi.generator import DomainHeadGenerator
from ltdi.meta import MetaConfig
from ltdi.recipe import Network
from ltdi.tasks import FeatureBank
from ltdi.tracks import TRACKS, Outcome, domain
from ltdi.tracks.domain import ALL_METHODS, bench, held_out
from ltdi.tracks.domain_methods import GeneratedForDomain
from tests.domains import CLASSES, NAMES, make_bank

load_sets = domain.load_sets  # the tests of tracks replace it
RECIPE = replace(
    domain.PRESETS["smoke"].recipe,
    network=Network(kind="domain", width=16, depth=1, heads=2),
    meta=MetaConfig(iterations=4, meta_batch=2, inner_steps=2, tasks=4, warmup=2, ema=0.8),
)
TINY = replace(
    domain.PRESETS["smoke"],
    recipe=replace(RECIPE, tasks=replace(RECIPE.tasks, ways=(4,), per_setting=20)),
    peer_iterations=2,
    episodes=40,
    choices=6,
    held=None,
)
KIND = {"lt-di": "ours", "anchor": "control", "anchor-no-em": "control"}
KIND |= {"erm": "peer", "protonet": "peer"}
SOME = tuple(KIND)


def banks() -> dict[str, FeatureBank]:
    return {name: make_bank(i, width=16) for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module", autouse=True)
def gaussians():
    """Features in place of images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {"kind": "conv", "channels": 1, "width": 8, "size": 28}
        net = Backbone(ConvNet(1, 8, 28), InputTransform(28, 1), config)
    patch = pytest.MonkeyPatch()
    patch.setattr(domain, "load_sets", lambda *_: banks())
    patch.setattr(domain, "embed", lambda sets, *_: (net, sets))
    yield
    patch.undo()


def run(methods=SOME, **changes) -> Outcome:
    options = {"preset": TINY, "settings": "4w1s,4w3s", "domains": "ink,wax", "query": 6}
    return bench("glyphs", methods=methods, **{**options, **changes})


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run()


def test_a_row_for_each_method_domain_and_shape_and_their_mean(outcome: Outcome):
    rows = outcome.result.rows
    places = [f"glyphs/{d} {s}" for d in ("ink", "wax") for s in ("4w1s", "4w3s")]
    places += ["glyphs 4w1s", "glyphs 4w3s"]
    assert [r.dataset for r in rows] == [place for place in places for _ in SOME]
    found = {(r.dataset, r.method): r for r in rows}
    for method in SOME:
        one, other = (found[f"glyphs/{d} 4w1s", method] for d in ("ink", "wax"))
        mean = found["glyphs 4w1s", method]
        assert mean.mean == pytest.approx((one.mean + other.mean) / 2, abs=1e-6)
        assert mean.ci95 == pytest.approx((one.ci95**2 + other.ci95**2) ** 0.5 / 2, abs=1e-6)
        assert (one.episodes, mean.episodes) == (40, 80) and one.kind == KIND[method]
    assert found["glyphs 4w1s", "anchor"].mean > found["glyphs 4w1s", "protonet"].mean


def test_the_json_says_what_was_chosen(outcome: Outcome, tmp_path: Path):
    outcome.result.write_json(tmp_path / "r.json")
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["track"] == "domain" and kept["settings"]["held_out"] == ["ink", "wax"]
    assert kept["settings"]["pool"] == {"ink": 60, "wax": 60}
    paired = kept["settings"]["paired"]
    ours = [paired[f"glyphs/{d} 4w3s"]["erm"]["mean"] for d in ("ink", "wax")]
    assert paired["glyphs 4w3s"]["erm"]["mean"] == pytest.approx(sum(ours) / 2, abs=1e-5)
    assert set(kept["settings"]["anchor"]["ink"]) == set(
        ["drift", "blend", "trust", "heat", "scale"]
    )
    assert set(kept["settings"]["notes"]) == set(SOME)


def test_nothing_is_learned_from_labels_of_the_target():
    """Dealing the target's classes anew changes its scores, not what was trained."""
    found = []
    for shuffled in (False, True):
        kept = banks()
        if shuffled:
            order = torch.randperm(180, generator=torch.Generator().manual_seed(0))
            kept["ink"] = replace(kept["ink"], features=kept["ink"].features[order])
        patch = pytest.MonkeyPatch()
        patch.setattr(domain, "load_sets", lambda *_, kept=kept: kept)
        done = run(("lt-di",), settings="4w1s", domains="ink")
        patch.undo()
        method = done.methods["ink"]["lt-di"]
        assert isinstance(method, GeneratedForDomain) and method.generator
        found.append((method.generator.revision, done.result.rows[0].mean))
    assert found[0][0] == found[1][0] and found[1][1] < found[0][1] - 0.2


def test_a_generator_for_each_domain_is_published(outcome: Outcome, tmp_path: Path):
    outcome.publish(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["generator-ink", "generator-wax"]
    loaded = ltdi.Generator.from_pretrained(tmp_path / "generator-ink")
    assert isinstance(loaded, DomainHeadGenerator) and loaded.classes == CLASSES
    assert "glyphs without ink" in (tmp_path / "generator-ink" / "README.md").read_text()


def test_a_seed_fixes_all_means():
    one, two = (run(("lt-di", "erm"), settings="4w1s", domains="ink") for _ in range(2))
    assert [r.mean for r in one.result.rows] == [r.mean for r in two.result.rows]


@pytest.mark.slow
def test_every_method_runs():
    rows = run(ALL_METHODS, settings="4w1s", domains="ink", episodes=10).result.rows
    assert [r.method for r in rows] == list(ALL_METHODS)
    assert {r.kind for r in rows if r.method in domain.PEERS} == {"peer"}
    ours = [r.method for r in rows if r.kind == "ours"]
    assert ours == ["lt-di", "lt-di-unnamed"]
    assert TRACKS["domain"].bench is bench and TRACKS["domain"].methods == ALL_METHODS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": "inkk"}, "(?s)unknown domain 'inkk'.*did you mean 'ink'"),
        ({"settings": "7w1s"}, "a 7-way task needs 7 classes, every domain has 6"),
        ({"settings": "4w"}, "not the shape of an episode"),
        ({"settings": "4w20s"}, "with 20 shots none is left"),
        ({"unlabelled": 0.0}, "unlabelled share must lie between 0 and 1"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"side": 224}, "is trained here"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        run(**{"methods": ("protonet",), **changes})


def test_too_few_domains():
    with pytest.raises(InputError, match="2 domains are too few"):
        held_out(None, ["a", "b"], TINY)
    assert held_out("c, a,c", ["a", "b", "c"], TINY) == ["c", "a"]


# ---- images --------------------------------------------------------------------------------------


def test_a_set_without_domains_is_refused():
    for name in ("pcas", "cifar-fs"):
        with pytest.raises(InputError, match=r"(?s)unknown data set with domains.*pacs"):
            load_sets(name, None, 0)


def test_the_embedded_domains_have_the_same_classes():
    found = load_sets("glyphs", None, 0)
    assert len(found) == 6 and len({images.classes for images in found.values()}) == 1
    assert all(len(images.classes) == 10 for images in found.values())


def test_the_command_line(outcome: Outcome, tmp_path: Path, capsys, monkeypatch):
    """generate and evaluate take a generator of a domain, and its names and pool."""
    monkeypatch.chdir(tmp_path)
    outcome.publish(tmp_path)
    rng = torch.Generator().manual_seed(0)
    for label in ("fox", "bee"):
        (tmp_path / "new" / label).mkdir(parents=True)
        for i in range(6):
            pixels = (255 * torch.rand(28, 28, generator=rng)).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "new" / label / f"{i}.png")
    generate = ["generate", "--generator", "generator-ink", "--support", "new"]
    assert cli.main([*generate, "--out", "named.safetensors", "--unlabelled", "new"]) == 0
    assert cli.main([*generate, "--out", "other.safetensors", "--names", "false"]) == 0
    named = files.read_tensors(tmp_path / "named.safetensors")
    other = files.read_tensors(tmp_path / "other.safetensors")
    assert not torch.equal(named["weight"], other["weight"])
    evaluate = ["evaluate", "--generator", "generator-ink", "--data-dir", "new", "--way", "2"]
    assert cli.main([*evaluate, "--episodes", "5", "--json", "e.json"]) == 0
    # A third of six images is the pool; one more is the support.
    assert json.loads((tmp_path / "e.json").read_text())["settings"]["query"] == 3
    capsys.readouterr()
    assert cli.main([*evaluate, "--shot", "4"]) == 2
    shown = capsys.readouterr().err
    assert "4 are left, and 4 shots" in shown and "features" not in shown
    assert cli.main([*evaluate, "--shot", "4", "--unlabelled", "new", "--episodes", "2"]) == 0
    (tmp_path / "new" / "bee").rename(tmp_path / "new" / "beee")
    capsys.readouterr()
    for command in ([*generate, "--out", "x.safetensors"], evaluate):
        assert cli.main(command) == 2
        shown = capsys.readouterr().err
        assert "unknown class name 'beee'" in shown and "did you mean 'bee'" in shown
    assert cli.main([*evaluate, "--names", "false", "--episodes", "5"]) == 0
