"""Errors a user can act on: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LtdiError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        what: What was wrong, with the offending value.
        where: The file, argument or key at fault.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__("\n".join(_lines(what, where, fix)))


class InputError(LtdiError, ValueError):
    """An argument, a support set or a data folder that cannot be used."""


class MismatchError(LtdiError, ValueError):
    """Two parts that do not belong together (a generator and another weight space, say)."""


class DamagedFileError(LtdiError, OSError):
    """A file that is truncated, altered or not what its name says."""


class DivergedError(LtdiError, ArithmeticError):
    """An optimisation that left the finite numbers."""


def _lines(what: str, where: str, fix: str) -> Iterable[str]:
    yield what
    if where:
        yield f"  where: {where}"
    if fix:
        yield f"  to do: {fix}"


def unknown(kind: str, given: str, known: Iterable[str], *, where: str = "") -> InputError:
    """An `InputError` for a name that is not among `known`, naming the nearest one.

    Args:
        kind: What the name is of, such as "preset".
        given: The name.
        known: Those that there are.
        where: The option, field or file that it was given in.
    """
    options = sorted(known)
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(
        f"unknown {kind} {given!r}", where=where, fix=f"{hint}choose one of: {', '.join(options)}"
    )
