"""The card that is saved beside a generator of adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltdi.files import shown

_FRONT = """\
---
library_name: ltdi
license: apache-2.0
base_model: {base}
tags:
- weight-generation
- diffusion
- lora
- peft
---
"""


def generator_card(config: Mapping[str, Any]) -> str:
    """The README of an adapter generator: Markdown with the hub's front matter."""
    base, about = config["base"], config["about"]
    lora, name = base["lora"], shown(base["name"])
    targets = ", ".join(f"`{t}`" for t in lora["target_modules"])
    parts = [
        f"# A generator of LoRA adapters for {name}",
        "From labelled texts of a task, this model generates a LoRA adapter with its head, rank "
        f"{lora['rank']} on {targets}: no training run, no gradient of the language model. It is "
        f"a diffusion model over adapters with {config['diffusion']['steps']} noise levels, "
        "trained on the trajectories of fitted adapters. The base model is named, not contained.",
        "## How to use it",
        "```python\n"
        "import ltdi\n"
        "from ltdi.data import text\n\n"
        'generator = ltdi.Generator.from_pretrained("GENERATOR")  # a directory or a hub name\n'
        'rows = text.load("rows.jsonl")["all"]  # columns text and label\n'
        "weights = generator.generate(rows)\n"
        'generator.save_peft("adapter", weights, texts=rows)  # for PeftModel.from_pretrained\n'
        "```",
        "## Data",
        f"Tasks that it has learnt from: {shown(about.get('data', 'not recorded'))}.",
        "## Metrics",
        _metrics(about.get("metrics")),
        "## Limits",
        "- The base model must be the one it was trained on; another is refused.\n"
        "- For a task unlike those it has learnt from, it gives the most useful known adapter and "
        "a head fitted to the rows: measure it.\n"
        "- Labels are believed.",
        "## Settings",
        f"```json\n{json.dumps({k: config[k] for k in _SHOWN}, indent=2)}\n```",
        f"Revision `{config['revision']}`, a hash of every tensor in `model.safetensors`.",
    ]
    return _FRONT.format(base=json.dumps(name)) + "\n" + "\n\n".join(parts) + "\n"


_SHOWN = ("diffusion", "network", "sampling")


def _metrics(metrics: Mapping[str, Mapping[str, float]] | None) -> str:
    if not metrics:
        return "None were measured."
    lines = [
        f"| {shown(n)} | {v['mean']:.4f} | {v.get('ci95', 0):.4f} |" for n, v in metrics.items()
    ]
    return "\n".join(["| metric | mean | ci95 |", "| --- | --- | --- |", *lines])
