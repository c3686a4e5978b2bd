"""Libraries that only an extra installs."""

from __future__ import annotations

import importlib
from typing import Any

from ltdi.errors import InputError


def optional(
    name: str, *, purpose: str, extra: str = "", package: str = "", where: str = ""
) -> Any:
    """Import an optional library.

    Args:
        name: Module to import.
        purpose: What needs it, for the message.
        extra: The extra of ltdi that installs it.
        package: What pip installs it from, where no extra does.
        where: The option that asked for it, for the message.

    Raises:
        InputError: If it, or something that it needs, is not installed or does not fit.
    """
    try:
        return importlib.import_module(name)
    # A torchvision of another torch fails with RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{purpose} needs {name}, and importing it failed: {error}",
            where=where,
            fix=f"in the directory of ltdi: pip install -e '.[{extra}]'"
            if extra
            else f"pip install {package}",
        ) from None
