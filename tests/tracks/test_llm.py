from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.adapters.kept import Kept
from ltdi.adapters.source import Source
from ltdi.cli import main
from ltdi.errors import InputError
from ltdi.generator import AdapterGenerator
from ltdi.tracks import TRACKS, Outcome, llm, llm_choice, llm_scores
from ltdi.tracks.llm_presets import DEV, SETTINGS, UNSEEN, settings_of
from tests.lora.conftest import libraries, offline

__all__ = ["libraries", "offline"]


@pytest.fixture(scope="module")
def tiny() -> pytest.MonkeyPatch:
    """The smoke preset, with even less of everything."""
    patch = pytest.MonkeyPatch()
    p = llm.PRESETS["smoke"]
    recipe = replace(
        p.recipe,
        runs=replace(p.recipe.runs, branches=1),
        prepare=replace(p.recipe.prepare, steps=5),
        meta=replace(p.recipe.meta, iterations=3),
    )
    full = replace(p.full, steps=2, segments=1)
    small = replace(p, recipe=recipe, full=full, dev=40, warm_steps=5, few_steps=2)
    patch.setattr(llm_scores, "RESAMPLES", 10)
    patch.setitem(llm.PRESETS, "smoke", small)  # type: ignore[arg-type]
    yield patch
    patch.undo()


