"""`ltdi.meta`: REPTILE is what its equations say, and a run that is cut short ends the same."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltdi.errors import DivergedError, MismatchError
from ltdi.meta import Batch, MetaConfig, MetaTrainer, Params, reptile_displacement

ROOT = Path(__file__).resolve().parents[2]
PLAIN = MetaConfig(iterations=40, meta_batch=3, inner_steps=2, tasks=4, warmup=5, ema=0.9)


class Net(nn.Module):
    """A small non-linear regression network."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def loss_of(net: nn.Module) -> Any:
    def loss(params: Params, batch: Batch) -> Tensor:
        out: Tensor = functional_call(net, params, (batch["x"],))
        return (out - batch["y"]).square().mean()

    return loss


def draw(rng: torch.Generator, tasks: int) -> Batch:
    x = torch.randn(tasks, 3, generator=rng)
    return {"x": x, "y": torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)}


def trainer(config: MetaConfig, net: nn.Module | None = None, **options: Any) -> MetaTrainer:
    net = net or Net()
    return MetaTrainer(net, loss_of(net), draw, config, **options)


def batches(learners: int, steps: int, tasks: int = 6, seed: int = 0) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    flat = [draw(rng, learners * tasks) for _ in range(steps)]
    return [{k: v.unflatten(0, (learners, tasks)) for k, v in b.items()} for b in flat]


def params(net: nn.Module) -> Params:
    return {k: p.detach().clone() for k, p in net.named_parameters()}


def gradient(net: nn.Module, batch: Batch) -> Params:
    """By plain backward."""
    names, values = zip(*net.named_parameters(), strict=True)
    loss = (net(batch["x"]) - batch["y"]).square().mean()
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


def loop(net: nn.Module, steps: list[Batch], lr: float) -> tuple[Params, float]:
    """(1/B) sum_i (phi_i - phi) with deep copies, torch's SGD and one learner after the other."""
    learners = len(steps[0]["x"])
    moved = {k: torch.zeros_like(p) for k, p in net.named_parameters()}
    losses = []
    for i in range(learners):
        twin = copy.deepcopy(net)
        optimiser = torch.optim.SGD(twin.parameters(), lr=lr)
        for batch in steps:
            optimiser.zero_grad()
            loss = (twin(batch["x"][i]) - batch["y"][i]).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        for (k, a), b in zip(twin.named_parameters(), net.parameters(), strict=True):
            moved[k] += (a - b).detach() / learners
    return moved, sum(losses) / len(losses)


def assert_close(a: Params, b: Params, **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], **(tolerance or {"rtol": 1e-4, "atol": 1e-7}))


