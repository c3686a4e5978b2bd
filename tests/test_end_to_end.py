"""The whole corridor, at a budget of seconds: does a generated head do its job?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ltdi import cli, data
from ltdi.commands import demonstration
from ltdi.data import ImageSet
from ltdi.generator import Generator
from ltdi.weights import query_logits
from tests.folders import write_folders


@pytest.mark.slow
def test_the_demo_on_glyphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The demo's own command, with a third of its budget and fewer peers."""
    p = demonstration.PRESET
    small = replace(
        p,
        backbone=replace(p.backbone, iterations=250),
        recipe=replace(
            p.recipe,
            tasks=replace(p.recipe.tasks, per_setting=500),
            meta=replace(p.recipe.meta, iterations=120),
        ),
        episodes=600,
    )
    monkeypatch.setattr(demonstration, "PRESET", small)
    monkeypatch.setattr(demonstration, "METHODS", ("lt-di", "anchor", "protonet"))
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert result["settings"]["way"] == 5 and result["settings"]["shot"] == 1
    assert rows["lt-di"]["mean"] >= 0.9
    # Not below the nearest prototype by more than the interval of the paired difference.
    pair = result["settings"]["paired"]["protonet"]
    assert pair["mean"] >= -pair["ci95"], pair
    # What it leaves behind is what it says.
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {"demo.yaml", "log.jsonl", "chains.png", "generator/config.json"} <= names
    with Image.open(out / "chains.png") as figure:
        assert min(figure.size) > 300
    gen = Generator.from_pretrained(out / "generator")
    glyphs = data.load("glyphs", size=28, channels=1)["test"]
    bank = gen.backbone.bank(glyphs)
    tasks = bank.episodes(way=5, shot=1, query=15, episodes=3, seed=1)
    for i in range(3):
        head = load_file(out / "weights" / f"task-{i}.safetensors")
        query = bank.features[tasks.query[i : i + 1]]
        logits = query_logits(gen.space(5).flatten(head).unsqueeze(0), query)
        right = logits.argmax(-1) == torch.arange(5).view(1, 5, 1)
        assert right.float().mean() > 0.6  # chance is 0.2


@pytest.mark.slow
@pytest.mark.data
def test_omniglot_from_the_benchmark_to_a_folder_of_images(
    real: Callable[[str], Path], tmp_path: Path
):
    begun = time.perf_counter()
    command = ["bench", "fewshot", "--dataset", "omniglot", "--data-dir", real("omniglot")]
    command += ["--preset", "smoke", "--methods", "lt-di,protonet,simpleshot,finetune"]
    command += ["--json", tmp_path / "r.json", "--out", tmp_path / "run"]
    assert cli.main([str(c) for c in command]) == 0
    print(f"smoke preset on Omniglot: {time.perf_counter() - begun:.0f} s")
    result = json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "run" / "result.json").read_text() == (tmp_path / "r.json").read_text()
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"lt-di", "protonet", "simpleshot", "finetune"}
    assert rows["lt-di"]["mean"] >= 0.90 and rows["lt-di"]["episodes"] == 600
    pair = result["settings"]["paired"]["protonet"]
    assert pair["mean"] >= -pair["ci95"], pair

    # The generator that the run saved, loaded anew, on images that lie as anybody's would.
    test = data.load("omniglot", real("omniglot"), size=28, channels=1)["test"]
    step = len(test.classes) // 40
    folders = write_folders(tmp_path / "drawings", test.select(range(0, 40 * step, step)))
    command = ["evaluate", "--generator", tmp_path / "run" / "generator", "--data-dir", folders]
    command += ["--way", 20, "--shot", 1, "--query", 10, "--episodes", 200]
    assert cli.main([str(c) for c in [*command, "--json", tmp_path / "e.json"]]) == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "e.json").read_text())["rows"]}
    # 20-way with a generator that was trained on 5-way tasks; chance is 0.05.
    assert rows["lt-di"]["mean"] >= 0.75
    assert rows["lt-di"]["mean"] >= rows["protonet"]["mean"] - 0.02


def test_a_generator_of_seconds_already_does_the_job(
    demo_generator: Path, glyphs: dict[str, ImageSet]
):
    """The fast guard: unseen scripts, every way and shot that a user may bring, above chance."""
    gen = Generator.from_pretrained(demo_generator)
    bank = gen.backbone.bank(glyphs["test"])
    for way, shot, least in ((2, 1, 0.7), (5, 1, 0.45), (5, 5, 0.6), (20, 1, 0.2), (50, 3, 0.2)):
        tasks = bank.episodes(way=way, shot=shot, query=5, episodes=20, seed=way)
        theta = gen.weights(bank.features[tasks.support])
        logits = query_logits(theta, bank.features[tasks.query])
        right = logits.argmax(-1) == torch.arange(way).view(1, -1, 1)
        assert float(right.float().mean()) > least, (way, shot)
