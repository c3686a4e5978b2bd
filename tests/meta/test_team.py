"""`ltdi.meta.team`: two processes are one, and every tensor is on the device of the others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import recovery
from ltdi.errors import InputError
from ltdi.files import read_tensors
from ltdi.meta import MetaConfig, MetaTrainer
from ltdi.meta.team import ALONE, Team, tracked
from ltdi.parts import build_network
from ltdi.pipeline import HeadCollection, HeadObjective, fit_normaliser
from ltdi.recipe import Diffusion, Network
from ltdi.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]

TWO = """
import sys
from dataclasses import replace
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
from tests.meta.test_team import fitted
from ltdi.files import write_tensors
from ltdi.meta.team import Team
torch.set_num_threads(1)
for meta in ("reptile", "none"):
    team = Team.join("cpu")
    assert team.size == 2
    phi = fitted(meta, team)
    if team.main:
        write_tensors(Path({out!r}) / f"{{meta}}.safetensors", phi)
team.leave()
# Threads that outlive it are stopped with the interpreter, which aborts some runs (seen on Linux).
names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in names if "gloo" in name], names
"""


def fitted(meta: str, team: Team) -> dict[str, Tensor]:
    """A regression, meta-trained for a few iterations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def draw(rng: torch.Generator, tasks: int) -> dict[str, Tensor]:
        x = torch.randn(tasks, 5, 3, generator=rng)
        return {"x": x, "y": x[..., :2] * torch.rand(tasks, 1, 1, generator=rng)}

    def loss(params: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(net, params, (batch["x"],))
        return (out - batch["y"]).square().mean()

    config = MetaConfig(meta=meta, iterations=8, meta_batch=4, tasks=6, warmup=2, meta_lr=0.01)
    MetaTrainer(net, loss, draw, config, team=team).fit()
    return {k: p.detach() for k, p in net.named_parameters()}


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Base learners, or the tasks of the one there is, are shared out by torchrun's processes."""
    pytest.importorskip(
        "accelerate", reason="ACCELERATE NOT TESTED: pip install -e '.[accelerate]'"
    )
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, "--master-port", "29617", str(script)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for meta in ("reptile", "none"):
        one, two = fitted(meta, ALONE), read_tensors(tmp_path / f"{meta}.safetensors")
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_shared_evenly_is_refused() -> None:
    team = Team()
    team.size = 3
    with pytest.raises(InputError, match="4 base learners cannot be shared among 3"):
        team.part({"x": torch.zeros(4, 6)})
    with pytest.raises(InputError, match="8 tasks cannot be shared among 3"):
        team.part({"x": torch.zeros(1, 8)})
    team.rank = 1
    batch = torch.arange(6).view(6, 1)
    assert team.part({"x": batch})["x"].flatten().tolist() == [2, 3]
    assert team.part({"x": batch.mT})["x"].flatten().tolist() == [2, 3]


def test_devices_and_precisions_are_named() -> None:
    assert Team.join("cpu").precision == "float32"
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        Team.join("cuda0")
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        Team.join("cpu", "bfloat")
    if not torch.cuda.is_available():
        assert Team.join("auto").device.type == "cpu"
        with pytest.raises(InputError, match="no GPU is at hand"):
            Team.join("cuda")


def head_objective(path: Path, kind: str, loss: str) -> tuple[nn.Module, HeadObjective]:
    recovery.collect(path)
    data = HeadCollection(Zoo.open(path / "zoo"))
    diffusion = Diffusion(loss=loss)
    recipe = replace(
        recovery.RECIPE, network=Network(kind, width=16, depth=1, heads=2), diffusion=diffusion
    )
    network = build_network(data.zoo.space, data.bank.width, recipe.network, diffusion)
    network.standardise(data.bank.features)
    return network, HeadObjective(data, network, fit_normaliser(data.zoo.groups()[0]), diffusion)


@pytest.mark.parametrize(
    ("kind", "loss"), [("equivariant", "predictive"), ("transformer", "weight"), ("unet", "weight")]
)
def test_everything_is_on_the_device_of_the_network(tmp_path: Path, kind: str, loss: str) -> None:
    """On a device that holds shapes only: what is left on the CPU does not mix with it."""
    network, objective = head_objective(tmp_path, kind, loss)
    batch = objective.draw(torch.Generator().manual_seed(0), 4)
    network.to("meta")
    there = {k: v.to("meta") for k, v in batch.items()}
    out = objective(dict(network.named_parameters()), there)
    assert out.device.type == "meta" and out.shape == ()
    with pytest.raises(RuntimeError, match=r"device|meta tensor"):  # the check can fail
        objective(dict(network.named_parameters()), {**there, "x_t": batch["x_t"]})


def test_bfloat16_trains_a_transformer_on_a_cpu(tmp_path: Path) -> None:
    """Learners' weights stay float32, and move nearly as without it."""
    moved = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        network, objective = head_objective(tmp_path / precision, "transformer", "weight")
        config = MetaConfig(iterations=3, tasks=8, warmup=1)
        before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        team = Team(precision=precision)
        trainer = MetaTrainer(network, objective, objective.draw, config, team=team)
        for _ in range(3):
            trainer.iterate()
        assert {p.dtype for p in trainer.phi.values()} == {torch.float32}
        moved.append(torch.cat([p.detach().flatten() for p in network.parameters()]) - before)
    exact, low = moved
    assert torch.cosine_similarity(exact, low, dim=0) > 0.9
    assert not torch.equal(exact, low)


def test_bfloat16_agrees_to_its_own_precision(tmp_path: Path) -> None:
    network, objective = head_objective(tmp_path, "equivariant", "predictive")
    batch = objective.draw(torch.Generator().manual_seed(0), 16)
    params = dict(network.named_parameters())
    exact = objective(params, batch)
    with Team(precision="bfloat16").cast():
        low = objective(params, batch)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.02)
    assert not torch.equal(low, exact)


def test_trackers_are_off_and_named(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    with tracked(seen.append, [], tmp_path, {}) as log:
        assert log == seen.append
    with (
        pytest.raises(InputError, match="did you mean 'wandb'"),
        tracked(seen.append, ["wandbb"], tmp_path, {}),
    ):
        pass


def test_tensorboard_is_told_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TENSORBOARD NOT TESTED: it is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen: list[dict[str, object]] = []
    settings = {"meta": {"iterations": 3}, "zoo": "z"}
    with tracked(seen.append, ["tensorboard"], tmp_path, settings) as log:
        for step in (1, 2, 3):
            log({"event": "train", "step": step, "loss": 1.0 / step})
    assert len(seen) == 3
    (folder,) = {p.parent for p in tmp_path.rglob("events.out*") if p.parent.name == "ltdi"}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
