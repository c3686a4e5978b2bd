"""The general commands on LoRA adapters, from files of a user to an adapter that PEFT loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.cli import main
from ltdi.data.text import rules
from ltdi.files import read_tensors
from ltdi.zoo import Zoo
from tests.lora.conftest import libraries, offline

__all__ = ["libraries", "offline"]

SMALL = [
    *("--target", "adapter", "--texts.base", "tiny", "--lora.rank", "2"),
    *("--prepare.steps", "4", "--prepare.segments", "2", "--prepare.optimiser", "adamw"),
    *("--runs.trunks", "1", "--runs.branches", "1", "--runs.shared", "0.5"),
]
TINY_NET = ["--diffusion.steps", "4", "--diffusion.loss", "weight", "--meta.iterations", "3"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own JSONL file, with columns of their own."""
    texts = rules.load("tone", rows=120)["train"]
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    assert texts.labels is not None
    with path.open("w") as stream:
        for (sentence, _), y in zip(texts.texts, texts.labels.tolist(), strict=True):
            stream.write(json.dumps({"sentence": sentence, "kind": ["bad", "good"][y]}) + "\n")
    return path


COLUMNS = ["--columns.text", "sentence", "--columns.label", "kind"]


@pytest.fixture(scope="module")
def generator(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft", reason="PEFT NOT TESTED")
    place = tmp_path_factory.mktemp("run")
    zoo, out = str(place / "zoo"), place / "generator"
    assert main(["collect", "--data", f"{rows}", "--out", zoo, *SMALL, *COLUMNS]) == 0
    assert main(["train", "--zoo", zoo, "--out", str(out), "--target", "adapter", *TINY_NET]) == 0
    return out


def test_from_rows_to_an_adapter(generator: Path, rows: Path, tmp_path: Path) -> None:
    """Written at once, or as weights that are exported later, it is the same adapter."""
    given = ["--generator", str(generator), "--support", str(rows), *COLUMNS]
    told = ["--description", "is it good"]
    assert main(["generate", *given, *told, "--out", str(tmp_path / "direct")]) == 0
    file = tmp_path / "weights.safetensors"
    assert main(["generate", *given, *told, "--out", str(file)]) == 0
    export = ["export", "--generator", str(generator), "--weights", str(file)]
    assert main([*export, "--format", "peft", "--out", str(tmp_path / "later")]) == 0
    plain = tmp_path / "plain.safetensors"
    assert main([*export, "--format", "safetensors", "--out", str(plain)]) == 0
    a, b = (read_tensors(tmp_path / n / "adapter_model.safetensors") for n in ("direct", "later"))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert all(name.startswith("base_model.model.") for name in read_tensors(plain))
    about = json.loads((tmp_path / "direct" / "ltdi.json").read_text())
    assert about["about"]["label_names"] == ["bad", "good"]
    assert json.loads((tmp_path / "direct" / "adapter_config.json").read_text())["r"] == 2


def test_a_generator_says_how_its_runs_were_made(generator: Path) -> None:
    recipe = json.loads((generator / "config.json").read_text())["about"]["recipe"]
    assert recipe["runs"] == {"trunks": 1, "branches": 1, "shared": 0.5, "rows": 2048}
    assert (recipe["prepare"]["steps"], recipe["meta"]["iterations"]) == (4, 3)


def test_runs_that_the_index_does_not_list_are_told(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(generator.parent / "zoo", tmp_path / "zoo")
    assert main(["zoo", "verify", str(copy)]) == 0
    assert "not list" not in capsys.readouterr().err
    shutil.copy(copy / "mine-trunk-0.safetensors", copy / "mine-trunk-9.safetensors")
    assert main(["zoo", "verify", str(copy)]) == 0
    assert "does not list 1 shards that lie there, such as mine-trunk-9" in capsys.readouterr().err


def test_evaluate_scores_a_task(generator: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = ["evaluate", "--generator", str(generator), "--task", "rule:tone"]
    assert main([*command, "--support", "32", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [r["method"] for r in result["rows"]] == ["lt-di", "base"]
    assert all(0 <= r["mean"] <= 1 and r["episodes"] == 200 for r in result["rows"])
    assert result["settings"]["rows"] == 32


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--columns.text", "text", "--columns.label", "kind"], ["column", "text", "sentence"]),
        (["--columns.text", "sentence", "--columns.label", "label"], ["column", "label", "kind"]),
        ([*COLUMNS, "--columns.label_names", '["good","fine"]'], ["bad", "good"]),
        ([*COLUMNS, "--target", "head"], ["adapter", "head"]),
    ],
)
def test_bad_rows_are_refused_with_both_sides(
    generator: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    messages: list[str],
) -> None:
    given = ["generate", "--generator", str(generator), "--support", str(rows)]
    assert main([*given, "--out", str(tmp_path / "x"), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(m in error for m in messages)
    assert not (tmp_path / "x").exists()


def test_an_empty_text_is_refused_with_its_line(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "good", "label": 1}\n{"text": " ", "label": 0}\n')
    command = ["generate", "--generator", str(generator), "--support", str(bad)]
    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    assert "line 2" in capsys.readouterr().err


def test_what_other_kinds_need_is_said(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--generator", str(generator)]) == 2
    assert "--task is needed" in capsys.readouterr().err
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    command = ["export", "--generator", str(generator), "--weights", str(weights)]
    assert main([*command, "--out", str(tmp_path / "x"), "--format", "npz"]) == 2
    assert "peft" in capsys.readouterr().err


def test_training_beside_workers_sees_every_run(tmp_path: Path) -> None:
    zoo, out = tmp_path / "zoo", tmp_path / "out"
    small = [f"--collect.{option[2:]}" if option[:2] == "--" else option for option in SMALL]
    given = ["--collect.data", "rule:tone", *small, "--workers", "1", *TINY_NET]
    assert main(["train", *given, "--zoo", str(zoo), "--out", str(out)]) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["shards"] for e in log if e["event"] == "arrivals"][-1] == 2
    assert ltdi.Generator.from_pretrained(out).kind == "adapter"
    names = {e["name"] for e in Zoo.open(zoo).shards}
    assert names == {"tone-trunk-0", "tone-branch-000"}


def test_what_cannot_be_collected_is_said_before_anything_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", "rule:tone", "--out", str(tmp_path / "zoo"), *SMALL]
    assert main(["collect", *given, "--runs.trunks", "0"]) == 2
    assert "give one trunk or more" in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()
    beside = ["--collect.target", "adapter", "--collect.data", "tonne", "--zoo"]
    assert main(["train", *beside, str(tmp_path / "zoo"), "--out", str(tmp_path / "out")]) == 2
    assert "text task" in capsys.readouterr().err
