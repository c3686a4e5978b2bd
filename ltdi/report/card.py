"""The model card that is saved beside a generator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltdi.files import shown

FRONT = """\
---
library_name: ltdi
license: apache-2.0
tags:
- weight-generation
- diffusion
- few-shot
- meta-learning
---
"""

PAPER = """\
@article{guan2025learning,
  title   = {Learning to Learn Weight Generation via Trajectory Diffusion},
  author  = {Guan, Yunchuan and Liu, Yu and Zhou, Ke and Shen, Zhiqi and Hwang, Jenq-Neng and
             Li, Lei},
  journal = {arXiv preprint arXiv:2502.01117},
  year    = {2025}
}"""

ANCHORS = {
    "none": "There is no anchor: whole weights are generated, and nothing but training data says "
    "what a sensible head is.",
    "prototype": "Generation starts from an anchor, the nearest-prototype head of the support, and "
    "adds a learned residual. Where the backbone's features do not separate the classes, the "
    "anchor fails and the residual does not save it.",
    "shared": "Generation starts from one meta-learned initialisation and adds a learned residual. "
    "Tasks whose classes look unlike those it was learned on get weights that are no better than a "
    "few gradient steps would be.",
    "domain": "Generation starts from an anchor, the Bayes head of what other domains lead to "
    "expect of each class, moved by the support and by the unlabelled images, and adds a learned "
    "residual. Where a domain is unlike all that the anchor was fitted on, the unlabelled images "
    "can lead it astray.",
    "names": "Generation starts from what the class names predict, by regression from sentence "
    "embeddings that was fitted on the source classes, and from plain expectation maximisation on "
    "the unlabelled images where there are any. Names unlike all source classes, or that mean "
    "something else in the images, lead it astray, and nothing in the output says so.",
    "gaussian": "Generation starts from an anchor, the Bayes head of Gaussian classes whose "
    "covariances were fitted on the training classes, and adds a learned residual. Where images "
    "are unlike the training classes, those covariances are wrong and so is the anchor.",
}

_FEW = "From a few labelled images"
_HEAD = "the weights of a linear classifier on its own frozen backbone"
_INSIDE = "The backbone and its input transform are inside"


@dataclass(frozen=True)
class _Kind:
    """What a card says of a kind of generator."""

    title: str
    source: str
    weights: str = _HEAD
    inside: str = _INSIDE


KINDS = {
    "head": _Kind("classifier heads", f"{_FEW} of a task that it has never seen"),
    "domain-head": _Kind(
        "classifier heads for new domains",
        f"{_FEW}, and unlabelled ones, of a domain that it has never seen",
    ),
    "unseen": _Kind(
        "classifier heads for classes without a labelled image",
        "From the names of the classes of a task that it has never seen",
        inside=f"{_INSIDE}, the sentence encoder is loaded by name and revision",
    ),
    "net": _Kind(
        "whole networks",
        f"{_FEW} of a task that it has never seen",
        "all the weights of a small convolutional classifier",
        "The architecture (without any buffer), the shared initialisation and the input transform "
        "are inside",
    ),
    "sample": _Kind(
        "checkpoints",
        "From noise alone, without any condition",
        "new nets like the checkpoints of one task that it was trained on",
        "The architecture, the mean of the checkpoints and the input transform are inside",
    ),
}
_FROZEN = (
    "The backbone is frozen. On kinds of images that it has not seen, its features may not "
    "separate the classes, and no head on them can."
)


def model_card(config: Mapping[str, Any]) -> str:
    """The README of a generator: Markdown with the hub's front matter.

    The text depends on the configuration alone. Of paths only the last component is shown.

    Args:
        config: What `Generator` saves as its config.json.
    """
    parts = [
        f"# A generator of {KINDS[_kind(config)].title}\n\n{_purpose(config)}",
        f"## How to use it\n\n{_usage(config)}",
        f"## Data\n\n{_data(config)}",
        f"## Settings\n\n{_settings(config)}",
        f"## Metrics\n\n{_metrics(_about(config).get('metrics'))}",
        f"## Limits\n\n{_limits(config)}",
        f"## Revision\n\n`{shown(config.get('revision', 'unknown'))}`, a hash of every tensor in "
        "`model.safetensors`.",
        f"## Citation\n\nThe method is from the paper:\n\n```bibtex\n{PAPER}\n```",
    ]
    return f"{FRONT}\n" + "\n\n".join(parts) + "\n"


def _purpose(config: Mapping[str, Any]) -> str:
    steps, kind = _group(config, "diffusion").get("steps", "T"), KINDS[_kind(config)]
    return (
        f"{kind.source}, this model generates {kind.weights}: no training run. "
        f"It is a diffusion model over weights with {shown(steps)} noise levels, trained on "
        f"optimisation trajectories of many solved tasks. {kind.inside}, "
        "so images can be given as they are."
    )


def _usage_unseen(config: Mapping[str, Any]) -> str:
    about = config["backbone"]
    transform, pooled = about["transform"], bool(about["pooled"])
    shape = f"{transform['channels']}, {transform['size']}, {transform['size']}"
    images = f"torch.rand(100, {shape})  # yours, without labels" if pooled else "None"
    option = " --unlabelled IMAGES" if pooled else ""
    return f"""\
```python
import ltdi
import torch

generator = ltdi.Generator.from_pretrained("GENERATOR")  # a directory or a hub name
images = {images}
task = ltdi.Unseen(classes=("cat", "dog", "horse"), unlabelled=images)
weights = generator.generate(task)  # {{"weight": ..., "bias": ...}}
probabilities = generator.classify(weights, torch.rand(3, {shape}))
```

