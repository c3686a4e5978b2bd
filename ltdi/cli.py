"""The command line: one function per command, typed options, YAML configuration."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from importlib import metadata
from typing import Any, NoReturn

import jsonargparse
from rich.console import Console

from ltdi import commands
from ltdi.errors import InputError, LtdiError
from ltdi.seeding import check_seed
from ltdi.tracks import TRACKS
from ltdi.tracks.track import SHARED

EXAMPLES = {
    "demo": ["ltdi demo --out runs/demo"],
    "collect": [
        "ltdi collect --data glyphs --out runs/my/zoo",
        "ltdi collect --data glyphs --workers 2 --out runs/my/zoo",
        "ltdi collect --data omniglot --data-dir ~/omniglot --tasks.per-setting 4000 --out runs/o",
        "ltdi collect --target net --data glyphs --out runs/n/zoo",
        "ltdi collect --target adapter --data sst-2,rte --data-dir ~/glue --texts.base minilm "
        "--out runs/t/zoo",
    ],
    "train": [
        "ltdi train --zoo runs/my/zoo --out runs/my/generator",
        "ltdi train --collect.data glyphs --workers 2 --zoo runs/c/zoo --out runs/c/generator",
        "ltdi train --config runs/my/generator/train.yaml --out runs/b --meta.iterations 2000",
    ],
    "generate": [
        "ltdi generate --generator runs/demo/generator --support my_task/ --out head.safetensors",
        "ltdi generate --generator runs/t/generator --support rows.jsonl --out my-adapter",
        "ltdi generate --generator runs/names/generator --classes cat,dog --unlabelled photos/ "
        "--out head.safetensors",
    ],
    "evaluate": [
        "ltdi evaluate --generator runs/demo/generator --data-dir drawings/ --way 20 --shot 1",
        "ltdi evaluate --generator runs/t/generator --task mrpc --data-dir ~/glue",
    ],
    "export": [
        "ltdi export --generator runs/demo/generator --weights head.safetensors --out classifier",
        "ltdi export --generator runs/t/generator --weights a.safetensors --format peft --out a",
    ],
    "zoo": [
        "ltdi zoo info runs/my/zoo",
        "ltdi zoo verify runs/my/zoo",
        "ltdi zoo merge runs/a/zoo runs/b/zoo --out runs/both/zoo",
    ],
    "bench": [
        "ltdi bench fewshot --dataset omniglot --data-dir ~/omniglot --preset smoke --json o.json",
        "ltdi bench fewshot --dataset glyphs --methods lt-di,protonet,finetune --preset smoke",
        "ltdi bench nets --dataset glyphs --preset smoke",
        "ltdi bench fewshot --target net --dataset omniglot --data-dir ~/omniglot --shot 5",
        "ltdi bench checkpoints --data-dir ~/cifar10 --preset smoke",
        "ltdi bench llm --preset smoke",
        "ltdi bench llm --data-dir ~/glue --work runs/glue --json glue.json",
        "ltdi bench domain --dataset pacs --data-dir ~/pacs --settings 5w1s,5w5s --json o.json",
        "ltdi bench domain --dataset glyphs --preset smoke --methods lt-di,erm,erm-finetune",
        "ltdi bench transfer --data-dir ~/data --condition text --json transfer.json",
    ],
}
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": commands.demo,
    "collect": commands.collect,
    "train": commands.train,
    "generate": commands.generate,
    "evaluate": commands.evaluate,
    "export": commands.export,
    "zoo": commands.zoo,
    "bench": commands.bench,
}


RESUMABLE = ("collect", "train")
# What names files; an empty one would mean the directory that the command runs in.
PATHS = frozenset(
    {"backbone", "cache", "data", "data_dir", "dataset", "generator", "json", "out", "support"}
    | {"task", "unlabelled", "weights", "work", "zoo", "zoos"}
)
OUT_OF_MEMORY = "allocate memory|out of memory"
_EXAMPLES = "examples:"


class Parser(jsonargparse.ArgumentParser):
    """Names the nearest option when one is unknown; `--data-dir` is the same as `--data_dir`."""

    def format_help(self, *formatter: Any) -> str:  # the older jsonargparse takes none
        """Show options with dashes; both spellings are read."""
        shown = super().format_help(*formatter)
        return re.sub(r"--[\w.\-]+", lambda m: m[0].replace("_", "-"), shown)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one clear message and leave with status 2."""
        sys.exit(_refused(explain(message, option_names(self), choices_of(self))))


