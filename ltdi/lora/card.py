"""The card that is saved beside an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltdi.files import shown
from ltdi.lora.adapter import POOLINGS

_MEAN = """\
mask = batch["attention_mask"].unsqueeze(-1)
logits = (logits * mask).sum(1) / mask.sum(1)  # the mean over a text's tokens"""


def adapter_card(content: Mapping[str, Any]) -> str:
    """The README of an adapter: Markdown with the hub's front matter and code to load it."""
    base, about = content["base"], content["about"]
    name = json.dumps(base["name"], ensure_ascii=False)  # a string in YAML and in Python too
    lora = base["lora"]
    kind, task = POOLINGS[lora["pooling"]]
    code = [
        "import peft",
        "import torch",
        "import transformers",
        "",
        f"base = {name}",
        "tokenizer = transformers.AutoTokenizer.from_pretrained(base)",
        f"model = transformers.{kind}.from_pretrained(base, num_labels={content['outputs']})",
        'model = peft.PeftModel.from_pretrained(model, "ADAPTER").eval()  # this directory',
        "model = model.merge_and_unload()  # optional: plain weights, the same logits",
        'batch = tokenizer(["a text"], padding=True, return_tensors="pt")  # or (texts, seconds)',
        "with torch.no_grad():",
        "    logits = model(**batch).logits",
        *([_MEAN] if task == "TOKEN_CLS" else []),
    ]
    targets = ", ".join(f"`{t}`" for t in lora["target_modules"])
    saved = ", ".join(f"`{m}`" for m in lora["modules_to_save"])
    front = ["---", f"base_model: {name}", "library_name: peft"]
    return "\n".join(
        [
            *front,
            "tags:",
            "- lora",
            "- weight-generation",
            "---",
            "",
            f"# A LoRA adapter of {shown(base['name'])}",
            "",
            f"Rank {lora['rank']}, alpha {lora['alpha']:g}, on {targets}; head: {saved}, "
            f"{content['outputs']} output(s). Made with ltdi.",
            "",
            "## How to use it",
            "",
            "```python",
            *code,
            "```",
            "",
            _outputs(about),
            "",
            "## About",
            "",
            "```json",
            json.dumps(about, indent=2, ensure_ascii=False),
            "```",
            "",
        ]
    )


def _outputs(about: Mapping[str, Any]) -> str:
    if about.get("label_range"):
        low, high = about["label_range"]
        return f"The output is a value scaled to 0..1: {low:g} + {high - low:g} x output."
    if about.get("label_names"):
        return f"The outputs are logits of: {shown(about['label_names'])}."
    return "The outputs are logits of the classes."
