"""The house rules that no linter knows: which room may import which, and no pickle anywhere."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ltdi

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ltdi"

# From the cellar to the roof: a room imports only from rooms before it (CONTRIBUTING.md).
ROOMS = (
    "errors",
    "optional",
    "files",
    "progress",
    "memory",
    "seeding",
    "products",
    "weights",
    "tasks",
    "data",
    "backbone",
    "anchor",
    "diffusion",
    "denoiser",
    "collect",
    "nets",
    "lora",
    "analysis",
    "zoo",
    "meta",
    "recipe",
    "parts",
    "engine",
    "adapters",
    "report",
    "generator",
    "evaluate",
    "pipeline",
    "crossdomain",
    "whole",
    "samples",
    "unseen",
    "baselines",
    "tracks",
    "commands",
    "cli",
    "__main__",
)
# Reads one package's weights in torch's own format, with the reader that runs nothing.
RESTRICTED = PACKAGE / "backbone" / "pretrained.py"
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def room_of(path: Path) -> str:
    """`ltdi/data/glyphs.py` -> "data"; `ltdi/weights.py` -> "weights"."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every imported dotted name with its line, in functions too.

    `from a import b` gives `a.b`, since b may be a module.

    Args:
        tree: The parsed file.
        package: The dotted package that the file is in, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            prefix = [*base] if node.level else []
            prefix += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*prefix, alias.name])


def uphill(path: Path, tree: ast.AST) -> Iterator[str]:
    """Imports of `path` from a room above its own."""
    own = room_of(path)
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for line, name in imported(tree, package):
        parts = name.split(".")
        if parts[0] != "ltdi":
            continue
        room = parts[1] if len(parts) > 1 else ""
        if room not in ROOMS:
            yield f"{path.relative_to(ROOT)}:{line} imports {name}: name its room"
        elif ROOMS.index(room) > ROOMS.index(own):
            yield f"{path.relative_to(ROOT)}:{line} imports {name}: {room} is above {own}"


def unpickles(tree: ast.AST, *, restricted: bool = False) -> Iterator[int]:
    """Lines that could run code from a file: picklers, torch.load, numpy's allow_pickle.

    `restricted` lets torch.load(.., weights_only=True) pass.
    """
    for line, name in imported(tree, ""):
        if name.split(".")[0] in PICKLERS or name in ("torch.load", "torch.jit.load"):
            yield line
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        safe = restricted and called == "torch.load" and given.get("weights_only") == "True"
        if called in ("torch.load", "torch.jit.load", "torch.hub.load") and not safe:
            yield node.lineno
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not refused:
                yield node.lineno


def test_every_file_has_a_room_and_every_room_a_file():
    found = {room_of(p) for p in sources(PACKAGE)} - {"__init__"}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_from_below(path: Path):
    if path == PACKAGE / "__init__.py":
        return  # The front door opens on every room.
    assert list(uphill(path, ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("room", ROOMS[1:])
def test_the_rule_sees_a_breach(room: str):
    """Every spelling of an import of the room above is found, on the floor and in a function."""
    below = ROOMS[ROOMS.index(room) - 1]
    for text in (
        f"import ltdi.{room}",
        f"from ltdi import {room}",
        f"from ltdi.{room} import x",
        f"from . import {room}",
        f"def f():\n    from .{room} import x",
    ):
        assert list(uphill(PACKAGE / f"{below}.py", ast.parse(text))), text
        assert not list(uphill(PACKAGE / f"{room}.py", ast.parse(text))), text


@pytest.mark.parametrize(
    "path",
    [p for folder in ("ltdi", "benchmarks", "tests") for p in sources(ROOT / folder)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_nothing_unpickles(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(unpickles(tree, restricted=path == RESTRICTED)) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("import pickle", [1]),
        ("from pickle import loads", [1]),
        ("import torch\ntorch.load('x')", [2]),
        ("import torch\ntorch.load('x', weights_only=True)", [2]),
        ("from torch import load", [1]),
        ("np.load('x', allow_pickle=True)", [1]),
        ("np.load('x', allow_pickle=False)", []),
        ("json.load(stream)", []),
    ],
)
def test_the_rule_sees_a_pickle(text: str, lines: list[int]):
    assert list(unpickles(ast.parse(text))) == lines


def test_the_front_door_gives_what_it_names():
    assert "Generator" in ltdi.__all__
    for name in ltdi.__all__:
        assert getattr(ltdi, name) is not None, name


@pytest.mark.parametrize("room", ROOMS[:-1])  # the last one runs a command when imported
def test_every_room_can_be_entered_first_and_keeps_its_promises(room: str):
    module = importlib.import_module(f"ltdi.{room}")
    missing = [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("torch.load('x', weights_only=True)", []),
        ("torch.load('x')", [1]),
        ("torch.load('x', weights_only=False)", [1]),
        ("torch.hub.load('x', weights_only=True)", [1]),
    ],
)
def test_the_exception_is_narrow(text: str, lines: list[int]):
    assert list(unpickles(ast.parse(text), restricted=True)) == lines