```shell
ltdi generate --generator GENERATOR --classes cat,dog,horse{option} --out head.safetensors
```"""


def _usage(config: Mapping[str, Any]) -> str:
    if _kind(config) == "unseen":
        return _usage_unseen(config)
    host: Mapping[str, Any] = config.get("net", config.get("backbone", {}))
    transform = host.get("transform", {})
    first, last = ("layers.0.weight", "head.bias") if "net" in config else ("weight", "bias")
    made = f'{{"{first}": ..., "{last}": ...}}'
    channels, size = transform.get("channels", 1), transform.get("size", 28)
    shape = f"{channels}, {size}, {size}"
    if _kind(config) == "sample":
        return """\
```python
import ltdi

generator = ltdi.Generator.from_pretrained("GENERATOR")  # a directory or a hub name
nets = generator.generate(10, seed=0)  # {"layers.0.weight": [10, ...], ...}
```"""
    if _kind(config) == "domain-head":
        names = ", ".join(map(repr, list(_about(config).get("classes", ()))[:2]))
        return f"""\
```python
import ltdi
import torch

generator = ltdi.Generator.from_pretrained("GENERATOR")  # a directory or a hub name
images = torch.rand(4, {shape})  # yours: any size, uint8 or values in 0..1
labels = torch.arange(2).repeat(2)  # 2 classes, numbered from 0
pool = torch.rand(50, {shape})  # unlabelled images of the same domain, of any class
names = ({names})  # of generator.classes; None where they are not known
weights = generator.generate(ltdi.Support(images, labels, pool, names))
probabilities = generator.classify(weights, torch.rand(3, {shape}))
```

```shell
ltdi evaluate --generator GENERATOR --data-dir IMAGES --way 2 --shot 1
ltdi generate --generator GENERATOR --support IMAGES --unlabelled MORE --out head.safetensors
```

`IMAGES` is a folder or archive with one folder of images a class, named as the generator knows."""
    return f"""\
```python
import ltdi
import torch

generator = ltdi.Generator.from_pretrained("GENERATOR")  # a directory or a hub name
images = torch.rand(10, {shape})  # yours: any size, uint8 or values in 0..1
labels = torch.arange(5).repeat(2)  # 5 classes, numbered from 0
weights = generator.generate((images, labels))  # {made}
probabilities = generator.classify(weights, torch.rand(3, {shape}))
```

```shell
ltdi evaluate --generator GENERATOR --data-dir IMAGES --way 5 --shot 1 --query 15 --episodes 1000
ltdi generate --generator GENERATOR --support IMAGES --out head.safetensors
```

`IMAGES` is a folder or archive with one folder of images per class."""


def _data(config: Mapping[str, Any]) -> str:
    data = _about(config).get("data")
    if not data:
        return "The training data were not recorded."
    if isinstance(data, Mapping):
        return _table(("field", "value"), data.items())
    return f"Source: {shown(data)}"


def _settings(config: Mapping[str, Any]) -> str:
    recipe = _about(config).get("recipe", {})
    rows = [("anchor", "anchor", config.get("anchor", recipe.get("anchor", "unknown")))]
    for name in ("tasks", "prepare", "diffusion", "network", "meta", "sampling"):
        rows += [(name, key, value) for key, value in _group(config, name).items()]
    text = _table(("part", "setting", "value"), rows)
    scores = _about(config).get("validation NLL")
    if isinstance(scores, Mapping):
        tried = ", ".join(f"{choice}: {shown(loss)}" for choice, loss in scores.items())
        text += (
            "\n\nSteps and strength were chosen on validation classes, by mean negative "
            f"log-likelihood ({tried})."
        )
    return text


def _metrics(metrics: Any) -> str:
    if not metrics:
        return "None were measured."
    found = {k: v if isinstance(v, Mapping) else {"mean": v} for k, v in metrics.items()}
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    rows = [(name, *(values.get(key, "") for key in keys)) for name, values in found.items()]
    text = _table(("metric", *keys), rows)
    return text + "\n\nAccuracies are fractions; `ci95` is the half width of a 95 % interval."


def _limits(config: Mapping[str, Any]) -> str:
    tasks, anchor = _group(config, "tasks"), str(config.get("anchor", "none"))
    ways, shots = (shown(tasks.get(name, "not recorded")) for name in ("ways", "shots"))
    recipe = _about(config).get("recipe", {})
    trained = f"Trained ways: {ways}; trained shots: {shots}."
    if _kind(config) == "unseen":
        trained = f"Trained ways: {shown(recipe.get('ways', 'not recorded'))}; unlabelled images "
        trained += f"per class in training: {shown(recipe.get('pool', 'not recorded'))}."
    limits = [
        f"Tasks may have 2 to 50 classes. {trained} Accuracy at other ways and shots is an "
        "extrapolation: measure it.",
        *([_FROZEN] if KINDS[_kind(config)].weights == _HEAD else []),
        ANCHORS.get(anchor, f"Generation starts from the anchor {shown(anchor)}."),
        "Probabilities were not calibrated: check them before relying on them."
        if anchor == "none"
        else "Probabilities are calibrated only on the validation classes of the training data, "
        "at the trained ways and shots. Elsewhere check them before relying on them.",
        "No label is ever seen: a class may be given the images of another, at any confidence."
        if _kind(config) == "unseen"
        else "Labels in the support are believed. With one image per class a single wrong label "
        "spoils a class.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("kind", "head"))


def _about(config: Mapping[str, Any]) -> Mapping[str, Any]:
    about: Mapping[str, Any] = config.get("about") or {}
    return about


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Settings as the generator has them, else as the recipe had them."""
    group: Any = config.get(name) or _about(config).get("recipe", {}).get(name)
    return group if isinstance(group, Mapping) else {}


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([shown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
