"""`ltdi collect`, `train`, `generate`, `evaluate` and `export` for LoRA adapters."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ltdi.adapters.collect import RunCollection, begin_runs, collected, reader
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.source import Source, prepare_source
from ltdi.adapters.support import support_rows
from ltdi.adapters.training import AdapterRecipe, train_network
from ltdi.commands.common import read_weights
from ltdi.data import text
from ltdi.data.text import Columns, TextSet
from ltdi.data.text.metrics import measure
from ltdi.engine import Runtime
from ltdi.errors import InputError
from ltdi.files import claim_file, write_tensors
from ltdi.generator import AdapterGenerator, TextSupport
from ltdi.lora import LoraSpec, load_base
from ltdi.memory import peak_mb
from ltdi.report.table import Result, Row
from ltdi.zoo import Zoo

DEFAULT = AdapterRecipe()
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TextTasks:
    """Text tasks, and the adapters that are fitted to them.

    Attributes:
        base: Base model: a name of the hub such as "roberta-base", a path, "minilm", or "tiny".
        rows: Most training rows of a task.
        max_length: Tokens per text.
    """

    base: str = "roberta-base"
    rows: int = 8000
    max_length: int = 64


def begin_adapters(
    path: Path,
    data: str,
    data_dir: str | None,
    texts: TextTasks,
    lora: LoraSpec,
    columns: Columns,
    recipe: AdapterRecipe,
    *,
    seed: int,
) -> RunCollection:
    """Read and encode the text tasks: everything before the runs."""
    names = [n.strip() for n in data.split(",") if n.strip()]
    loaded = {name: text.find(name, data_dir, columns=columns) for name in names}
    base = load_base(texts.base)
    host = LanguageHost.of(base, lora, texts.base, max_length=texts.max_length)
    sources = [
        prepare_source(
            base,
            text.short_name(name),
            parts,
            origin=text.origin(name),
            rows=texts.rows,
            max_length=texts.max_length,
            topics=0,
            seed=seed,
        )
        for name, parts in loaded.items()
    ]
    described = {s.name: text.description(n) for s, n in zip(sources, loaded, strict=True)}
    return begin_runs(path, host, sources, described, recipe, seed=seed)


def train_adapters(zoo: Zoo, recipe: AdapterRecipe, runtime: Runtime) -> AdapterGenerator:
    """Meta-train a generator of adapters, on the CPU."""
    host = LanguageHost.from_config(zoo.about["base"])
    read = reader(zoo, host)
    groups, names = read(runtime.groups(zoo)), ", ".join(zoo.about["names"])
    planned = len(runtime.arrivals.plan) if runtime.arrivals else None
    made_by = collected(zoo, recipe, planned)
    return AdapterGenerator(train_network(groups, host, made_by, names, runtime=runtime, read=read))


def generate_adapter(
    gen: AdapterGenerator,
    support: str,
    out: str,
    columns: Columns,
    description: str,
    *,
    seed: int,
    options: dict[str, Any],
) -> str:
    """Generate from a file of labelled texts: a safetensors file, or a directory for PEFT.

    Returns:
        What was made, for people.
    """
    texts = training_part(text.find(support, None, columns=columns))
    target = claim_file(out, "weights") if out.endswith(SUFFIX) else None
    weights = gen.generate(TextSupport(texts, description), seed=seed, **options)
    if target:
        gen.save_weights(target, weights, classes=texts.label_names, seed=seed)
    else:
        gen.save_peft(out, weights, texts=texts, seed=seed)
    return f"{gen.architecture(weights)}, from {len(texts)} rows  ->  {out}"


def export_adapter(gen: AdapterGenerator, weights: str, out: str, format: str) -> str:
    """Write generated weights as a directory for PEFT, or as a plain state dict.

    Returns:
        What was made, for people.

    Raises:
        MismatchError: If the weights are of another base model.
    """
    tensors, metadata, classes = read_weights(gen, Path(weights), "base", gen.language.fingerprint)
    if format == "peft":
        gen.save_peft(
            out,
            tensors,
            classes=classes,
            seed=int(seed) if (seed := metadata.get("seed", "")).isdecimal() else 0,
        )
    else:
        file = claim_file(out, "weights")
        # The names that the model has under PEFT, without the wrapper that makes logits of it.
        plain = {name.removeprefix("model."): value for name, value in tensors.items()}
        write_tensors(file, plain, {"format": "pt"})
    return f"{gen.architecture(tensors)}  ->  {out}"


def evaluate_adapter(
    gen: AdapterGenerator,
    data: str,
    data_dir: str | None,
    columns: Columns,
    description: str,
    *,
    rows: int,
    seed: int,
    options: dict[str, Any],
) -> Result:
    """Generate from rows of a task's training part, and score on its dev part.

    Beside it: the base model with a head fitted to the same rows.

    Raises:
        InputError: If the part to measure on has no labels.
    """
    host = gen.language
    source = prepare_source(
        host.base,
        text.short_name(data),
        text.find(data, data_dir, columns=columns),
        max_length=host.max_length,
        topics=0,
        seed=seed,
    )
    labels = source.dev.labels
    if labels is None:
        raise InputError(
            "the part to measure on has no labels",
            where=data,
            fix="give a file with a column of labels; --columns.label names it",
        )
    some = support_rows(source, source.fit, rows, torch.Generator().manual_seed(seed))
    texts = source.train.select(some)
    adapter = host.adapter(source.outputs)
    out = []
    for name, kind in (("lt-di", "ours"), ("base", "control")):
        begin = time.perf_counter()
        if name == "lt-di":
            weights = gen.generate(TextSupport(texts, description), seed=seed, **options)
        else:
            inputs = host.inputs(texts.texts)
            found = host.refine(
                adapter.theta_0, adapter.space, inputs, texts.targets, head="fitted"
            )
            weights = adapter.space.unflatten(found.theta)
        took = time.perf_counter() - begin
        score = measure(source.dev.metric, gen.logits(weights, source.dev), labels)
        out.append(_row(name, kind, source, score, 1000 * took))
    settings = {
        "rows": len(texts),
        "generator": gen.revision,
        "sampling": asdict(gen.sampling(**options)),
        "base": host.known["name"],
    }
    return Result("evaluate", source.name, "none", seed, settings, out)


def training_part(parts: dict[str, TextSet]) -> TextSet:
    """The part that a support is, of a task's parts."""
    return parts["train"] if "train" in parts else parts["all"]


def _row(name: str, kind: str, source: Source, score: float, latency: float) -> Row:
    n = len(source.dev)
    metric = source.dev.metric
    half = 1.96 * (score * (1 - score) / n) ** 0.5 if metric == "accuracy" else 0.0
    return Row(name, kind, metric, score, half, n, latency, 0.0, 0.0, peak_mb())
