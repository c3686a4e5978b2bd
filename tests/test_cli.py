"""`ltdi.cli`: collect, train, generate, evaluate and export, and what a mistyped option is told."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import ltdi
from ltdi import cli
from ltdi.backbone import Backbone
from ltdi.data import ImageSet, folder
from ltdi.errors import InputError
from ltdi.evaluate import accuracy
from ltdi.generator import Generator
from ltdi.tasks import Support
from ltdi.tracks import Track
from ltdi.weights import query_logits
from ltdi.zoo import Zoo
from tests.folders import write_folders
from tests.zoo.made import load

TASKS = (
    "--held-out 0.5 --tasks.ways [3] --tasks.shots [1,2] --tasks.query 5 --tasks.per-setting 30 "
    "--tasks.shard 20 --tasks.folds 2 --prepare.steps 8 --training.iterations 8 "
    "--training.classes 10 --training.width 16"
)
SIZES = (
    "--network.width 32 --network.depth 1 --network.heads 2 --meta.meta-batch 2 --meta.tasks 4 "
    "--meta.warmup 2"
)


def ltdi_(command: str, *more: object) -> int:
    return cli.main([*shlex.split(command), *map(str, more)])


def subprocess_ltdi(*arguments: object, **options) -> subprocess.Popen[str]:
    root = str(Path(ltdi.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.Popen(
        [sys.executable, "-m", "ltdi", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, glyphs: dict[str, ImageSet]) -> Path:
    """Drawings, a task's support, a zoo and a generator, made by the commands."""
    path = tmp_path_factory.mktemp("cli")
    write_folders(path / "drawings", glyphs["train"].select(range(100, 500, 10)), 12)
    write_folders(path / "support", glyphs["test"].select([3, 30, 60]), 2)
    write_folders(path / "test", glyphs["test"].select(range(0, 90, 5)), 8)
    assert ltdi_(f"collect {TASKS} --data", path / "drawings", "--out", path / "zoo") == 0
    assert (
        ltdi_(f"train {SIZES} --meta.iterations 12 --zoo", path / "zoo", "--out", path / "gen") == 0
    )
    return path


# ---- the corridor -------------------------------------------------------------------------------


def test_collect_makes_a_zoo_with_all_that_training_needs(place: Path):
    zoo = Zoo.open(place / "zoo")
    sizes = [(g.way, g.shot, int(g.frame[0]), len(g)) for g in load(zoo)]
    assert sizes == [(3, shot, fold, 15) for shot in (1, 2) for fold in (0, 1)]
    assert zoo.about["prepare"]["lr"] == 0.05  # the command's default, kept when steps is given
    assert Backbone.load(place / "zoo" / "backbone").fingerprint == zoo.about["backbone"]
    records = [json.loads(line) for line in (place / "zoo" / "log.jsonl").open()]
    assert [r["event"] for r in records] == ["shard"] * 4


def test_zoo_tells_what_is_in_it_and_whether_it_is_whole(place: Path, tmp_path: Path, capsys):
    assert ltdi_("zoo info", place / "zoo", "--json", tmp_path / "info.json") == 0
    assert "60 tasks of 180 tokens in 4 shards" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "info.json").read_text())["rows"].values()
    assert [g["tasks"] for g in found["groups"]] == [15] * 4
    copy = Path(shutil.copytree(place / "zoo", tmp_path / "zoo"))
    assert ltdi_("zoo verify", copy) == 0
    shard = copy / "shard-000002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert ltdi_("zoo verify", place / "zoo", copy) == 2
    assert "shard-000002.safetensors" in capsys.readouterr().out
    assert ltdi_("zoo merge", copy, place / "zoo", "--out", tmp_path / "both") == 2
    (copy / "shards.jsonl").write_bytes(b"")
    assert ltdi_("zoo verify", copy) == 0
    assert "does not list 4 shards" in capsys.readouterr().err
    assert ltdi_("zoo inof", copy) == 2 and "'info'" in capsys.readouterr().err
    assert ltdi_("zoo merge", copy) == 2 and ltdi_("zoo info --out", tmp_path / "x", copy) == 2


