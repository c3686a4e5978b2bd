"""`ltdi.whole`: solved nets, the objective's draws, resumed zoos and training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.denoiser import RowDenoiser
from ltdi.engine import Runtime
from ltdi.errors import InputError, MismatchError
from ltdi.generator import NetGenerator
from ltdi.nets import Initial, NetHost
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank
from ltdi.weights import Normaliser, head_space
from ltdi.whole import (
    NetCollection,
    NetObjective,
    begin_net_zoo,
    fit_doubt,
    initial_of,
    start_net_zoo,
    train_net_generator,
)
from ltdi.zoo import Zoo


def test_solved_nets_fit_their_tasks_better_with_every_local_target(net_zoo: Zoo):
    data, group = NetCollection(net_zoo), net_zoo.groups()[0]
    held, space = group.read(), group.space
    images = held["query"]
    right = []
    for i in range(held["theta"].shape[1]):
        logits = data.host.query_logits(held["theta"][:, i], data.bank.features[images])
        label = torch.arange(3).view(1, -1, 1)
        right.append(float((logits.argmax(-1) == label).float().mean()))
    # On images that they were not solved on.
    assert right[-1] > right[0] > 0.4
    start = data.anchor.local(held["theta"], held["theta"], space)
    moved = (held["theta"] - start.unsqueeze(1)).norm(dim=-1).mean(0)
    assert bool((moved.diff() > 0).all())


def test_a_zoo_collected_in_two_runs_equals_one(
    net_zoo: Zoo, net_host: NetHost, net_recipe: Recipe, tmp_path: Path
):
    data = NetCollection(net_zoo)
    first = initial_of(net_zoo)
    assert first is not None
    about = {"data": "glyphs"}
    begin_net_zoo(tmp_path / "z", data.bank, net_host, first, net_recipe, about=about).fill()
    (tmp_path / "z" / "shard-000001.safetensors").unlink()
    # Another initialisation does not replace the one that the first shard was solved from.
    other = Initial(first.theta_0 + 1, 2 * first.rate)
    again = begin_net_zoo(tmp_path / "z", data.bank, net_host, other, net_recipe, about=about)
    again.fill()
    assert again.initial.rate == first.rate
    for a, b in zip(net_zoo.groups(), again.zoo.groups(), strict=True):
        assert all(torch.equal(a.read()[n], b.read()[n]) for n in ("theta", "support", "query"))
    with pytest.raises(MismatchError, match="the zoo was made with seed = 0, now 5"):
        seed = replace(net_recipe, meta=replace(net_recipe.meta, seed=5))
        begin_net_zoo(tmp_path / "z", data.bank, net_host, first, seed, about=about)


def test_a_zoo_of_heads_is_refused(tmp_path: Path):
    zoo = Zoo.create(tmp_path / "heads", head_space(4, 2), {"seed": 0})
    with pytest.raises(MismatchError, match="not a zoo of whole networks"):
        NetCollection(zoo)


def objective(net_zoo: Zoo, recipe: Recipe, gen: NetGenerator) -> NetObjective:
    return NetObjective(
        NetCollection(net_zoo), gen.parts.network, gen.parts.normaliser, recipe.diffusion
    )


def test_batches_have_the_queries_that_are_no_support(
    net_zoo: Zoo, net_recipe: Recipe, net_gen: NetGenerator
):
    made = objective(net_zoo, net_recipe, net_gen)
    rng = torch.Generator().manual_seed(0)
    turns = {made.draw(rng, 3)["turns"].shape[1] for _ in range(20)}
    assert turns == {0, 1, 2}
    batch = made.draw(rng, 4)
    assert batch["support"].shape == (4, 3, 1, 1, 12, 12)
    assert all(len(v) == 4 for v in batch.values())
    # x_t is what the target and the noise make.
    again = batch["signal"][:, None] * batch["target"] + batch["noise"]
    torch.testing.assert_close(again, batch["x_t"])


def test_the_loss_of_the_target_itself_is_zero(
    net_zoo: Zoo, net_recipe: Recipe, net_gen: NetGenerator, monkeypatch: pytest.MonkeyPatch
):
    made = objective(net_zoo, net_recipe, net_gen)
    batch = made.draw(torch.Generator().manual_seed(1), 4)
    params = dict(net_gen.parts.network.named_parameters())
    assert float(made(params, batch)) > 1e-3
    monkeypatch.setattr(
        "ltdi.whole.objective.NetTask.step", lambda self, network, *rest: batch["target"]
    )
    assert abs(float(made(params, batch))) < 1e-6


def test_training_is_fixed_by_its_seed_and_chooses_on_validation(
    net_zoo: Zoo, net_recipe: Recipe, net_gen: NetGenerator, net_valid: FeatureBank
):
    log = []
    data = NetCollection(net_zoo)
    runtime = Runtime(log=log.append)
    made = train_net_generator(data, net_recipe, valid=net_valid, runtime=runtime)
    own, other = (dict(g.parts.network.named_parameters()) for g in (net_gen, made))
    assert all(torch.equal(own[n], other[n]) for n in own)
    chosen = next(r for r in log if r["event"] == "sampling")
    assert len(chosen["validation NLL"]) == net_recipe.prepare.segments
    assert made.parts.sampling.steps == net_recipe.sampling.steps


def test_normalised_residuals_have_unit_size(net_zoo: Zoo, net_gen: NetGenerator):
    data = NetCollection(net_zoo)
    group = net_zoo.groups()[0]
    theta = group.read()["theta"]
    residual = theta - data.anchor.local(theta, theta, group.space).unsqueeze(1)
    normaliser: Normaliser = net_gen.parts.normaliser
    size = normaliser.normalise(residual, group.space)
    for i in range(len(group.space.params)):
        rms = size[..., group.space.param_of == i].square().mean().sqrt()
        assert 0.99 < float(rms) < 1.01


def test_doubt_is_chosen_on_the_solved_tasks(net_zoo: Zoo, net_gen: NetGenerator):
    network = net_gen.parts.network
    assert isinstance(network, RowDenoiser)
    assert float(network.doubt) == fit_doubt(NetCollection(net_zoo), net_zoo.groups())


def test_a_zoo_without_its_initialisation_says_what_to_do(
    tmp_path: Path, net_recipe: Recipe, net_zoo: Zoo
):
    host = NetHost.from_config(net_zoo.about["net"])
    started = start_net_zoo(tmp_path / "zoo", host, net_recipe)
    with pytest.raises(InputError, match="no initialisation yet"):
        NetCollection(started)
