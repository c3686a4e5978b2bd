from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.adapters.collect import begin_runs, reader
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.kept import Kept
from ltdi.adapters.network import AdapterDenoiser
from ltdi.adapters.peers import average, complete, full_model, nearest
from ltdi.adapters.runs import Runs
from ltdi.adapters.source import Source
from ltdi.adapters.training import AdapterObjective, Solved, _rename, named_recipe, train_network
from ltdi.engine import Runtime
from ltdi.errors import InputError, MismatchError
from ltdi.files import read_tensors
from ltdi.lora import adapter_logits, fit_adapter
from ltdi.weights import Normaliser
from ltdi.zoo import Zoo

from .conftest import RECIPE, quick


def test_a_task_may_be_solved_in_its_own_way(
    host: LanguageHost, sources: list[Source], tmp_path: Path
) -> None:
    own = replace(RECIPE.prepare, steps=4)
    recipe = replace(RECIPE, own={"tone": own, "other": own}, runs=Runs(trunks=1, branches=0))
    assert recipe.preparation("tone") == own and recipe.preparation("amount") == recipe.prepare
    some = sources[:1]
    collection = begin_runs(tmp_path / "zoo", host, some, {}, recipe)
    zoo = collection.zoo
    assert list(zoo.about["own"]) == ["tone"] and zoo.about["own"]["tone"]["steps"] == 4
    collection.fill()
    rng = torch.Generator().manual_seed(1_000_003)
    s = some[0]
    alone = fit_adapter(host.adapter(2), s.inputs[s.fit], s.train.targets[s.fit], own, rng)
    assert torch.equal(zoo.columns(zoo.entry("tone-trunk-0"))["theta"][0], alone.theta)
    with pytest.raises(MismatchError, match="own"):
        begin_runs(tmp_path / "zoo", host, some, {}, replace(recipe, own={"tone": RECIPE.prepare}))


def test_a_fit_that_failed_is_left_out(zoo: Zoo, host: LanguageHost) -> None:
    everything, best = (
        reader(zoo, host, worse=10.0)(zoo.groups()),
        reader(zoo, host, worse=0.0)(zoo.groups()),
    )
    assert [len(g) for g in everything] == [3, 3]
    assert all(1 <= len(b) <= len(a) for a, b in zip(everything, best, strict=True))
    assert [g.outputs for g in everything] == [1, 2]


def test_only_runs_that_begin_like_the_best_are_learnt_from(
    host: LanguageHost, sources: list[Source], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, runs=replace(RECIPE.runs, trunks=2, branches=2))
    collection = begin_runs(tmp_path / "zoo", host, sources[:1], {}, recipe)
    collection.fill()
    zoo = collection.zoo
    score = {e["name"]: e["mean"]["score"] for e in zoo.shards}
    best = max(score, key=lambda n: score[n])
    trunk = int(best[-1]) % 2
    (one,) = reader(zoo, host, worse=10.0)(zoo.groups())
    assert len(zoo.shards) == 4 and len(one) == 2
    first = zoo.columns(zoo.entry(f"tone-trunk-{trunk}"))["theta"][0, 0]
    assert (one.theta[:, 0] == first).all()


def test_renaming_classes_is_the_run_of_the_renamed_task(
    groups: list[Solved], host: LanguageHost
) -> None:
    """What training permutes in coordinates is what swapping rows of the head does."""
    space = host.adapter(2).space
    network = AdapterDenoiser(space, host.base.width, RECIPE.network, 4, rank=4)
    network.basis.fit([(groups[1].theta.flatten(0, 1), space)])
    z = network.basis.enter(groups[1].theta, space)
    known = torch.arange(3 * 2.0).view(3, 2, 1)
    turned, outputs = _rename(z, known, network, 2, torch.Generator().manual_seed(3))
    swapped = [bool(o[0, 0] > o[1, 0]) for o in outputs]
    assert any(swapped) and not all(swapped)
    for i, moved in enumerate(swapped):
        w = space.unflatten(groups[1].theta[i])
        w = {n: x.flip(1) if moved and "modules_to_save" in n else x for n, x in w.items()}
        want = network.basis.enter(space.flatten(w), space)
        torch.testing.assert_close(turned[i], want)


