"""The command line: one function per command, typed options, YAML configuration."""

from __future__ import annotations

import difflib
import os
import re
import sys
from argparse import SUPPRESS, HelpFormatter
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn

import jsonargparse
from rich.console import Console

from ltdi import commands
from ltdi.errors import LtdiError

EXAMPLES = {
    "demo": ["ltdi demo --out runs/demo"],
    "collect": [
        "ltdi collect --data glyphs --out runs/my/zoo",
        "ltdi collect --data omniglot --data-dir ~/omniglot --tasks.per-setting 4000 --out runs/o",
    ],
    "train": [
        "ltdi train --zoo runs/my/zoo --out runs/my/generator",
        "ltdi train --config runs/my/generator/train.yaml --out runs/b --meta.iterations 2000",
    ],
    "generate": [
        "ltdi generate --generator runs/demo/generator --support my_task/ --out head.safetensors",
    ],
    "evaluate": [
        "ltdi evaluate --generator runs/demo/generator --data-dir drawings/ --way 20 --shot 1",
    ],
    "export": [
        "ltdi export --generator runs/demo/generator --weights head.safetensors --out classifier",
    ],
    "bench": [
        "ltdi bench fewshot --dataset omniglot --data-dir ~/omniglot --preset smoke --json o.json",
        "ltdi bench fewshot --dataset glyphs --methods lt-di,protonet,finetune --preset smoke",
    ],
}
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": commands.demo,
    "collect": commands.collect,
    "train": commands.train,
    "generate": commands.generate,
    "evaluate": commands.evaluate,
    "export": commands.export,
    "bench": commands.bench,
}


RESUMABLE = ("collect", "train")


class Parser(jsonargparse.ArgumentParser):
    """Names the nearest option when one is unknown; `--data-dir` is the same as `--data_dir`."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Show options with dashes; both spellings are read."""
        shown = super().format_help(formatter)
        return re.sub(r"--[\w.\-]+", lambda m: m[0].replace("_", "-"), shown)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one clear message and leave with status 2."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"error: {explain(message, option_names(self))}", markup=False
        )
        sys.exit(2)


def explain(message: str, known: Sequence[str]) -> str:
    """A parser's message in our form: what was wrong, and what to do.

    Args:
        message: As the parser words it.
        known: Option names without leading dashes.
    """
    text = " ".join(str(message).split())
    found = re.search(r"unrecognized arguments: (\S+)", text, re.IGNORECASE) or re.search(
        r"does not accept option '([^']+)'", text
    )
    if found:
        given = found[1].lstrip("-").partition("=")[0]
        short = {k.rpartition(".")[2]: k for k in known}
        near = difflib.get_close_matches(given, known, 1, 0.5)
        near = near or [short[n] for n in difflib.get_close_matches(given, short, 1, 0.5)]
        hint = f"did you mean {_dashed(near[0])}?" if near else "see --help for the known ones"
        return f"unknown option or config key {given!r}\n  to do: {hint}"
    if found := re.search(r"invalid choice: '([^']*)'", text):
        near = difflib.get_close_matches(found[1], COMMANDS, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown command {found[1]!r}\n  to do: {hint}choose one of: {', '.join(COMMANDS)}"
    if 'expected "subcommand"' in text:
        return f"no command was given\n  to do: choose one of: {', '.join(COMMANDS)}"
    if found := re.search(r"arguments are required: (.+)", text):
        names = [n.strip().partition(".")[2] or n.strip() for n in found[1].split(",")]
        return f"needed but not given: {', '.join(map(_dashed, names))}\n  to do: see --help"
    if found := re.match(r"Parser key \"([\w.]+)\": (.+)", text):
        reason = re.sub(r"<class '(\w+)'>", r"\1", found[2])
        return f"{reason}\n  where: {_dashed(found[1])}\n  to do: see --help"
    return f"{text}\n  to do: see --help"


def _dashed(name: str) -> str:
    """The option of a key: "meta.inner_lr" -> "--meta.inner-lr"."""
    return f"--{name.replace('_', '-')}"


def option_names(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Every option of a parser and its subcommands, without dashes."""
    names = []
    for action in parser._actions:
        names += [o.lstrip("-") for o in action.option_strings if o.startswith("--")]
        for sub in getattr(action, "_name_parser_map", {}).values():
            names += option_names(sub)
    return sorted(set(names))


def version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("ltdi")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="ltdi",
        description="Generate neural-network weights for unseen tasks, without gradients.",
        epilog="Start with: ltdi demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ltdi {version()}")
    subcommands = parser.add_subcommands(required=True)
    for name, function in COMMANDS.items():
        sub = Parser(
            description=(function.__doc__ or "").split("\n\n")[0],
            epilog="\n  ".join(["examples:", *EXAMPLES[name]]),
            formatter_class=jsonargparse.DefaultHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument("--config", action="config", help="YAML file with options")
        skip: set[str | int] = {"resolved"}
        if name == "bench":
            skip.add("track")
            # Suppressed: the default of a positional would override a configuration file.
            sub.add_argument("track", nargs="?", default=SUPPRESS, help='"fewshot", the default')
        sub.add_function_arguments(function, skip=skip)
        subcommands.add_subcommand(name, sub, help=(function.__doc__ or "").split("\n")[0])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 when the reader of the output went away; 2 after an error of the input; 130 after
        Ctrl-C.
    """
    arguments = [_underscored(a) for a in (sys.argv[1:] if argv is None else argv)]
    parser = make_parser()
    config = parser.parse_args(arguments)
    name = config.subcommand
    sub = config[name]
    subcommands = parser._subcommands_action
    assert subcommands is not None
    dumped = subcommands._name_parser_map[name].dump(sub)
    sub.pop("config", None)
    try:
        values = parser.instantiate(config)[name]
        values.pop("config", None)
        COMMANDS[name](**vars(values), resolved=dumped)
    except LtdiError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        goes_on = "goes on from what is on disk" if name in RESUMABLE else "starts again"
        print(f"\ninterrupted: the same command {goes_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"\n  where: {error.filename}" if error.filename else ""
        print(
            f"error: {error.strerror or error}{place}\n"
            "  to do: check the path, its permissions and the free space",
            file=sys.stderr,
        )
        return 2
    return 0


def _underscored(argument: str) -> str:
    """`--data-dir=x` -> `--data_dir=x`; values are left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


if __name__ == "__main__":
    sys.exit(main())