def assert_equal(a: Params, b: Params) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rate(config: MetaConfig, step: int) -> float:
    """meta_lr with linear warm-up and cosine decay, by its definition."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    cosine = 0.5 * (1 + float(torch.tensor(torch.pi * step / config.iterations).double().cos()))
    return config.meta_lr * warm * cosine


@pytest.mark.parametrize(("learners", "steps"), [(1, 1), (1, 4), (3, 1), (4, 3)])
def test_learners_at_once_equal_a_loop_over_copies(learners: int, steps: int) -> None:
    net, data = Net(), batches(learners, steps)
    moved, loss = reptile_displacement(dict(net.named_parameters()), data, loss_of(net), 0.1)
    wanted, mean = loop(net, data, 0.1)
    assert_close(moved, wanted, rtol=1e-4, atol=1e-6)
    assert float(loss) == pytest.approx(mean, rel=1e-5)
    assert max(float(m.abs().max()) for m in moved.values()) > 1e-3


def test_phi_is_not_touched_by_the_inner_loop() -> None:
    net = Net()
    before = params(net)
    reptile_displacement(dict(net.named_parameters()), batches(2, 3), loss_of(net), 0.1)
    assert_equal(params(net), before)
    assert all(p.grad is None for p in net.parameters())


def test_one_inner_step_moves_by_eta_times_the_mean_gradient() -> None:
    """Exactly: also where a step is far below the rounding of phi."""
    net, (batch,) = Net(), batches(4, 1)
    each = [gradient(net, {k: v[i] for k, v in batch.items()}) for i in range(4)]
    mean = {k: torch.stack([g[k] for g in each]).mean(0) for k in each[0]}
    for eta in (0.1, 1e-9):
        phi = dict(net.named_parameters())
        moved, _ = reptile_displacement(phi, [batch], loss_of(net), eta)
        assert_close({k: -m / eta for k, m in moved.items()}, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("meta_batch", [1, 3])
def test_one_inner_step_and_outer_sgd_is_sgd(meta_batch: int) -> None:
    """Step zeta * eta on the mean gradient of all samples, at every iteration."""
    config = replace(PLAIN, meta_batch=meta_batch, inner_steps=1, outer="sgd", meta_lr=0.7)
    net, twin = Net(), Net()
    run = trainer(config, net)
    rng = torch.Generator().manual_seed(config.seed)
    for step in range(10):
        run.iterate()
        g = gradient(twin, draw(rng, meta_batch * config.tasks))
        with torch.no_grad():
            for k, p in twin.named_parameters():
                p -= rate(config, step) * config.inner_lr * g[k]
    assert_close(params(net), params(twin), rtol=1e-5, atol=1e-6)
    assert float((params(net)["layers.0.weight"] - params(Net())["layers.0.weight"]).norm()) > 1e-3


def test_outer_sgd_moves_towards_the_mean_of_the_learners() -> None:
    config = replace(PLAIN, outer="sgd", meta_lr=0.5, warmup=0)
    net, twin = Net(), Net()
    run = trainer(config, net)
    rng = torch.Generator().manual_seed(config.seed)
    for step in range(5):
        flat = [draw(rng, 3 * 4) for _ in range(2)]
        data = [{k: v.unflatten(0, (3, 4)) for k, v in b.items()} for b in flat]
        loss = run.iterate()
        moved, mean = loop(twin, data, config.inner_lr)
        assert loss == pytest.approx(mean, rel=1e-4)
        with torch.no_grad():
            for k, p in twin.named_parameters():
                p += rate(config, step) * moved[k]
    assert_close(params(net), params(twin), rtol=1e-4, atol=1e-6)


def test_outer_adam_with_one_learner_and_step_is_adamw() -> None:
    config = replace(PLAIN, meta_batch=1, inner_steps=1, meta_lr=0.02, weight_decay=0.1)
    net, twin = Net(), Net()
    run = trainer(config, net)
    adamw = torch.optim.AdamW(twin.parameters(), lr=1.0, weight_decay=0.1)
    rng = torch.Generator().manual_seed(config.seed)
    for step in range(20):
        run.iterate()
        for (_, p), g in zip(
            twin.named_parameters(), gradient(twin, draw(rng, 4)).values(), strict=True
        ):
            p.grad = g
        adamw.param_groups[0]["lr"] = rate(config, step)
        adamw.step()
    assert_close(params(net), params(twin), rtol=1e-3, atol=2e-5)


def test_outer_adam_divides_by_eta_and_k() -> None:
    """The displacement over eta K is the mean of the inner gradients."""
    config = replace(PLAIN, meta_lr=0.01, weight_decay=0.0, warmup=0)
    net = Net()
    run = trainer(config, net)
    rng = torch.Generator().manual_seed(config.seed)
    flat = [draw(rng, 3 * 4) for _ in range(2)]
    data = [{k: v.unflatten(0, (3, 4)) for k, v in b.items()} for b in flat]
    moved, _ = loop(net, data, config.inner_lr)
    run.iterate()
    grads = {k: p.grad for k, p in net.named_parameters()}
    scaled = {k: m / (-config.inner_lr * 2) for k, m in moved.items()}
    assert_close({k: g for k, g in grads.items() if g is not None}, scaled, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("outer", ["sgd", "adam"])
def test_single_level_is_one_learner_on_all_samples(outer: str) -> None:
    config = replace(PLAIN, outer=outer, meta_lr=0.01)
    none = trainer(replace(config, meta="none"))
    one = trainer(replace(config, meta_batch=1, inner_steps=1, tasks=3 * 2 * 4))
    for _ in range(6):
        assert none.iterate() == one.iterate()
    assert_equal(params(none.module), params(one.module))


def test_the_average_starts_as_phi_and_follows_its_definition() -> None:
    run = trainer(replace(PLAIN, meta_lr=0.05, ema=0.6))
    average = params(run.module)
    for step in range(30):
        run.iterate()
        decay = min(0.6, step / (step + 10))
        average = {k: decay * average[k] + (1 - decay) * p for k, p in params(run.module).items()}
        if step == 0:
            assert_equal(run.ema, params(run.module))
    assert_close(run.ema, average, rtol=1e-4, atol=1e-6)


def test_after_fit_the_module_holds_the_average() -> None:
    run = trainer(PLAIN)
    run.fit()
    assert run.step == PLAIN.iterations
    assert_equal(params(run.module), run.ema)


def test_the_seed_fixes_a_run() -> None:
    ends = []
    for seed in (0, 0, 1):
        run = trainer(replace(PLAIN, seed=seed))
        run.fit()
        ends.append(params(run.module))
    assert_equal(ends[0], ends[1])
    assert not torch.equal(ends[0]["layers.0.bias"], ends[2]["layers.0.bias"])


@pytest.mark.parametrize(
    "config",
    [
        MetaConfig(iterations=300, outer="sgd", meta_lr=1.0, inner_lr=0.1, tasks=8, warmup=0),
        MetaConfig(iterations=300, outer="adam", meta_lr=0.05, weight_decay=0.0, warmup=10),
        MetaConfig(iterations=300, meta="none", meta_lr=0.05, weight_decay=0.0, warmup=10),
    ],
    ids=["reptile-sgd", "reptile-adam", "none"],
)
def test_it_finds_the_centre_of_a_family_of_quadratics(config: MetaConfig) -> None:
    """Tasks |phi - c|^2 with c ~ N(mu, 0.1): the best single start is mu."""
    mu = torch.tensor([1.0, -2.0, 0.5])
    net = nn.Linear(3, 1, bias=False)

    def centres(rng: torch.Generator, tasks: int) -> Batch:
        return {"c": mu + 0.1 * torch.randn(tasks, 3, generator=rng)}

    def loss(p: Params, batch: Batch) -> Tensor:
        return (p["weight"] - batch["c"]).square().sum(-1).mean()

    MetaTrainer(net, loss, centres, config).fit()
    assert float((net.weight.detach()[0] - mu).norm()) < 0.05


@pytest.mark.parametrize("outer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 17, 39])
def test_a_run_in_two_parts_ends_bit_for_bit_as_one(outer: str, stop: int, tmp_path: Path) -> None:
    config = replace(PLAIN, outer=outer, checkpoint_every=7)
    whole = trainer(config)
    whole.fit()

    class Stop(Exception):
        pass

    def until(step: int, total: int, loss: float) -> None:
        if step == stop:
            first.save(tmp_path / "c")
            raise Stop

    first = trainer(config)
    with pytest.raises(Stop):
        first.fit(tmp_path / "c", progress=until)
    other = Net()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    second = trainer(config, other)
    seen: list[int] = []
    second.fit(tmp_path / "c", progress=lambda step, total, loss: seen.append(step))
    assert seen == list(range(stop + 1, 41))
    assert_equal(params(second.module), params(whole.module))
    assert_equal(second.ema, whole.ema)


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    run = trainer(PLAIN)
    run.fit(tmp_path / "c")
    again, seen = trainer(PLAIN), []
    again.fit(tmp_path / "c", progress=lambda step, total, loss: seen.append(step))
    assert not seen
    assert_equal(params(again.module), params(run.module))


def test_ctrl_c_writes_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    def interrupt(step: int, total: int, loss: float) -> None:
        if step == 13:
            raise KeyboardInterrupt

    whole, first, second = trainer(PLAIN), trainer(PLAIN), trainer(PLAIN)
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        first.fit(tmp_path / "c", progress=interrupt)
    seen: list[int] = []
    second.fit(tmp_path / "c", progress=lambda step, total, loss: seen.append(step))
    assert seen[0] == 14
    assert_equal(params(second.module), params(whole.module))


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("call", [1, 26, 27, 40])
def test_ctrl_c_within_an_iteration_ends_bit_for_bit_too(call: int, tmp_path: Path) -> None:
    """The signal arrives while a batch is drawn: half an iteration must not be recorded."""
    count = 0

    def interrupted(rng: torch.Generator, tasks: int) -> Batch:
        nonlocal count
        count += 1
        batch = draw(rng, tasks)
        if count == call:
            signal.raise_signal(signal.SIGINT)
        return batch

    whole, second = trainer(PLAIN), trainer(PLAIN)
    whole.fit()
    net = Net()
    first = MetaTrainer(net, loss_of(net), interrupted, PLAIN)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        first.fit(tmp_path / "c")
    assert signal.getsignal(signal.SIGINT) is before
    assert count <= call + 1
    second.fit(tmp_path / "c")
    assert_equal(params(second.module), params(whole.module))


def test_other_settings_cannot_resume(tmp_path: Path) -> None:
    trainer(PLAIN, run={"width": 8}).fit(tmp_path / "c")
    with pytest.raises(MismatchError, match=r"inner_lr was 0\.05, now 0\.1"):
        trainer(replace(PLAIN, inner_lr=0.1), run={"width": 8}).fit(tmp_path / "c")
    with pytest.raises(MismatchError, match="width was 8, now 16"):
        trainer(PLAIN, run={"width": 16}).fit(tmp_path / "c")


def test_a_damaged_checkpoint_is_reported_and_the_end_is_the_same(tmp_path: Path) -> None:
    config = replace(PLAIN, checkpoint_every=10)
    whole, first, second = trainer(config), trainer(config), trainer(config)
    whole.fit()
    first.fit(tmp_path / "c")
    data = bytearray((tmp_path / "c").read_bytes())
    data[-1] ^= 1
    (tmp_path / "c").write_bytes(data)
    records: list[dict[str, Any]] = []
    second.fit(tmp_path / "c", log=records.append)
    assert records[0]["event"] == "warning" and "damaged" in records[0]["message"]
    assert_equal(params(second.module), params(whole.module))


KILLED = """
import sys, pathlib
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from tests.meta.test_meta import PLAIN, replace, trainer
run = trainer(replace(PLAIN, iterations=4000, checkpoint_every=3))
run.fit(pathlib.Path({checkpoint!r}), progress=lambda step, total, loss: print(step, flush=True))
"""


def test_a_killed_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL at a random moment, twice; then to a short end in this process."""
    checkpoint = tmp_path / "c"
    script = KILLED.format(path=[str(ROOT)], checkpoint=str(checkpoint))
    chance = random.Random(0)
    last = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        first = int(process.stdout.readline())
        assert first == 1 if last == 0 else first >= last - 2
        for _ in range(chance.randrange(10, 40)):
            last = int(process.stdout.readline())
        time.sleep(chance.random() / 200)
        process.kill()
        process.communicate()
    config = replace(PLAIN, iterations=4000, checkpoint_every=3)
    resumed, whole = trainer(config), trainer(config)
    resumed.resume(checkpoint)
    assert last - 3 <= resumed.step < 4000 and resumed.step > 20
    while whole.step < resumed.step:
        whole.iterate()
    for _ in range(5):
        resumed.iterate()
        whole.iterate()
    assert_equal(params(resumed.module), params(whole.module))
    assert_equal(resumed.ema, whole.ema)


@pytest.mark.parametrize("outer", ["sgd", "adam"])
def test_a_loss_that_is_not_finite_leaves_phi_untouched(outer: str) -> None:
    net = Net()

    def bad(p: Params, batch: Batch) -> Tensor:
        return loss_of(net)(p, batch) * float("nan")

    run = MetaTrainer(net, bad, draw, replace(PLAIN, outer=outer))
    before = params(net)
    with pytest.raises(DivergedError, match="iteration 0") as caught:
        run.iterate()
    assert_equal(params(net), before)
    assert_equal(run.ema, before)
    assert run.step == 0 and "inner_lr" in caught.value.fix


@pytest.mark.parametrize("outer", ["sgd", "adam"])
def test_a_last_step_into_infinity_leaves_phi_untouched(outer: str) -> None:
    """The loss is finite, its gradient is not: sqrt at zero."""
    net = Net()

    def steep(p: Params, batch: Batch) -> Tensor:
        return (0 * p["layers.0.weight"]).sum().abs().sqrt() + loss_of(net)(p, batch)

    run = MetaTrainer(net, steep, draw, replace(PLAIN, outer=outer, inner_steps=1))
    before = params(net)
    with pytest.raises(DivergedError):
        run.iterate()
    assert_equal(params(net), before)
