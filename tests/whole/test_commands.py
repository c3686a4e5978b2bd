"""`--target net` from the command line: generate, evaluate, and what does not match."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ltdi import cli
from ltdi.data import ImageSet
from ltdi.files import read_metadata
from ltdi.generator import NetGenerator
from ltdi.nets import SmallNet
from ltdi.zoo import Zoo


@pytest.fixture(scope="module")
def place(
    net_gen: NetGenerator, glyphs: dict[str, ImageSet], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A generator of whole nets, and a folder with three classes of four images."""
    path = tmp_path_factory.mktemp("place")
    net_gen.save(path / "gen")
    test = glyphs["test"]
    for c in range(3):
        folder = path / "images" / f"class-{c}"
        folder.mkdir(parents=True)
        for i in range(4):
            array = test.images[int(test.offsets[c]) + i, 0].numpy()
            Image.fromarray(array).save(folder / f"{i}.png")
    return path


def run(*arguments: str | Path) -> int:
    return cli.main([str(a) for a in arguments])


def test_generate_writes_a_whole_net(place: Path, net_gen: NetGenerator, tmp_path: Path):
    out = tmp_path / "net.safetensors"
    call = ("--generator", place / "gen", "--support", place / "images", "--out", out)
    assert run("generate", "--target", "net", *call) == 0
    weights = load_file(out)
    SmallNet(net_gen.net.config, 3).load_state_dict(weights)
    about = read_metadata(out)
    assert about["net"] == net_gen.net.fingerprint and about["generator"] == net_gen.revision
    assert json.loads(about["task"]) == ["class-0", "class-1", "class-2"]
    assert "conv net" in about["architecture"]


def test_evaluate_measures_whole_nets(place: Path, tmp_path: Path):
    call = ("--generator", place / "gen", "--data-dir", place / "images", "--way", "3")
    more = ("--query", "2", "--episodes", "5", "--json", tmp_path / "r.json")
    assert run("evaluate", "--target", "net", *call, *more) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    # A shared initialisation has no class rows, so it is no anchor to compare with.
    assert [r["method"] for r in rows] == ["lt-di", "protonet", "linear-probe"]
    assert all(0 <= r["mean"] <= 1 and r["latency_ms"] > 0 for r in rows)


def test_what_does_not_match_the_target(
    place: Path, net_zoo: Zoo, demo_generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    def refused(*arguments: str | Path) -> str:
        assert run(*arguments) == 2
        return " ".join(capsys.readouterr().err.split())

    images, out = place / "images", tmp_path / "x.safetensors"
    call = ("generate", "--support", images, "--out", out, "--generator")
    assert "weights of kind 'head', not 'net'" in refused(*call, demo_generator, "--target", "net")
    assert "weights of kind 'net', not 'head'" in refused(*call, place / "gen", "--target", "head")
    assert not out.exists()
    told = refused("train", "--target", "head", "--zoo", net_zoo.path, "--out", tmp_path / "g")
    assert "the zoo holds tasks of target 'net', not 'head'" in told
    told = refused("collect", "--target", "nett", "--out", tmp_path / "z")
    assert "unknown target 'nett'" in told and "'net'" in told
    told = refused(
        "collect", "--target", "net", "--net.widths", "[16,30,32]", "--out", tmp_path / "z"
    )
    assert "groups do not divide the widths" in told
    told = refused(
        "export", "--generator", place / "gen", "--weights", out, "--out", tmp_path / "c"
    )
    assert "a generated net sits on no backbone" in told


def test_train_goes_on_from_a_zoo_of_nets(net_zoo: Zoo, tmp_path: Path):
    made = tmp_path / "gen"
    small = ("--meta.iterations", "2", "--meta.tasks", "2", "--network.kind", "rows")
    sizes = ("--network.width", "16", "--network.heads", "2", "--network.depth", "1")
    held = {"features": torch.rand(40, 1, 12, 12), "offsets": torch.arange(0, 41, 10)}
    net_zoo.keep("valid", held, ["a", "b", "c", "d"])
    assert run("train", "--zoo", net_zoo.path, "--out", made, *small, *sizes) == 0
    assert isinstance(NetGenerator.from_pretrained(made), NetGenerator)
