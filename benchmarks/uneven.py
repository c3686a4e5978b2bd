r"""Supports with more images of some classes than of others: a generator beside simple peers.

    python benchmarks/uneven.py --generator runs/b/generator --dataset cifar-fs --data-dir DIR \
        --elsewhere photos/,more.zip --shots 1,1,2,4,9

The episodes of `ltdi bench` have as many images of every class; a user's have not. Queries are
equally many of every class. The strength of logistic regression is chosen on validation classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ltdi.anchor import masked_mean
from ltdi.backbone import cached_bank
from ltdi.data import ImageSet, folder, load
from ltdi.evaluate import accuracy, paired, summarise
from ltdi.generator import Generator, HeadGenerator
from ltdi.tasks import FeatureBank
from ltdi.tracks.fewshot_presets import preset_of

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
# Support [E, way, shot, D], mask [E, way, shot] and query [E, way, Q, D] -> logits.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw(bank: FeatureBank, shots: list[int], query: int, episodes: int, seed: int) -> Any:
    """Support, mask and query of episodes with these numbers of images per class."""
    most = max(shots)
    room = bank.queries_left(most, query)
    tasks = bank.episodes(way=len(shots), shot=most, query=room, episodes=episodes, seed=seed)
    mask = (torch.arange(most) < torch.tensor(shots)[:, None]).float().expand(tasks.support.shape)
    return bank.features[tasks.support] * mask[..., None], mask, bank.features[tasks.query]


def nearest(support: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Nearest class mean."""
    means = masked_mean(support, mask)
    return -torch.cdist(query.flatten(1, 2), means).square().unflatten(1, query.shape[1:3])


def cosine(origin: Tensor, support: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Nearest mean of unit samples by angle, which the length of a mean does not touch."""
    x, y = (F.normalize(z - origin, dim=-1) for z in (support, query))
    return torch.einsum("ewqd,evd->ewqv", y, F.normalize(masked_mean(x, mask), dim=-1))


def logistic(
    origin: Tensor,
    weight: str | None,
    strength: float,
    support: Tensor,
    mask: Tensor,
    query: Tensor,
) -> Tensor:
    """Logistic regression on unit features; `weight` "balanced" counts classes the same."""
    x, y = (F.normalize(z - origin, dim=-1) for z in (support, query))
    label = torch.arange(mask.shape[1])[:, None].expand(mask.shape[1:])
    out = []
    for task, real, asked in zip(x, mask > 0, y, strict=True):
        rule = LogisticRegression(C=strength, class_weight=weight, max_iter=100)
        rule.fit(task[real].numpy(), label[real].numpy())
        found = torch.tensor(rule.decision_function(asked.flatten(0, 1).numpy()))
        out.append(found.unflatten(0, asked.shape[:2]))
    return torch.stack(out)


def methods_of(gen: HeadGenerator, valid: Any, origin: Tensor) -> dict[str, Predict]:
    """All methods, tuned on validation episodes."""

    def ours(support: Tensor, mask: Tensor, query: Tensor, **options: Any) -> Tensor:
        return gen.query_logits(gen.weights(support, mask, **options), query)

    made: dict[str, Predict] = {
        "lt-di": ours,
        "anchor": partial(ours, strength=0.0),
        "protonet": nearest,
        "cosine": partial(cosine, origin),
    }
    for name, weight in (("linear-probe", None), ("linear-probe, balanced", "balanced")):
        tried = {c: partial(logistic, origin, weight, c) for c in STRENGTHS}
        best = max(STRENGTHS, key=lambda c: float(accuracy(tried[c](*valid)).mean()))
        made[name] = tried[best]
    return made


def measure(methods: dict[str, Predict], episodes: Any) -> dict[str, Any]:
    """Accuracy of every method, and lt-di minus it on the same episodes."""
    scores = {name: accuracy(predict(*episodes)) for name, predict in methods.items()}
    return {
        name: {"accuracy": asdict(summarise(s)), "lead": asdict(paired(scores["lt-di"], s))}
        for name, s in scores.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generator", required=True)
    parser.add_argument("--dataset", required=True, help="what the generator was trained on")
    parser.add_argument("--data-dir")
    parser.add_argument("--elsewhere", default="", help="folders or zips, commas between")
    parser.add_argument("--shots", default="1,1,2,4,9", help="images of each class of a task")
    parser.add_argument("--query", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gen = Generator.from_pretrained(args.generator)
    assert isinstance(gen, HeadGenerator)
    t = gen.transform
    size = preset_of(args.dataset, "standard").size
    parts = load(args.dataset, args.data_dir, size=size, channels=t.channels)
    shots = [int(n) for n in args.shots.split(",")]

    def bank(images: ImageSet) -> FeatureBank:
        return cached_bank(gen.backbone, images, args.cache)

    valid = bank(parts["val"])
    chosen_on = draw(valid, shots, args.query, 100, args.seed + 1)
    methods = methods_of(gen, chosen_on, valid.features.mean(0))
    sets = {args.dataset: parts["test"]}
    for place in filter(None, args.elsewhere.split(",")):
        found = folder.load(place, size=t.size, channels=t.channels)
        sets[found.name] = found
    result = {}
    for name, images in sets.items():
        tasks = draw(bank(images), shots, args.query, args.episodes, args.seed)
        result[name] = measure(methods, tasks)
        for method, found in result[name].items():
            a, lead = found["accuracy"], found["lead"]
            print(
                f"{name:20} {method:24} {a['mean']:.4f} ± {a['ci95']:.4f}   "
                f"{lead['mean']:+.4f} ± {lead['ci95']:.4f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(
            json.dumps({"settings": {**vars(args), "json": None}, "sets": result}, default=str)
        )


if __name__ == "__main__":
    main()
