"""Errors a user can act on: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping


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
    """An `InputError` for a name that is not among `known`, naming the nearest one."""
    options = sorted(known)
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(
        f"unknown {kind} {given!r}", where=where, fix=f"{hint}choose one of: {', '.join(options)}"
    )


def check(
    where: str,
    settings: object,
    *,
    known: Mapping[str, Collection[str]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Refuse settings with a name that is not known, or a number out of its range.

    Both ends of a range are allowed; `where` is what the settings are of, such as "meta".

    Raises:
        InputError: With the first field at fault.
    """
    for name, names in (known or {}).items():
        if getattr(settings, name) not in names:
            raise unknown(name, getattr(settings, name), names, where=f"{where}.{name}")
    for name, (low, high) in (ranges or {}).items():
        value = getattr(settings, name)
        if not low <= value <= high:  # written so that NaN is refused too
            wanted = f"be at least {low}" if high == math.inf else f"lie in {low}..{high}"
            raise InputError(f"{name} must {wanted}, got {value}", where=f"{where}.{name}")
