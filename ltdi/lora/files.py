"""An adapter's directory in PEFT's format, and the check that it fits a base model.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's; `README.md` is the card, and
`ltdi.json` says what PEFT does not: the base's sizes and hash, and what the outputs mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.errors import MismatchError
from ltdi.files import own_directory, read_json, write_json, write_tensors, write_text
from ltdi.lora.adapter import POOLINGS, Adapter, LoraSpec, lora_config
from ltdi.lora.base import Base, libraries
from ltdi.lora.card import adapter_card

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ABOUT = "ltdi.json"
CARD = "README.md"


def save_adapter(
    path: Path | str, adapter: Adapter, theta: Tensor, *, about: Mapping[str, Any] | None = None
) -> Path:
    """Write weights as a directory that `peft.PeftModel.from_pretrained` loads.

    Args:
        path: A new or empty directory, or one that this function wrote.
        adapter: The kind of adapter.
        theta: [n] weights.
        about: JSON-able, shown in the card: "label_names", "label_range", "max_length",
            "metrics", "data" or anything else.

    Returns:
        The directory.

    Raises:
        InputError: If the directory holds something else; nothing is touched.
        MismatchError: If theta has another size.
    """
    weights = adapter.space.unflatten(theta)
    place = own_directory(path, "adapter")
    model = adapter.net.model
    # Names in the net begin with the attribute that holds PEFT's model.
    state = {name.removeprefix("model."): value for name, value in weights.items()}
    tensors = libraries()[1].get_peft_model_state_dict(
        model, {**model.state_dict(), **state}, save_embedding_layers=False
    )
    known = {"base": describe_base(adapter.base, adapter.spec), "outputs": adapter.outputs}
    content = {**known, "about": dict(about or {})}
    write_tensors(place / WEIGHTS, tensors, {"format": "pt"})
    write_json(place / CONFIG, _config(adapter))
    write_json(place / ABOUT, content)
    write_text(place / CARD, adapter_card(content))
    return place


def describe_base(base: Base, spec: LoraSpec) -> dict[str, Any]:
    """What weights of this kind can be used with; JSON-able, for `check_base`."""
    return {
        "name": base.name,
        "revision": base.revision,
        "architecture": base.config.model_type,
        "hidden size": base.width,
        "layers": int(base.config.num_hidden_layers),
        "fingerprint": base.fingerprint,
        "lora": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec).items()},
    }


def check_base(known: Mapping[str, Any], base: Base, spec: LoraSpec) -> None:
    """Refuse a base model, or a kind of adapter, that weights were not made for.

    Args:
        known: `describe_base` of what they were made for.
        base: The base model at hand.
        spec: The kind of adapter at hand.

    Raises:
        MismatchError: Naming both sides, and what differs.
    """
    here = describe_base(base, spec)
    sizes = ("architecture", "hidden size", "layers")
    made, given = ({k: side[k] for k in sizes} | side["lora"] for side in (known, here))
    if differing := [key for key in given if made.get(key) != given[key]]:
        raise MismatchError(
            f"these weights are for the base model {known['name']} with "
            f"{_listed(made, differing)}; given is {base.name} with {_listed(given, differing)}",
            where="base model",
            fix=f"load {known['name']}, and use the adapter settings that the weights were made "
            "with",
        )
    if known["fingerprint"] != here["fingerprint"]:
        raise MismatchError(
            f"these weights are for the base model {known['name']} (hash "
            f"{known['fingerprint'][:8]}); given is {base.name} (hash {base.fingerprint[:8]}), of "
            "the same shape but with other values",
            where="base model",
            fix=f"load {known['name']}, revision {known['revision'] or 'unset'}",
        )


def _listed(values: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {values.get(key)}" for key in keys)


def _config(adapter: Adapter) -> dict[str, Any]:
    config = lora_config(adapter.base, adapter.spec, POOLINGS[adapter.spec.pooling][1])
    config.inference_mode = True
    with tempfile.TemporaryDirectory() as place:
        # PEFT knows how to write its own settings.
        config.save_pretrained(place)
        content: dict[str, Any] = read_json(Path(place) / CONFIG)
    return content
