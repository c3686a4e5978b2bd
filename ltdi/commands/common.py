"""What commands share: consoles and run directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from torch import Tensor

from ltdi.errors import DamagedFileError, InputError, LtdiError, MismatchError
from ltdi.files import MARKER, own_directory, read_metadata, read_tensors, write_text
from ltdi.generator import DomainHeadGenerator, Generator
from ltdi.progress import Bars, JsonLog, bars

# Paths may hold what rich takes for markup.
OUT = Console(highlight=False, markup=False, emoji=False)
ERR = Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def run_in(out: str, kind: str, name: str, resolved: str) -> Iterator[tuple[Path, Bars, JsonLog]]:
    """A directory of ours with the resolved options, bars, and a log.

    A command that is refused leaves the directory as it was: options that an earlier run saved are
    replaced only by a run that ends, and a directory that holds nothing but options and log goes.

    See `own_directory` for the kind; `resolved` are the options, kept in the file of that name.
    """
    kept = {p for p in (Path(out), *Path(out).parents) if p.exists()}
    path = own_directory(out, kind)
    options = path / name
    fresh = not options.exists()
    if fresh:
        write_text(options, resolved)
    try:
        with JsonLog(path / "log.jsonl") as log, bars(ERR) as progress:
            yield path, progress, log
    except LtdiError:
        ours = {options, path / MARKER, path / "log.jsonl"}
        if fresh and set(path.iterdir()) <= ours:
            for file in path.iterdir():
                file.unlink()
            for folder_made in (path, *path.parents):
                if folder_made in kept or any(folder_made.iterdir()):
                    break
                folder_made.rmdir()
        raise
    write_text(options, resolved)


def read_weights(
    generator: Generator, path: Path, of: str, fingerprint: str
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """A file that `ltdi generate` wrote: the weights, their metadata, and the classes' names.

    They must belong to the generator's own "backbone" or "base", by its fingerprint.

    Raises:
        MismatchError: If they belong to another.
        DamagedFileError: If the file is altered, or does not name classes.
    """
    tensors, metadata = read_tensors(path), read_metadata(path)
    found = metadata.get(of, "unknown")
    if found != fingerprint:
        raise MismatchError(
            f"these weights belong to {of} {found[:12]}, that of the generator is "
            f"{fingerprint[:12]}",
            where=str(path),
            fix=f"use the generator with revision {metadata.get('generator', 'unknown')}",
        )
    generator.check(tensors)
    try:
        names = json.loads(metadata.get("task", "[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DamagedFileError(
            f"the metadata of {path.name} do not name classes",
            where=str(path),
            fix="generate the weights anew",
        )
    return tensors, metadata, names


@contextmanager
def silent(out: str) -> Iterator[tuple[Path, Bars, JsonLog]]:
    """What `run_in` gives, for a process that neither writes nor prints."""
    with JsonLog(None) as log, bars(Console(quiet=True)) as progress:
        yield Path(out), progress, log


def check_target(generator: Generator, target: str | None) -> None:
    """Refuse a generator of another kind of weights than the one asked for.

    Raises:
        MismatchError: If there is one asked for, and it is another.
    """
    if target not in (None, generator.kind):
        raise MismatchError(
            f"the generator there generates weights of kind {generator.kind!r}, not {target!r}",
            where="--target",
            fix="leave --target out, or give a generator of that kind",
        )


def needed(value: str | None, option: str, what: str) -> str:
    """An option that this kind of generator cannot do without.

    Raises:
        InputError: If it is not given.
    """
    if value is None:
        raise InputError(f"{option} is needed and not given", where=option, fix=f"give {what}")
    return value


def check_domain(generator: Generator, **options: object) -> None:
    """Refuse options of a domain where the generator does not read one.

    Raises:
        InputError: With the first that was given.
    """
    if isinstance(generator, DomainHeadGenerator):
        return
    for name, value in options.items():
        if value is not None:
            raise InputError(
                "this generator does not read a domain",
                where=f"--{name}",
                fix="leave the option out, or use a generator of `ltdi bench domain`",
            )
