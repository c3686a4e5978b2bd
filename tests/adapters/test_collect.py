"""`ltdi.adapters.collect`: runs are shards like any other, whoever makes them and whenever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from ltdi.adapters.collect import RunCollection, begin_runs, collected, reader
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.runs import Run, Runs, plan
from ltdi.adapters.source import Source, TaskRows
from ltdi.adapters.training import AdapterRecipe, train_network
from ltdi.engine import Engine, Runtime
from ltdi.errors import InputError, MismatchError
from ltdi.lora import Adapter
from ltdi.parts import Parts
from ltdi.zoo import Zoo

from .conftest import RECIPE, TASKS, quick

Begin = Callable[..., RunCollection]


@pytest.fixture
def begin(host: LanguageHost, sources: list[Source], tmp_path: Path) -> Begin:
    def go(name: str = "zoo", recipe: AdapterRecipe = RECIPE) -> RunCollection:
        return begin_runs(tmp_path / name, host, sources, {}, recipe)

    return go


def files(zoo: Zoo) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in zoo.path.glob("*-*-*.safetensors")}


def test_the_texts_of_a_zoo_are_those_that_were_given(zoo: Zoo, sources: list[Source]) -> None:
    for number, s in enumerate(sources):
        kept = TaskRows.kept(zoo, number)
        assert (kept.name, kept.train.texts) == (s.name, s.train.texts)
        assert kept.train.label_names == s.train.label_names
        assert kept.train.label_range == s.train.label_range
        assert torch.equal(kept.train.targets, s.train.targets)
        for name in ("inputs", "fit", "valid"):
            assert torch.equal(getattr(kept, name), getattr(s, name))


def test_trunks_come_first_and_a_zoo_grows(zoo: Zoo, begin: Begin) -> None:
    few = begin(recipe=replace(RECIPE, runs=replace(RECIPE.runs, branches=1)))
    names = [piece.name for piece in few.plan]
    assert names == ["tone-trunk-0", "amount-trunk-0", "tone-branch-000", "amount-branch-000"]
    assert few.least == 2
    few.fill()
    begin().fill()
    assert files(few.zoo) == files(zoo) and len(files(zoo)) == 2 * 3


def test_a_task_without_labels_is_given_one_trunk(
    host: LanguageHost, sources: list[Source], tmp_path: Path
) -> None:
    tasks = [sources[0], replace(sources[1], origin="texts.csv")]
    recipe = replace(RECIPE, runs=Runs(trunks=2, branches=2))
    collection = begin_runs(tmp_path / "zoo", host, tasks, {}, recipe)
    trunks = ["tone-trunk-0", "amount-trunk-0", "tone-trunk-1"]
    branches = [f"{name}-branch-00{i}" for i in range(2) for name in TASKS]
    assert [piece.name for piece in collection.plan] == trunks + branches
    assert collection.least == 3 and collection.zoo.about["unlabelled"] == ["amount"]
    assert TaskRows.kept(collection.zoo, 1).origin == "texts.csv"
    runs = [collection.run(p.task, p.index) for p in collection.plan]
    assert [r.trunk for r in runs] == [0, 0, 1, 0, 0, 1, 0]
    assert all(p.name.endswith(r.name) for p, r in zip(collection.plan, runs, strict=True))


def test_a_zoo_that_is_begun_is_planned_once(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def counted(adapter: Adapter, source: TaskRows, runs: Runs, *, seed: int) -> list[Run]:
        planned.append(source.name)
        return plan(adapter, source, runs, seed=seed)

    monkeypatch.setattr("ltdi.adapters.collect.plan", counted)
    collection = begin()
    assert [collection.run(t, i).name for t in (0, 1) for i in (0, 2)][-1] == "branch-001"
    assert planned == list(TASKS)


def test_a_zoo_says_how_its_runs_were_made(zoo: Zoo, begin: Begin) -> None:
    assert collected(zoo, AdapterRecipe()) == replace(
        AdapterRecipe(), runs=RECIPE.runs, prepare=RECIPE.prepare
    )
    own = replace(RECIPE, own={"tone": RECIPE.prepare})
    begun = begin(recipe=own)
    assert own.runs.branches > 0
    for _ in range(2):  # before and after its runs
        assert collected(begun.zoo, RECIPE, len(begun.plan)) == own
        begun.fill()
    assert collected(begun.zoo, RECIPE) == own


def test_a_branch_that_comes_first_makes_its_trunk(zoo: Zoo, begin: Begin) -> None:
    collection = begin()
    RunCollection.job(str(collection.zoo.path), 3)
    collection.zoo.refresh()
    assert [e["name"] for e in collection.zoo.shards] == ["amount-branch-000", "amount-trunk-0"]
    assert all(files(zoo)[name] == data for name, data in files(collection.zoo).items())
    assert all(e["mean"]["seconds"] > 0 for e in collection.zoo.shards)


def test_two_workers_make_the_zoo_of_one_process(zoo: Zoo, begin: Begin) -> None:
    collection = begin()
    collection.fill(Engine(workers=2))
    assert files(collection.zoo) == files(zoo)


@pytest.mark.slow
def test_ray_makes_the_zoo_of_one_process(zoo: Zoo, begin: Begin) -> None:
    pytest.importorskip("ray", reason="RAY NOT TESTED: pip install -e '.[ray]'")
    collection = begin()
    collection.fill(Engine("ray", 2))
    assert files(collection.zoo) == files(zoo)


def test_what_diverges_is_dropped_with_its_branches(begin: Begin) -> None:
    wild = replace(RECIPE, prepare=replace(RECIPE.prepare, optimiser="sgd", lr=1e38))
    collection = begin(recipe=wild)
    collection.fill()
    assert [(e["tasks"], e["dropped"]) for e in collection.zoo.shards] == [(0, 1)] * 6


def test_other_settings_texts_and_tasks_are_refused(
    begin: Begin, host: LanguageHost, sources: list[Source], tmp_path: Path
) -> None:
    begin()
    for other in (
        replace(RECIPE, prepare=replace(RECIPE.prepare, lr=1)),
        replace(RECIPE, runs=replace(RECIPE.runs, shared=0.9)),
    ):
        with pytest.raises(MismatchError, match="the zoo was made with"):
            begin(recipe=other)
    fewer = [replace(s, fit=s.fit[:-1]) for s in sources]
    with pytest.raises(MismatchError, match="from other texts of tone than are given"):
        begin_runs(tmp_path / "zoo", host, fewer, {}, RECIPE)
    for none in ([], [sources[0], sources[0]]):
        with pytest.raises(InputError, match="text tasks need names of their own"):
            begin_runs(tmp_path / "new", host, none, {}, RECIPE)
    with pytest.raises(InputError, match="0 trunks and 2 branches"):
        begin("new", replace(RECIPE, runs=Runs(trunks=0, branches=2)))
    assert not (tmp_path / "new").exists()


def overlapped(collection: RunCollection, out: Path, stop: int | None = None) -> Parts:
    """Trained while runs are made; interrupted after an iteration."""
    recipe, seen = quick(iterations=8, checkpoint_every=3), []
    out.mkdir(exist_ok=True)

    def told(stage: str, done: int, total: int, text: str) -> None:
        if stage == "shards":
            seen.append(done)
        if stage == "meta-training" and done == stop:
            raise KeyboardInterrupt

    with collection.start(Engine()) as running:
        arrivals = collection.arrivals(recipe.meta.iterations, running)
        read = reader(collection.zoo, collection.host, worse=10.0)
        groups = arrivals.at(0)
        assert groups is not None and arrivals.visible == collection.least == 2
        runtime = Runtime(out, told, arrivals=arrivals)
        made = train_network(read(groups), collection.host, recipe, runtime=runtime, read=read)
    assert stop or (seen == sorted(seen) and seen[-1] == 6)
    return made


class Look:
    """Runs of task 0 that are there by now: their beginnings and scores."""

    setting: ClassVar = {"task": 0, "way": 2}

    def __init__(self, beginnings: list[float], scores: list[float]) -> None:
        self.columns = {
            "theta": torch.tensor(beginnings)[:, None, None].repeat(1, 3, 4),
            "score": torch.tensor(scores),
            "features": torch.zeros(len(scores), 5, 6),
            "targets": torch.zeros(len(scores), 5),
        }

    def __len__(self) -> int:
        return len(self.columns["score"])

    def read(self, pick: torch.Tensor, columns: list[str]) -> dict[str, torch.Tensor]:
        self.picked = pick.tolist()
        return {name: self.columns[name][pick] for name in columns}


def test_a_look_reads_what_is_new(zoo: Zoo, host: LanguageHost) -> None:
    looks, read = [Look([1.0] * n, [0.9] * n) for n in (1, 3, 3)], reader(zoo, host)
    sizes = [len(found) for look in looks for found in read([look])]  # type: ignore[list-item]
    assert sizes == [1, 3, 3]
    assert (looks[0].picked, looks[1].picked) == ([0], [1, 2]) and not hasattr(looks[2], "picked")


def test_a_task_keeps_the_trunk_of_the_first_look(zoo: Zoo, host: LanguageHost) -> None:
    read = reader(zoo, host)
    (first,) = read([Look([1.0, 2.0], [0.9, 0.8])])  # type: ignore[list-item]
    (later,) = read([Look([1.0, 2.0, 2.0, 1.0, 1.0], [0.9, 0.8, 1.0, 0.5, 0.91])])  # type: ignore[list-item]
    assert first.theta[:, 0, 0].tolist() == [1.0]
    assert later.theta[:, 0, 0].tolist() == [1.0, 1.0]  # the one that failed is left out
    (anew,) = reader(zoo, host)([Look([1.0, 2.0], [0.8, 0.9])])  # type: ignore[list-item]
    assert anew.theta[:, 0, 0].tolist() == [2.0]


def test_training_beside_collection_begins_with_the_trunks_and_resumes(
    begin: Begin, tmp_path: Path
) -> None:
    whole = overlapped(begin("a"), tmp_path / "a-out")
    with pytest.raises(KeyboardInterrupt):
        overlapped(begin("b"), tmp_path / "b-out", stop=4)
    resumed = overlapped(begin("b"), tmp_path / "b-out")
    ended = overlapped(begin("b"), tmp_path / "b-out")  # killed after the last iteration
    states = [t.network.state_dict() for t in (whole, resumed, ended)]
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in other)
    assert len(states[0]["known_task"]) == 2 and bool(states[0]["known_task"].any(1).all())