def test_two_zoos_are_merged_and_trained_on(place: Path, tmp_path: Path):
    more = ["--data", place / "drawings", "--backbone", place / "zoo" / "backbone"]
    for size in (30, 50):
        words = f"collect {TASKS} --tasks.per-setting {size}"
        assert ltdi_(words, *more, "--out", tmp_path / str(size)) == 0
    both = tmp_path / "both"
    assert ltdi_("zoo merge", tmp_path / "30", tmp_path / "50", "--out", both) == 0
    assert sum(len(g) for g in Zoo.open(both).groups()) == 160
    assert ltdi_(f"train {SIZES} --meta.iterations 2 --zoo", both, "--out", tmp_path / "g") == 0


def test_a_given_backbone_sees_the_side_that_is_asked_for(place: Path, tmp_path: Path, capsys):
    words = f"collect {TASKS} --tasks.per-setting 20 --side 36 --data"
    assert ltdi_(words, place / "drawings", "--out", tmp_path / "a") == 2
    assert "only a pretrained backbone" in capsys.readouterr().err
    given = ("--backbone", place / "zoo" / "backbone")
    assert ltdi_(words, place / "drawings", *given, "--out", tmp_path / "b") == 0
    assert Backbone.load(tmp_path / "b" / "backbone").transform.size == 36


@pytest.mark.parametrize("target", ["net", "adapter", "head"])
def test_a_side_is_of_pretrained_backbones_alone(target: str, tmp_path: Path, capsys):
    command = f"collect --data glyphs --target {target} --side 36 --out"
    assert ltdi_(command, tmp_path / "zoo") == 2
    assert "where: --side" in capsys.readouterr().err


def test_train_makes_a_generator_with_a_log(place: Path):
    gen = Generator.from_pretrained(place / "gen")
    recipe = gen.parts.about["recipe"]
    assert recipe["meta"]["iterations"] == 12 and recipe["network"]["width"] == 32
    assert recipe["tasks"]["ways"] == [3] and recipe["prepare"]["steps"] == 8
    records = [json.loads(line) for line in (place / "gen" / "log.jsonl").open()]
    assert [r["step"] for r in records if r["event"] == "train"] == [10, 12]


def test_training_beside_collection_ends_as_it_does_without_workers(place: Path, tmp_path: Path):
    """Other shards, other workers, an interruption: with planned arrivals nothing matters."""
    words = f"{TASKS} --tasks.shard 3".replace("--", "--collect.")
    given = ["--collect.data", place / "drawings", "--collect.backbone", place / "zoo" / "backbone"]
    for name, more in (("one", "--workers 0"), ("two", "--workers 1")):
        command = f"train {SIZES} --meta.iterations 12 {words} {more}"
        path = tmp_path / name
        assert ltdi_(command, *given, "--zoo", path / "zoo", "--out", path / "gen") == 0
    files = [(tmp_path / n / "gen" / "model.safetensors").read_bytes() for n in ("one", "two")]
    assert files[0] == files[1]
    log = [json.loads(line) for line in (tmp_path / "one" / "gen" / "log.jsonl").open()]
    seen = [r["shards"] for r in log if r["event"] == "arrivals"]
    assert len(seen) > 3 and seen == sorted(seen) and seen[-1] == 20
    # The zoo is a zoo like any other.
    assert ltdi_("zoo verify", tmp_path / "one" / "zoo") == 0


def test_landed_arrivals_are_noted(place: Path, tmp_path: Path):
    words = TASKS.replace("--", "--collect.")
    given = ["--collect.data", place / "drawings", "--collect.backbone", place / "zoo" / "backbone"]
    command = f"train {SIZES} --meta.iterations 6 {words} --workers 0 --arrivals landed"
    assert ltdi_(command, *given, "--zoo", tmp_path / "zoo", "--out", tmp_path / "gen") == 0
    noted = [json.loads(x) for x in (tmp_path / "gen" / "arrivals.jsonl").open()]
    assert noted[0]["step"] == 0 and noted[-1]["step"] == 6