class HelpLines(jsonargparse.DefaultHelpFormatter):
    """Help in which every example keeps its line, so that it can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def explain(message: str, known: Sequence[str], choices: Collection[str] = ()) -> str:
    """A parser's message in our form: what was wrong, and what to do.

    `known` are option names without leading dashes; `choices` commands or tracks, where one is to
    be chosen.
    """
    kind = "track" if choices and set(choices) <= set(TRACKS) else "command"
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
        near = difflib.get_close_matches(found[1], choices, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown {kind} {found[1]!r}\n  to do: {hint}choose one of: {', '.join(choices)}"
    if found := re.search(r'expected "([\w.]*)subcommand"', text):
        if found[1].startswith("bench"):
            kind, choices = "track", list(TRACKS)
        return f"no {kind} was given\n  to do: choose one of: {', '.join(choices)}"
    if found := re.search(r"arguments are required: (.+)", text):
        names = [n.strip().partition(".")[2] or n.strip() for n in found[1].split(",")]
        wanted = [_dashed(n) if n in known else n.upper() for n in names]
        return f"needed but not given: {', '.join(wanted)}\n  to do: see --help"
    if found := re.match(r"Parser key \"([\w.]+)\": (.+)", text):
        reason, fix = re.sub(r"<class '(\w+)'>", r"\1", found[2]), "see --help"
        if "Union subtypes" in reason:  # an option that may be left out
            kinds = [k for k in re.findall(r"Expected an? (\w+)", reason) if k != "NoneType"]
            given = reason.rpartition("Given value: ")[2]
            reason = f"Expected {' or '.join(kinds)}. Got value: {given}"
        if "Expected a tuple" in reason:
            fix = "write a list, such as [3] or [3,5]"
        return f"{reason}\n  where: {_dashed(found[1])}\n  to do: {fix}"
    return f"{text}\n  to do: see --help"


def _dashed(name: str) -> str:
    """The option of a key: "meta.inner_lr" -> "--meta.inner-lr"."""
    return f"--{name.replace('_', '-')}"


def choices_of(parser: jsonargparse.ArgumentParser) -> list[str]:
    """The subcommands of a parser."""
    action = parser._subcommands_action
    return [] if action is None else list(action._name_parser_map)


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
        # Subcommands take it from here.
        formatter_class=HelpLines,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ltdi {version()}")
    subcommands = parser.add_subcommands(required=True)
    for name, function in COMMANDS.items():
        sub = _command_parser(function, EXAMPLES[name])
        subcommands.add_subcommand(name, sub, help=(function.__doc__ or "").split("\n")[0])
        if name == "bench":
            tracks = sub.add_subcommands(required=True, metavar="TRACK")
            for track, about in TRACKS.items():
                examples = [e for e in EXAMPLES[name] if f"bench {track} " in e]
                each = _command_parser(about.bench, examples)
                each.add_argument("--config", action="config", help="YAML file with options")
                each.add_function_arguments(about.bench, skip=set(SHARED))
                each.add_function_arguments(
                    function, as_group=False, skip={"track", "options", "resolved"}
                )
                tracks.add_subcommand(track, each, help=(about.bench.__doc__ or "").split("\n")[0])
        else:
            sub.add_argument("--config", action="config", help="YAML file with options")
            skip: set[str | int] = {"resolved"}
            if name == "zoo":
                skip |= {"action", "zoos"}
                sub.add_argument("action", help="info, verify or merge")
                sub.add_argument("zoos", nargs="+", help="directories, or URLs that fsspec reads")
            if name == "collect":
                skip.add("options")
                sub.add_class_arguments(commands.Collecting, as_group=False)
            sub.add_function_arguments(function, skip=skip)
    return parser


def _command_parser(function: Callable[..., object], examples: Sequence[str]) -> Parser:
    return Parser(
        description=(function.__doc__ or "").split("\n\n")[0],
        epilog="\n  ".join([_EXAMPLES, *examples]),
        allow_abbrev=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 when the reader of the output went away; 2 after an error of the input; 130 after
        Ctrl-C.
    """
    arguments = [_underscored(a) for a in (sys.argv[1:] if argv is None else argv)]
    if arguments[:1] == ["bench"] and arguments[1:] and arguments[1].startswith("--"):
        # The first track there was may go without its name.
        named = arguments[1] not in ("--help", "--h")
        arguments[1:1] = ["fewshot"] if named else []
    parser = make_parser()
    try:
        config = parser.parse_args(arguments)
    except UnicodeDecodeError:
        parser.error("the file given to --config is not UTF-8 text")
    name = config.subcommand
    try:
        _check_values(config)
        values = vars(_instantiated(parser, config)[name])
        if name == "bench":
            values = _of_track(values["subcommand"], vars(values[values["subcommand"]]))
        values.pop("config", None)
        if name == "collect":
            own = {f.name for f in fields(commands.Collecting)}
            options = commands.Collecting(**{k: values.pop(k) for k in own})
            values["options"] = options
        if "resolved" in inspect.signature(COMMANDS[name]).parameters:
            values["resolved"] = _resolved(parser, config)
        COMMANDS[name](**values)
    except LtdiError as error:
        return _refused(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        fix = "give fewer or smaller things at once (images, samples, episodes, batches)"
        return _refused(LtdiError("the memory of this machine is not enough", fix=fix))
    except KeyboardInterrupt:
        goes_on = "goes on from what is on disk" if name in RESUMABLE else "starts again"
        print(f"\ninterrupted: the same command {goes_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        fix = "check the path, its permissions and the free space"
        where = str(error.filename or "")
        return _refused(LtdiError(str(error.strerror or error), where=where, fix=fix))
    return 0


def _refused(error: LtdiError | str) -> int:
    """Say what is wrong; the exit status of that."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
    return 2


def _instantiated(parser: Parser, config: jsonargparse.Namespace) -> jsonargparse.Namespace:
    """The settings as dataclasses.

    Raises:
        InputError: Where a group of settings is given as something else, as a file may.
    """
    try:
        made: jsonargparse.Namespace = parser.instantiate(config)
        return made
    except TypeError as error:
        if "must be a mapping" not in str(error):
            raise
        raise InputError(
            f"a group of settings is no mapping: {str(error).rpartition('argument ')[2]}",
            where="--config",
            fix="write its settings indented below its name, each as `name: value`",
        ) from None


def _check_values(config: jsonargparse.Namespace) -> None:
    """Refuse seeds that torch does not take, and empty paths, which would mean "here".

    Raises:
        InputError: With the option.
    """
    for key, value in config.items():
        option = key.rpartition(".")[2]
        if option == "seed":
            check_seed(value, where=_dashed(option))
        if option in PATHS and (value == "" or (isinstance(value, list) and "" in value)):
            raise InputError(
                f"{_dashed(option)} is empty", where=_dashed(option), fix="give a path or a name"
            )


def _resolved(parser: jsonargparse.ArgumentParser, config: jsonargparse.Namespace) -> str:
    """The options of the innermost subcommand as YAML, without the files that they came from."""
    while (action := parser._subcommands_action) is not None:
        name = config.subcommand
        parser, config = action._name_parser_map[name], config[name]
    dumped: str = parser.dump(config)
    config.pop("config", None)
    return dumped


def _of_track(track: str, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `commands.bench`, from the values of a track's parser."""
    own = [n for n in inspect.signature(COMMANDS["bench"]).parameters if n in values]
    shared = {n: values.pop(n) for n in own}
    values.pop("config", None)
    return {"track": track, "options": values, **shared}


def _underscored(argument: str) -> str:
    """`--data-dir=x` -> `--data_dir=x`; values are left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"
