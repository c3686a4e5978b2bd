"""Libraries that only an extra installs."""

from __future__ import annotations

import importlib
from typing import Any

from ltdi.errors import InputError


def library(name: str, *, purpose: str, install: str) -> Any:
    """Import an optional library.

    Args:
        name: Module to import.
        purpose: What needs it, for the message.
        install: What pip is to install.

    Raises:
        InputError: If it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs the library {name}, and importing it failed: {error}",
            fix=f"pip install '{install}'",
        ) from None