def test_training_learns_and_is_fixed_by_its_seed(groups: list[Solved], host: LanguageHost) -> None:
    losses: list[float] = []

    def told(stage: str, done: int, total: int, text: str) -> None:
        losses.append(float(text.removeprefix("loss ")))

    recipe = quick(iterations=40, meta_lr=5e-3)
    one = train_network(groups, host, recipe, runtime=Runtime(progress=told))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    again = train_network(groups, host, quick(iterations=2))
    other = train_network(groups, host, quick(iterations=2))
    for a, b in zip(again.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.network.recall(2).outputs.shape[:2] == (2, 2)


def test_nothing_to_learn_from(host: LanguageHost) -> None:
    with pytest.raises(InputError, match="no run to learn from"):
        train_network([], host, RECIPE)


def test_a_hypernetwork_is_a_regression_on_descriptions() -> None:
    text = named_recipe("hypernetwork", RECIPE)
    assert replace(text, rows=True) == named_recipe("anchored-regression", RECIPE) and not text.rows
    with pytest.raises(InputError, match="lt-di"):
        named_recipe("ltdi", RECIPE)


def test_a_hypernetwork_sees_the_description_alone(
    groups: list[Solved], host: LanguageHost
) -> None:
    recipe = named_recipe("hypernetwork", RECIPE)
    spaces = [host.adapter(g.outputs).space for g in groups]
    network = AdapterDenoiser(
        spaces[0], host.base.width, recipe.network, 1, rank=4, rows=False, tasks=2
    )
    network.basis.fit([(g.theta.flatten(0, 1), s) for g, s in zip(groups, spaces, strict=True)])
    latent = network.latent(1)
    normaliser = Normaliser(torch.zeros(len(latent.params)), torch.ones(len(latent.params)))
    objective = AdapterObjective(groups, host, network, normaliser, recipe)
    batch = objective.draw(torch.Generator().manual_seed(0), 6)
    assert batch["text"][:, -1].all()


def test_the_soup_is_the_mean_over_tasks(groups: list[Solved], host: LanguageHost) -> None:
    spaces = [host.adapter(g.outputs).space for g in groups]
    soup = average(groups, spaces)
    assert not any("modules_to_save" in name for name in soup)
    name = next(iter(soup))
    each = [s.unflatten(g.theta[:, -1].mean(0))[name] for g, s in zip(groups, spaces, strict=True)]
    torch.testing.assert_close(soup[name], (each[0] + each[1]) / 2)
    theta = complete(host.adapter(2), soup)
    assert torch.equal(host.adapter(2).space.unflatten(theta)[name], soup[name])


def test_the_nearest_task_is_the_task_itself(groups: list[Solved], host: LanguageHost) -> None:
    spaces = [host.adapter(g.outputs).space for g in groups]
    for i, g in enumerate(groups):
        weights, task = nearest(groups, spaces, g.features[0], g.targets[0], g.outputs)
        assert task == int(g.task[0])
        assert any("modules_to_save" in name for name in weights)
        torch.testing.assert_close(spaces[i].flatten(weights), g.theta[:, -1].mean(0))


def test_full_fine_tuning_moves_the_encoder(host: LanguageHost, sources: list[Source]) -> None:
    model = full_model(host.base, 2)
    s = sources[0]
    rng = torch.Generator().manual_seed(0)
    p = replace(RECIPE.prepare, lr=1e-2, steps=4, segments=1)
    found = fit_adapter(model, s.inputs[s.fit], s.train.targets[s.fit], p, rng)
    before, after = (model.space.unflatten(t) for t in (model.theta_0, found.theta[-1]))
    assert len(before) > 20 and not any("word_embeddings" in name for name in before)
    assert all(not torch.equal(before[n], after[n]) for n in before if "query.weight" in n)
    assert adapter_logits(model, found.theta[-1], s.dev_inputs).shape == (len(s.dev), 2)


def test_pieces_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.arange(3)}

    kept = Kept(tmp_path / "work", {"lr": 1})
    assert torch.equal(kept("a/b", make)["x"], torch.arange(3))
    later = Kept(tmp_path / "work", {"lr": 1})
    assert torch.equal(later("a/b", make)["x"], torch.arange(3)) and len(made) == 1
    assert kept.peak_mb == pytest.approx(later.peak_mb, abs=1) and later.peak_mb > 10
    assert later.seconds["a/b"] == pytest.approx(kept.seconds["a/b"], abs=1e-3)
    with pytest.raises(MismatchError, match="lr = 1, now 2"):
        Kept(tmp_path / "work", {"lr": 2})
    here = Kept(None, {})
    here("a", make)
    here("a", make)
    assert len(made) == 2


TWO = """
from pathlib import Path
import torch
from ltdi.adapters.collect import reader
from ltdi.adapters.training import train_network
from ltdi.engine import Runtime
from ltdi.files import write_tensors
from ltdi.meta.team import Team
from ltdi.zoo import Zoo
from ltdi.adapters.host import LanguageHost
from tests.adapters.conftest import RECIPE
torch.set_num_threads(1)
team = Team.join("cpu")
assert team.size == 2
zoo = Zoo.open({zoo!r})
host = LanguageHost.from_config(zoo.about["base"])
groups = reader(zoo, host, worse=10.0)(zoo.groups())
trained = train_network(groups, host, RECIPE, runtime=Runtime(team=team))
if team.main:
    write_tensors(Path({out!r}), dict(trained.network.state_dict()))
team.leave()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(
    zoo: Zoo, host: LanguageHost, groups: list[Solved], tmp_path: Path
) -> None:
    pytest.importorskip(
        "accelerate", reason="ACCELERATE NOT TESTED: pip install -e '.[accelerate]'"
    )
    script, out = tmp_path / "two.py", tmp_path / "two.safetensors"
    script.write_text(TWO.format(zoo=str(zoo.path), out=str(out)))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, "--master-port", "29619", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    alone = train_network(groups, host, RECIPE)
    two = read_tensors(out)
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
