"""Text tasks made ready: encoded once, their training rows in parts that no choice mixes up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.data.text import TextSet, kmeans
from ltdi.errors import InputError, MismatchError
from ltdi.files import tuples
from ltdi.lora import Base, encode
from ltdi.lora.inputs import mask_of, token_mean
from ltdi.zoo import Zoo

# Topics of a task, of which one is held out.
TOPICS = 8


@dataclass(frozen=True, eq=False)
class TaskRows:
    """A text task with the rows that it takes to fit adapters.

    Attributes:
        name: Of the task.
        train: Texts that may be fitted to.
        inputs: [rows, channels, T] of `train`.
        fit: Rows that adapters are fitted to.
        valid: Rows that choices are made on; no adapter is fitted to them.
        origin: Of a task that was made without labels, the name of the texts it is made of.
    """

    name: str
    train: TextSet
    inputs: Tensor
    fit: Tensor
    valid: Tensor
    origin: str

    @property
    def outputs(self) -> int:
        """Outputs of a head."""
        return self.train.outputs

    def keep(self, zoo: Zoo, number: int) -> None:
        """Store the task in a zoo as its task of that number, or check that it is this one.

        Raises:
            MismatchError: If the zoo was made from other texts, or other rows of them.
        """
        t = self.train
        assert t.labels is not None
        texts = torch.frombuffer(bytearray(json.dumps(t.texts).encode()), dtype=torch.uint8)
        tensors = {"texts": texts, "labels": t.labels, "inputs": self.inputs}
        tensors |= {"fit": self.fit, "valid": self.valid}
        train = {n: getattr(t, n) for n in ("name", "label_names", "metrics", "label_range")}
        note = {"name": self.name, "origin": self.origin, "train": train}
        held = zoo.keep(_place(number), tensors, note)
        if not all(torch.equal(held[n], x) for n, x in tensors.items()):
            raise MismatchError(
                f"the zoo was made from other texts of {self.name} than are given",
                where=str(zoo.path / f"{_place(number)}.safetensors"),
                fix="collect from the same data, or into a new directory",
            )

    @classmethod
    def kept(cls, zoo: Zoo, number: int) -> TaskRows:
        """The inverse of `keep`."""
        held, note = zoo.shared(_place(number)), zoo.note(_place(number))
        texts = tuple(map(tuple, json.loads(bytes(held["texts"].numpy()))))
        train = TextSet(texts=texts, labels=held["labels"], **tuples(note["train"]))
        return cls(note["name"], train, held["inputs"], held["fit"], held["valid"], note["origin"])


def _place(number: int) -> str:
    return f"texts-{number}"


@dataclass(frozen=True, eq=False)
class Source(TaskRows):
    """A text task with all its rows.

    Attributes:
        dev: Texts that are only measured on.
        dev_inputs: [rows, channels, T] of `dev`.
        topics: [rows of train] number of the cluster that a row is in.
        unseen: Rows of a topic that is in neither `fit` nor `valid`, or none: a slice that no
            adapter has seen.
    """

    dev: TextSet
    dev_inputs: Tensor
    topics: Tensor
    unseen: Tensor


def prepare_source(
    base: Base,
    name: str,
    parts: Mapping[str, TextSet],
    *,
    rows: int = 8000,
    valid: int = 400,
    dev: int = 1050,
    max_length: int = 64,
    topics: int = TOPICS,
    seed: int = 0,
    origin: str = "",
) -> Source:
    """Encode a task and split its training rows.

    Args:
        base: The base model, for its tokenizer and its word embeddings.
        name: Of the task.
        parts: "train", or "all" for a single file, and "dev" where there is one.
        rows: Most training rows; others are left out at random.
        valid: Most validation rows; never more than an eighth of the training rows.
        dev: Most dev rows; without a dev part an eighth of the training rows.
        max_length: Tokens per text.
        topics: Clusters of word embeddings; the smallest with enough rows and every class is
            held out. 0 holds none out.
        seed: Of the choice of rows.
        origin: See `Source`.

    Raises:
        InputError: If there is no training part or no label.
    """
    train = parts.get("train", parts.get("all"))
    if train is None or train.labels is None:
        raise InputError(
            f"the task {name!r} has {'no labels' if train else 'no part train'}; its parts are "
            f"{', '.join(parts)}",
            where="text task",
            fix="give a file with a label column, or a folder with a train file",
        )
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=rng)
    held = parts.get("dev")
    if held is None:
        cut = max(1, len(train) // 8)
        held, order = train.select(order[:cut]), order[cut:]
    if len(held) > dev:
        # With a generator of its own: the size of the dev part moves no training row.
        own = torch.Generator().manual_seed(seed + 1)
        held = held.select(torch.randperm(len(held), generator=own)[:dev])
    train = train.select(order[:rows])
    inputs = encode(base, train.texts, max_length=max_length)
    clusters = torch.zeros(len(train), dtype=torch.int64)
    hidden = clusters[:0]
    if topics > 1 and len(train) >= 16 * topics:
        clusters = kmeans(word_features(base, inputs), topics, rng)
        hidden = _held_out(clusters, train, topics)
    mixed = torch.randperm(len(train), generator=rng)
    rest = mixed[~torch.isin(mixed, hidden)]
    cut = min(valid, len(train) // 8)
    return Source(
        name,
        train,
        inputs,
        rest[cut:],
        rest[:cut],
        origin,
        held,
        encode(base, held.texts, max_length=max_length),
        clusters,
        hidden,
    )


def word_features(base: Base, inputs: Tensor) -> Tensor:
    """[rows, D] mean word embedding of texts [rows, channels, T]: what they are about, cheaply."""
    table = base.encoder.get_input_embeddings().weight  # type: ignore[operator]
    out = [
        token_mean(table[part[:, 0].long()].float(), mask_of(part)) for part in inputs.split(512)
    ]
    return torch.nn.functional.normalize(torch.cat(out), dim=-1)


def _held_out(clusters: Tensor, texts: TextSet, topics: int) -> Tensor:
    """Rows of the smallest cluster with at least half an equal share of rows and every class."""
    found: Sequence[Tensor] = [(clusters == c).nonzero()[:, 0] for c in range(topics)]
    enough = [
        rows
        for rows in found
        if 2 * len(rows) * topics >= len(texts)
        and (texts.regression or len(texts.targets[rows].unique()) == texts.outputs)
    ]
    return min(enough, key=len) if enough else clusters[:0]