@pytest.fixture(scope="module")
def head(place: Path) -> Path:
    out = place / "head.safetensors"
    assert (
        ltdi_("generate --generator", place / "gen", "--support", place / "support", "--out", out)
        == 0
    )
    return out


def test_generate_writes_the_head_that_python_gives(place: Path, head: Path):
    gen = Generator.from_pretrained(place / "gen")
    images = folder.load(place / "support", size=28, channels=1)
    labels = torch.arange(3).repeat_interleave(2)
    expected = gen.generate(Support(images.images, labels))
    written = load_file(head)
    assert sorted(written) == ["bias", "weight"]
    for name in expected:
        torch.testing.assert_close(written[name], expected[name])
    with safe_open(head, "pt") as stream:
        metadata = stream.metadata()
    assert json.loads(metadata["task"]) == ["class00", "class01", "class02"]
    assert metadata["generator"] == gen.revision
    assert metadata["backbone"] == gen.backbone.fingerprint


def test_generate_takes_options_and_overwrites_its_own_file(
    place: Path, head: Path, tmp_path: Path
):
    out = tmp_path / "h.safetensors"
    command = ["--generator", place / "gen", "--support", place / "support", "--out", out]
    noisy = "generate --steps 5 --temperature 1.0 --samples 2 --sampler ddpm --seed"
    assert ltdi_(f"{noisy} 1", *command) == 0
    first = load_file(out)
    assert ltdi_(f"{noisy} 1", *command) == 0
    assert torch.equal(load_file(out)["weight"], first["weight"])
    assert ltdi_(f"{noisy} 2", *command) == 0
    assert not torch.equal(load_file(out)["weight"], first["weight"])
    assert not torch.equal(load_file(head)["weight"], first["weight"])


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_an_exported_classifier_is_whole(place: Path, head: Path, tmp_path: Path, format: str):
    """Rebuilt from its two files alone, it classifies as the generator does."""
    out = tmp_path / "classifier"
    command = ["export", "--generator", place / "gen", "--weights", head, "--out", out]
    assert ltdi_("", *command, "--format", format) == 0
    config = json.loads((out / "config.json").read_text())
    if format == "npz":
        with np.load(out / "model.npz", allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    else:
        tensors = load_file(out / "model.safetensors")
    net = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    about = {"config": config["backbone"], "transform": config["transform"]}
    backbone = Backbone.from_config(about, net)
    assert config["classes"] == ["class00", "class01", "class02"]
    images = folder.load(place / "support", size=40, channels=3).images
    assert config["logits"] == "backbone(transform(images)) @ head.weight.T + head.bias"
    logits = backbone.features(images) @ tensors["head.weight"].T + tensors["head.bias"]
    gen = Generator.from_pretrained(place / "gen")
    torch.testing.assert_close(logits.softmax(-1), gen.classify(load_file(head), images))


def test_evaluate_writes_what_it_measures(place: Path, tmp_path: Path, capsys):
    out = tmp_path / "deep" / "r.json"
    command = "evaluate --way 4 --shot 2 --query 3 --episodes 50 --seed 5 --json"
    arguments = [out, "--generator", place / "gen", "--data-dir", place / "test"]
    assert ltdi_(command, *arguments) == 0
    shown = capsys.readouterr().out
    assert "lt-di" in shown and "protonet" in shown
    result = json.loads(out.read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert result["track"] == "evaluate"
    assert set(rows) == {"lt-di", "anchor", "protonet", "linear-probe"}
    assert "On these images lt-di is " in shown
    # The same by hand, on the same episodes.
    gen = Generator.from_pretrained(place / "gen")
    bank = gen.backbone.bank(folder.load(place / "test", size=28, channels=1))
    tasks = bank.episodes(way=4, shot=2, query=3, episodes=50, seed=5)
    parts = gen.space(4).unflatten(gen.weights(bank.features[tasks.support]))
    query = bank.features[tasks.query].flatten(1, 2)
    logits = query @ parts["weight"].mT + parts["bias"].unsqueeze(1)
    right = logits.argmax(-1) == torch.arange(4).repeat_interleave(3)
    assert rows["lt-di"]["mean"] == pytest.approx(float(right.float().mean()), abs=0.006)
    assert rows["lt-di"]["episodes"] == 50 and rows["lt-di"]["mean"] > 0.4
    anchor = gen.weights(bank.features[tasks.support], strength=0.0, sharpness=1.0)
    alone = query_logits(anchor, bank.features[tasks.query])
    assert rows["anchor"]["mean"] == pytest.approx(float(accuracy(alone).mean()), abs=0.006)
    difference = rows["lt-di"]["mean"] - rows["protonet"]["mean"]
    assert result["settings"]["paired"]["protonet"]["mean"] == pytest.approx(difference, abs=1e-5)
    assert ltdi_(command, *arguments) == 0  # its own file may be replaced


def test_evaluate_compares_with_the_peers_asked_for(place: Path, tmp_path: Path, capsys):
    arguments = ["--generator", place / "gen", "--data-dir", place / "test", "--json"]
    command = "evaluate --way 3 --query 3 --episodes 20 --peers finetune --steps 2"
    assert ltdi_(command, *arguments, tmp_path / "r.json") == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"lt-di", "anchor", "finetune"}
    # More than a hundred images a task: what would take minutes has to be asked for.
    many = "evaluate --way 17 --shot 6 --query 1 --episodes 5"
    assert ltdi_(many, *arguments, tmp_path / "r.json") == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"lt-di", "anchor", "protonet"}
    assert ltdi_("evaluate --peers linear-prob", *arguments, tmp_path / "r.json") == 2
    assert "did you mean 'linear-probe'" in capsys.readouterr().err
    assert ltdi_("evaluate --way 50", *arguments, tmp_path / "r.json") == 2
    shown = capsys.readouterr().err
    assert "needs 50 classes" in shown and "features" not in shown


