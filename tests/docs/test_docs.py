"""What the pages say: Python runs, commands parse, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, line in the page, and text."""

    language: str
    line: int
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of a page in one language, but those marked `no-run`."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(m[1], text.count("\n", 0, m.start()) + 2, m[3])
        for m in FENCE.finditer(text)
        if m[1] == language and "no-run" not in m[2].split()
    ]


def commands(page: Path) -> list[tuple[int, str]]:
    """Lines of shell blocks that call `ltdi`, with continuation lines joined."""
    found = []
    for block in blocks(page, "bash"):
        for offset, line in enumerate(block.text.replace("\\\n", "  ").splitlines()):
            command = re.sub(r"^(\$ )?(\.venv/bin/)?", "", line.strip())
            if command.startswith("ltdi "):
                found.append((block.line + offset, command))
    return found


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def of_pages(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda p: p.relative_to(ROOT).as_posix())


@of_pages([p for p in PAGES if blocks(p, "python")])
def test_python_runs(
    page: Path, demo_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Blocks of a page share one namespace, as in a reader's session after the demo."""
    from ltdi import data

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "SOURCES", data.SOURCES.copy())
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "generator").symlink_to(demo_generator)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page, "python"):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), namespace)


@of_pages([p for p in PAGES if commands(p)])
def test_commands_parse(page: Path):
    from ltdi import cli

    parser = cli.make_parser()
    for line, command in commands(page):
        arguments = [cli._underscored(a) for a in shlex.split(command, comments=True)[1:]]
        try:
            parser.parse_args(arguments)
        except SystemExit as stop:
            assert stop.code == 0, f"{page.name}:{line}: {command}"  # --help leaves with 0


@of_pages(PAGES)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}"


def test_every_page_is_in_the_table_of_contents():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- .*: (\S+\.md)$", nav, re.MULTILINE)
    pages = (ROOT / "docs").rglob("*.md")
    assert sorted(listed) == sorted(p.relative_to(ROOT / "docs").as_posix() for p in pages)
