"""README: every `ltdi` command parses and, run in order with a reader's own images, works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltdi import cli
from ltdi.data import ImageSet
from tests.folders import write_folders

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Blocks whose commands are run; of `console` the lines after `$`.
RUN = ("console", "bash")
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shell_lines(page: Path, *languages: str) -> Iterator[str]:
    """Commands of fenced blocks, continuation lines joined; of `console` only those after `$`."""
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in languages:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            line = line.strip()
            if language == "console":
                if line.startswith("$ "):
                    yield line.removeprefix("$ ")
            elif line and not line.startswith("#"):
                yield line


def ltdi_words(line: str) -> list[str] | None:
    """The arguments of a line that calls `ltdi`, with or without the environment's path."""
    words = shlex.split(line, comments=True)
    called = bool(words) and words[0].removeprefix(".venv/bin/") == "ltdi"
    return words[1:] if called else None


@pytest.fixture(scope="module")
def readme() -> Path:
    if not README.is_file():
        pytest.skip("README NOT TESTED: there is none in this checkout")
    return README


PRESENT = [p for p in PAGES if p.is_file()]
named = pytest.mark.parametrize("page", PRESENT, ids=lambda p: p.name)


@named
def test_every_command_parses(page: Path):
    for line in shell_lines(page, "console", "bash", "sh", "shell"):
        words = ltdi_words(line)
        if words is None or {"--help", "--version"} & {*words}:
            continue
        parsed = [cli._underscored(w) for w in words]
        if "--config" in words:
            # The file is the reader's own: the options after it must still be known.
            at = parsed.index("--config")
            del parsed[at : at + 2]
            parsed += ["--zoo", "z"]
        try:
            cli.make_parser().parse_args(parsed)
        except SystemExit:
            pytest.fail(f"{page.name}: {line}")


@named
def test_every_make_target_exists(page: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    lines = [
        *shell_lines(page, "console", "bash", "sh", "shell"),
        *re.findall(r"`([^`\n]+)`", text),
    ]
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["make"]:
            for target in (w for w in words[1:] if "=" not in w and not w.startswith("-")):
                assert target in targets, f"{page.name}: {line}"


def test_the_readme_shows_commands_that_run(readme: Path):
    """Otherwise the slow test below would pass by running nothing."""
    commands = {words[0] for line in shell_lines(readme, *RUN) if (words := ltdi_words(line))}
    assert {"evaluate", "generate", "export", "collect", "train"} <= commands


@pytest.mark.slow
def test_the_readmes_commands_run_in_order(
    readme: Path, tmp_path: Path, glyphs: dict[str, ImageSet]
):
    """`make demo` is run as the command that the Makefile has for it."""
    write_folders(tmp_path / "drawings", glyphs["train"].select(range(0, 800, 10)), 20)
    write_folders(tmp_path / "my_task", glyphs["test"].select(range(0, 50, 10)), 3)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^demo:.*\n\t\S*(ltdi demo.*)$", makefile, re.MULTILINE)
    assert found
    environment = {k: v for k, v in os.environ.items() if k != "LTDI_TINY"}
    ran = 0
    for line in shell_lines(readme, *RUN):
        words = ltdi_words(found[1] if line.split()[:2] == ["make", "demo"] else line)
        # Real data sets and their budgets are for `make bench`.
        if words is None or words[0] == "bench":
            continue
        done = subprocess.run(
            [sys.executable, "-m", "ltdi", *words],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 5


# ---- the reader of the pages itself -------------------------------------------------------------


def test_blocks_are_read_as_a_reader_would(tmp_path: Path):
    page = tmp_path / "p.md"
    page.write_text(
        "```console\n$ ltdi demo --out 'a b'\nprinted, not run\n$ make test\n```\n"
        "```bash\n# a comment\nltdi train \\\n  --zoo z\n```\n```python\nltdi = 1\n```\n"
    )
    lines = list(shell_lines(page, "console", "bash"))
    assert lines == ["ltdi demo --out 'a b'", "make test", "ltdi train    --zoo z"]
    assert [ltdi_words(line) for line in lines] == [
        ["demo", "--out", "a b"],
        None,
        ["train", "--zoo", "z"],
    ]
    assert ltdi_words(".venv/bin/ltdi --version  # says which") == ["--version"]
