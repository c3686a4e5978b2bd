"""Help, and what mistyped options are told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ltdi import cli

ENDS = [[name] for name in cli.COMMANDS if name != "bench"] + [["bench", t] for t in cli.TRACKS]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command line that is refused."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    shown: str = capsys.readouterr().err
    return shown


@pytest.mark.parametrize("command", ENDS, ids=" ".join)
def test_help_has_examples_that_parse(command: list[str], capsys):
    name = command[0]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines()]
    examples = lines[lines.index("examples:") + 1 :]
    assert examples and all(line.startswith(f"ltdi {command[0]}") for line in examples)
    assert any(line.startswith(f"ltdi {' '.join(command)}") for line in examples)
    assert not re.search(r"--\w+_\w+", shown)  # options are shown with dashes
    options = re.findall(r"^  (--[\w.-]+)", shown, re.MULTILINE)
    assert len(options) >= 3
    for example in cli.EXAMPLES[name]:
        words = [cli._underscored(a) for a in shlex.split(example)[1:] if "--config" not in a]
        words = [w for w in words if not w.endswith(".yaml")]
        if "--config" in example:
            words += ["--zoo", "z"]
        assert cli.make_parser().parse_args(words).subcommand == name


def test_help_describes_every_option(capsys):
    for command in ENDS:
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for option, following in re.findall(
            r" (--[\w.-]+) [A-Z_]+ (\S+)", shown.split("options:")[1]
        ):
            assert not following.startswith(("--", "(type")), f"{command} {option} has no help"


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("train --zoo z --out o --meta.iteratoins 3", "--meta.iterations"),
        ("train --zoo z --out o --iterations 3", "--meta.iterations"),
        ("train --zoo z --out o --meta.inner-rl 3", "--meta.inner-lr"),
        ("train --zoo z --out o --meta '{iteratoins: 3}'", "--meta.iterations"),
        ("evaluate --generator g --data-dri d", "--data-dir"),
        ("evaluate --generator g --data_dir d --episode=5", "--episodes"),
        ("collect --out o --taks.ways [5]", "--tasks.ways"),
        ("bench fewshot --dataset glyphs --metods a", "--methods"),
        ("generate --generator g --support s --out o --temperatur 0", "--temperature"),
        ("trian --zoo z", "train"),
    ],
)
def test_a_mistyped_option_is_told_the_nearest(command: str, nearest: str, capsys):
    shown = refusal(shlex.split(command), capsys)
    assert f"did you mean {nearest}?" in shown.replace("'", "") and "Traceback" not in shown
    assert len(shown.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("zoo: z\nout: o\nmeta:\n  iteratoins: 3\n", "--meta.iterations"),
        ("zoo: z\nout: o\nnetwrk:\n  width: 32\n", "--network.width"),
        ("zoo: z\nout: o\nsampling:\n  temprature: 0.5\n", "--sampling.temperature"),
    ],
)
def test_a_mistyped_key_of_a_file_is_told_the_nearest(
    text: str, nearest: str, tmp_path: Path, capsys
):
    (tmp_path / "c.yaml").write_text(text)
    shown = refusal(["train", "--config", str(tmp_path / "c.yaml")], capsys)
    assert f"did you mean {nearest}?" in shown


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "no command was given"),
        ("bench", "no track was given"),
        ("train --zoo z", "needed but not given: --out"),
        ("train --config /no/such.yaml", "where: --config"),
        ("bench --dataset glyphs --way two", "where: --way"),
        ("collect --out o --tasks.per-setting many", "where: --tasks.per-setting"),
        ("evaluate --steps", "--steps"),
    ],
)
def test_other_mistakes_say_where(command: str, message: str, capsys):
    shown = refusal(shlex.split(command), capsys)
    assert message in shown and "to do:" in shown