def test_evaluate_lowers_the_queries_and_says_so(place: Path, capsys):
    arguments = ["--generator", place / "gen", "--data-dir", place / "test"]
    assert ltdi_("evaluate --shot 3 --episodes 5", *arguments) == 0
    assert "leaves 5 query images, not 15" in capsys.readouterr().err


# ---- resuming and configuration -----------------------------------------------------------------


def test_collecting_and_training_again_change_nothing(place: Path, capsys):
    revision = Generator.from_pretrained(place / "gen").revision
    index = (place / "zoo" / "zoo.json").read_bytes()
    assert ltdi_(f"collect {TASKS} --data", place / "drawings", "--out", place / "zoo") == 0
    # The table has a row for each way and shot, whatever the number of folds.
    rows = re.findall(r"3\W+([12])\W+(\d+)\W+0\W+\d\.\d+", capsys.readouterr().out)
    assert rows == [("1", "30"), ("2", "30")]
    assert (
        ltdi_(f"train {SIZES} --meta.iterations 12 --zoo", place / "zoo", "--out", place / "gen")
        == 0
    )
    assert (place / "zoo" / "zoo.json").read_bytes() == index
    assert Generator.from_pretrained(place / "gen").revision == revision


def test_the_saved_options_reproduce_the_run(place: Path, tmp_path: Path):
    config = place / "zoo" / "collect.yaml"
    assert ltdi_("collect --config", config, "--out", tmp_path / "zoo") == 0
    old, new = (Zoo.open(p / "zoo") for p in (place, tmp_path))
    assert old.about == new.about
    assert [s["digest"] for s in old.shards] == [s["digest"] for s in new.shards]
    config = place / "gen" / "train.yaml"
    assert ltdi_("train --config", config, "--out", tmp_path / "gen") == 0
    made = Generator.from_pretrained(tmp_path / "gen")
    assert made.revision == Generator.from_pretrained(place / "gen").revision


