"""`ltdi.meta.checkpoint`: what is read back is what was written, or an error says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ltdi.errors import DamagedFileError, MismatchError
from ltdi.files import write_tensors
from ltdi.meta.checkpoint import (
    NAME,
    Checkpoint,
    load_checkpoint,
    optimiser_tensors,
    previous,
    restore_optimiser,
    save_checkpoint,
)

RUN: dict[str, Any] = {"meta_lr": 0.1, "seed": 3, "ways": (5, 10)}


def state(step: int) -> Checkpoint:
    rng = torch.Generator().manual_seed(step)
    groups = {
        "model": {"a.weight": torch.randn(2, 3, generator=rng), "b": torch.tensor(1.5)},
        "ema": {"a.weight": torch.randn(2, 3, generator=rng)},
        "nested": {"x/y": torch.arange(3)},
    }
    return Checkpoint(step, groups, rng.get_state(), RUN)


def assert_same(found: Checkpoint | None, wanted: Checkpoint) -> None:
    assert found is not None and found.step == wanted.step
    assert found.groups.keys() == wanted.groups.keys()
    for name, tensors in wanted.groups.items():
        assert found.groups[name].keys() == tensors.keys()
        assert all(torch.equal(found.groups[name][k], v) for k, v in tensors.items())
    assert torch.equal(found.rng, wanted.rng)


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def killed(*_: object) -> None:
    """In place of what writes: the process is gone in the middle of it."""
    raise RuntimeError("killed")


def test_nothing_there_is_no_checkpoint(path: Path) -> None:
    assert load_checkpoint(path, RUN) == (None, "")


def test_a_checkpoint_comes_back(path: Path) -> None:
    save_checkpoint(path, state(7))
    found, message = load_checkpoint(path, RUN)
    assert_same(found, state(7))
    assert message == ""


def test_the_random_generator_goes_on_where_it_was(path: Path) -> None:
    rng = torch.Generator().manual_seed(5)
    torch.rand(11, generator=rng)
    save_checkpoint(path, replace(state(1), rng=rng.get_state()))
    wanted = torch.rand(20, generator=rng)
    found, _ = load_checkpoint(path, RUN)
    assert found is not None
    again = torch.Generator()
    again.set_state(found.rng)
    assert torch.equal(torch.rand(20, generator=again), wanted)


@pytest.mark.parametrize("steps", [0, 4])
def test_adamw_goes_on_bit_for_bit(steps: int, path: Path) -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    data = torch.randn(10, 5, 3)

    def train(net: nn.Module, optimiser: torch.optim.Optimizer, batches: torch.Tensor) -> None:
        for x in batches:
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()

    first = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.3)
    train(net, first, data[:steps])
    groups = {"optimiser": optimiser_tensors(first)}
    save_checkpoint(path, Checkpoint(steps, groups, torch.Generator().get_state(), RUN))
    other.load_state_dict(net.state_dict())
    second = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.3)
    found, _ = load_checkpoint(path, RUN)
    assert found is not None
    restore_optimiser(second, found.groups.get("optimiser", {}))
    train(net, first, data[steps:])
    train(other, second, data[steps:])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_the_one_before_is_kept(path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    assert_same(load_checkpoint(path, RUN)[0], state(3))
    path.unlink()
    assert_same(load_checkpoint(path, RUN)[0], state(2))


@pytest.mark.parametrize("position", [3, 40, -1])
def test_a_damaged_last_one_gives_way_to_the_one_before(position: int, path: Path) -> None:
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    flip(path, position)
    found, message = load_checkpoint(path, RUN)
    assert_same(found, state(1))
    assert NAME in message and "damaged" in message and "before" in message


def test_a_step_number_cannot_change_unnoticed(path: Path) -> None:
    save_checkpoint(path, state(1000))
    data = path.read_bytes()
    assert data.count(b'"1000"') == 1
    path.write_bytes(data.replace(b'"1000"', b'"3000"'))
    with pytest.raises(DamagedFileError):
        load_checkpoint(path, RUN)


def test_the_good_one_survives_a_kill_after_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on from the one before, the next save is cut short: the one before must be there."""
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    flip(path)
    load_checkpoint(path, RUN)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("ltdi.meta.checkpoint.write_tensors", killed)
        save_checkpoint(path, state(3))
    assert_same(load_checkpoint(path, RUN)[0], state(1))


def test_a_save_cut_short_leaves_the_last_one_readable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(path, state(1))

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("safetensors.torch.save_file", killed)
        save_checkpoint(path, state(2))
    assert_same(load_checkpoint(path, RUN)[0], state(1))


def test_two_damaged_ones_are_an_error(path: Path) -> None:
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    flip(path)
    flip(previous(path))
    with pytest.raises(DamagedFileError, match=NAME):
        load_checkpoint(path, RUN)


def test_another_safetensors_file_is_not_a_checkpoint(path: Path) -> None:
    write_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(DamagedFileError, match="not a checkpoint"):
        load_checkpoint(path, RUN)


@pytest.mark.parametrize(
    ("change", "was", "now"),
    [
        ({"meta_lr": 0.2}, "meta_lr was 0.1", "now 0.2"),
        ({"ways": (5,)}, r"ways was \[5, 10\]", r"now \[5\]"),
        ({"width": 8}, "width was None", "now 8"),
    ],
)
def test_other_settings_are_named_with_both_values(
    change: dict[str, Any], was: str, now: str, path: Path
) -> None:
    save_checkpoint(path, state(1))
    with pytest.raises(MismatchError, match=f"{was}, {now}"):
        load_checkpoint(path, {**RUN, **change})
    assert_same(load_checkpoint(path, RUN)[0], state(1))


def test_a_setting_that_is_gone_is_named_too(path: Path) -> None:
    save_checkpoint(path, state(1))
    with pytest.raises(MismatchError, match="seed was 3, now None"):
        load_checkpoint(path, {k: v for k, v in RUN.items() if k != "seed"})