def run(work: Path, **options: object) -> Outcome:
    given: dict[str, object] = {"methods": llm.ALL_METHODS, "preset": "smoke", "seeds": 1}
    given |= {"tasks": "rule:tone,rule:same,rule:amount", "work": str(work), **options}
    return llm.bench(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outcome(tiny: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(tmp_path_factory.mktemp("llm") / "work")


def test_every_method_has_a_row_in_every_setting(outcome: Outcome) -> None:
    rows = outcome.result.rows
    for task in ("tone", "same", "amount"):
        found = {r.method for r in rows if r.dataset == task}
        assert found == set(llm.ALL_METHODS) - {"lora-support", "zoo-search"}
        for kind in ("unseen", "unseen, dev rows"):
            unseen = {r.method for r in rows if r.dataset == f"{task}, {kind}"}
            assert unseen == set(llm.ALL_METHODS) - {"lora", "full-finetune"}
    means = {r.dataset for r in rows if r.metric == "score"}
    assert {"mean of 3", "mean of 3, unseen", "mean of 3, unseen, dev rows"} <= means
    assert {r.kind for r in rows if r.method == "lt-di"} == {"ours"}
    metrics = {r.dataset: r.metric for r in rows if r.method == "lora"}
    assert metrics["amount"] == "spearman" and metrics["tone"] == "accuracy"


def test_the_result_is_json_and_says_what_was_compared(outcome: Outcome) -> None:
    data = outcome.result.to_dict()
    assert json.loads(json.dumps(data))["rows"] == data["rows"]
    s = data["settings"]
    assert set(s["speed"]) == {"tone", "same", "amount"}
    assert all(v["ratio"] > 0 and v["of"] == 1 for v in s["speed"].values())
    warm = s["warm start"]["tone, unseen"]
    assert list(warm["warm"]) == list(warm["short"]) == ["0", "1", "2", "3", "4", "5"]
    assert warm["each seed's"] == [warm["steps to scratch's metric"]]  # of one
    assert set(warm["rates"]["lt-di"]) == {"0.5", "1", "1.5"}
    assert any(name.endswith(", unseen slice") for name in s["warm start"])
    assert set(s["chosen"]["lt-di"]["heads"]["tone"]) == {"auto", "generated"}
    assert s["peak MB"] >= max(r["peak_mb"] for r in data["rows"]) - 1
    assert 0 < s["peak MB here"] <= s["peak MB"]
    assert s["paired"]["tone"]["lora"]["ci95"] >= 0


def test_an_interrupted_run_goes_on_and_gives_the_same(
    outcome: Outcome, tiny: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("again") / "work"
    first = run(work, methods=("lt-di", "lora"), settings="known", seeds=1)
    pieces = sorted(work.rglob("*.safetensors"))
    times = [p.stat().st_mtime_ns for p in pieces]
    second = run(work, methods=("lt-di", "lora"), settings="known", seeds=1)
    assert [p.stat().st_mtime_ns for p in pieces] == times
    for a, b in zip(first.result.rows, second.result.rows, strict=True):
        assert (a.method, a.dataset, a.mean, a.ci95) == (b.method, b.dataset, b.mean, b.ci95)


def test_unseen_tasks_are_measured_on_rows_that_nothing_else_uses(
    outcome: Outcome,
) -> None:
    shared = outcome.world
    places = settings_of(shared.sources, SETTINGS, llm.PRESETS["smoke"])
    for held in (p for p in places if p.kind == UNSEEN):
        s = held.source
        used = torch.cat([held.pool, s.valid, s.unseen])
        rest = torch.tensor(sorted(set(range(len(s.train))) - set(used.tolist())))
        assert len(rest) == len(held.labels) == 40 and held.task not in held.known
        labels = s.train.select(rest).labels
        assert labels is not None and torch.equal(labels.sort()[0], held.labels.sort()[0])
        (dev,) = (p for p in places if p.kind == DEV and p.task == held.task)
        assert dev.piece == held.piece and torch.equal(dev.pool, held.pool)
        # The same weights, on other rows.
        a, b = (shared.make("zoo-search", p, 0).theta for p in (held, dev))
        assert torch.equal(a, b)


def test_a_task_without_labels_is_known_to_unseen_tasks_but_not_to_that_of_its_texts(
    tiny: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"settings": "known,unseen", "unlabelled": "intact:rule:tone", "warm": False}
    found = run(tmp_path / "work", methods=("lt-di", "zoo-search"), **options)
    shared, p = found.world, llm.PRESETS["smoke"]
    assert shared.sources[3].name == "intact-tone" and shared.labelled == (0, 1, 2)
    assert not any("intact" in row.dataset for row in found.result.rows)
    assert found.result.to_dict()["settings"]["zoo"]["runs"] == 3 * 2 + 2
    known = {s.name: s.known for s in settings_of(shared.sources, ("known", "unseen"), p)}
    assert known["tone"] == (0, 1, 2)
    assert known["tone, unseen"] == (1, 2) and known["same, unseen"] == (0, 2, 3)
    network = shared.generator("lt-di", (0, 2, 3), 0).network
    # By number of outputs: amount, which is a regression, then tone and the one without labels.
    assert network.get_buffer("known_labelled").tolist() == [True, True, False]


def test_a_head_is_chosen_for_known_tasks_by_validation_rows(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(outcome.world, kept=Kept(None, {}), heads={})
    places = settings_of(shared.sources, ("known",), llm.PRESETS["smoke"])[:2]
    better = {places[0].source: "auto", places[1].source: "generated"}

    def score(_: object, source: Source, theta: torch.Tensor) -> float:
        task = next(p.task for p in places if p.source is source)
        return float(shared.heads["nearest"][task] == better[source])

    monkeypatch.setattr(llm_choice, "validation", score)
    found = llm_choice.choose_head(shared, "nearest", places)
    assert shared.heads["nearest"] == {p.task: better[p.source] for p in places}
    assert all(found[p.name][better[p.source]] == 1.0 for p in places)


def test_it_publishes_a_generator(outcome: Outcome, tmp_path: Path) -> None:
    outcome.publish(tmp_path)
    found = ltdi.Generator.from_pretrained(tmp_path / "generator")
    assert isinstance(found, AdapterGenerator)
    assert "tone, accuracy" in (tmp_path / "generator" / "README.md").read_text()


def test_unknown_names(tmp_path: Path) -> None:
    for options, match in (
        ({"settings": "know"}, "known"),
        ({"tasks": "rule:tome,rule:same"}, "tone"),
        ({"tasks": "sst3,cola"}, "sst-2"),
        ({"base": "not-a-model"}, "cannot load the base model"),
        ({"tasks": "rule:tone"}, "an unseen task needs others"),
        ({"target_modules": "querry"}, "query"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"unlabelled": "rule:tone"}, "write intact:rule:tone"),
    ):
        with pytest.raises(InputError, match=match):
            run(tmp_path / "work", **options)


def test_the_command_line_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert TRACKS["llm"].label({"base": None}) == "default"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "llm", "--help"])
    assert stop.value.code == 0
    assert "--target-modules" in capsys.readouterr().out