def test_options_override_a_configuration_file(place: Path, tmp_path: Path):
    config = place / "gen" / "train.yaml"
    command = ["--config", config, "--out", tmp_path / "gen"]
    assert ltdi_("train", *command, "--meta.iterations", 3, "--meta.inner_lr=0.01") == 0
    recipe = Generator.from_pretrained(tmp_path / "gen").parts.about["recipe"]
    assert (recipe["meta"]["iterations"], recipe["meta"]["inner_lr"]) == (3, 0.01)
    assert recipe["network"]["width"] == 32  # of the file
    saved = (tmp_path / "gen" / "train.yaml").read_text()
    assert re.search(r"iterations: 3\b", saved)


def test_both_spellings_of_an_option_are_read():
    for spelling in ("--data-dir", "--data_dir"):
        for form in ([f"{spelling}=x_y-z"], [spelling, "x_y-z"]):
            words = [cli._underscored(a) for a in ["evaluate", "--generator", "g", *form]]
            assert cli.make_parser().parse_args(words).evaluate.data_dir == "x_y-z"


def test_every_track_has_options_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def other(planet: str, seed: int = 0, *, methods, preset, progress, log):
        """Another family of tasks.

        Args:
            planet: Where it takes place.
        """
        seen.append((planet, seed, methods, preset))
        raise InputError("only parsed")

    track = Track(other, ("a", "b"), lambda options: options["planet"])
    monkeypatch.setitem(cli.TRACKS, "other", track)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.yaml").write_text("planet: mars\nseed: 3\n")
    assert ltdi_("bench other --planet venus --methods b,c --preset smoke") == 2
    assert ltdi_("bench other --config b.yaml --seed 4") == 2
    assert seen == [("venus", 0, ("b", "c"), "smoke"), ("mars", 4, ("a", "b"), "standard")]
    for command in ("bench other --planet venus --shot 5", "bench fewshot --planet venus"):
        with pytest.raises(SystemExit):
            cli.main(shlex.split(command))


def test_the_first_track_may_go_without_its_name(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def record(track, options, methods: str = "all", resolved: str = ""):
        """See `commands.bench`.

        Args:
            methods: Names.
        """
        seen.append((track, options["shot"], methods))

    monkeypatch.setitem(cli.COMMANDS, "bench", record)
    assert ltdi_("bench --dataset glyphs --shot 5") == ltdi_("bench fewshot --dataset x") == 0
    assert seen == [("fewshot", 5, "all"), ("fewshot", 1, "all")]


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_during_training_resumes_bit_for_bit(place: Path, tmp_path: Path):
    settings = shlex.split(f"train {SIZES} --meta.iterations 60 --meta.checkpoint-every 1000")
    out = tmp_path / "stopped"
    command = [*settings, "--zoo", place / "zoo", "--out"]
    process = subprocess_ltdi(*command, out)
    log, deadline = out / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and '"step": 10,' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from what is on disk" in shown and "Traceback" not in shown
    assert not (out / "model.safetensors").exists()
    assert ltdi_("", *command, out) == 0
    steps = [json.loads(line).get("step") for line in log.open()]
    assert steps.count(10) == 1 and steps.count(60) == 1  # it went on, not anew
    assert ltdi_("", *command, tmp_path / "whole") == 0
    stopped, whole = (Generator.from_pretrained(p) for p in (out, tmp_path / "whole"))
    assert stopped.revision == whole.revision
    assert stopped.parts.sampling == whole.parts.sampling


def test_the_module_and_its_version_run_as_a_program():
    process = subprocess_ltdi("--version")
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and shown.startswith("ltdi ")


def test_an_error_of_the_input_has_status_2_and_no_traceback(tmp_path: Path):
    process = subprocess_ltdi("train", "--zoo", tmp_path / "none", "--out", tmp_path / "o")
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in shown
    assert "is not a zoo" in shown and "to do: make one with `ltdi collect" in shown
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch):
    def closed(out: str = "o", resolved: str = "") -> None:
        """Print to a pipe that nobody reads."""
        raise BrokenPipeError

    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setitem(cli.COMMANDS, "demo", closed)
    assert cli.main(["demo"]) == 1
