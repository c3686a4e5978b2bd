"""`ltdi generate` and `ltdi export`: one head, from images to a classifier on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdi.backbone import InputTransform
from ltdi.commands.adapters import export_adapter, generate_adapter
from ltdi.commands.common import ERR, OUT, check_domain, check_target, read_weights
from ltdi.data import folder
from ltdi.data.text import Columns
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.files import (
    claim_file,
    own_directory,
    write_json,
    write_tensors,
)
from ltdi.generator import (
    AdapterGenerator,
    DomainHeadGenerator,
    Generator,
    HeadGenerator,
    ImageGenerator,
    UnseenGenerator,
)
from ltdi.tasks import Support, Unseen

MOST_CLASSES = 50


def generate(
    generator: str,
    support: str | None = None,
    out: str = "weights.safetensors",
    classes: str | None = None,
    unlabelled: str | None = None,
    names: bool | None = None,
    steps: int | None = None,
    temperature: float | None = None,
    samples: int | None = None,
    sampler: str | None = None,
    strength: float | None = None,
    sharpness: float | None = None,
    end: float | None = None,
    seed: int = 0,
    target: str | None = None,
    columns: Columns = Columns(),
    description: str = "",
) -> None:
    """Generate the weights of one task from labelled images or texts, or from class names.

    Args:
        generator: Directory of a generator, or a name on the hub.
        support: Folder, zip or tar.gz of <class>/<image>; each class folder is one label, in the
            order of their names. For adapters: a JSONL, CSV or TSV file of labelled texts, or a
            folder with one called train.
        out: The safetensors file to write; for adapters also a directory, which PEFT loads.
        classes: Names of the classes, comma-separated, for a generator that needs no labels.
        unlabelled: Folder, zip or tar.gz of further images of where the task comes from, in any
            folders, for a generator that reads a domain (the support's own images by default), or
            of images of the classes, for one that needs no labels.
        names: Whether the folders of the support are named as the classes that such a generator
            knows; true by default. Otherwise it infers which classes they are.
        steps: Denoising steps; the generator's own number by default.
        temperature: Scale of the noise; 0 is the most accurate.
        samples: Weights drawn and averaged.
        sampler: "ddim" or "ddpm".
        strength: Factor of what is generated beyond the anchor; 0 returns the anchor.
        sharpness: Factor of the whole head, an inverse temperature of its predictions.
        end: Where the chain ends, as a share of the trajectory: i/k for the local target i.
        seed: Of the noise.
        target: "head", "net" or "adapter": what the generator must generate; a check for scripts.
        columns: Which columns of a text file hold what.
        description: What a text task is, in a sentence.

    Raises:
        InputError: If an option does not fit the generator, or the task cannot be read.
        MismatchError: If the generator is of another kind than the one asked for.
    """
    given = {
        "steps": steps,
        "temperature": temperature,
        "samples": samples,
        "sampler": sampler,
        "strength": strength,
        "sharpness": sharpness,
        "end": end,
    }
    options = {k: v for k, v in given.items() if v is not None}
    if (support is None) == (classes is None):
        raise InputError(
            "a task is given either by --support or by --classes",
            where="generate",
            fix="give labelled samples, or names where the generator goes by names",
        )
    gen = Generator.from_pretrained(generator)
    check_target(gen, target)
    if support is None:
        made = _from_names(gen, str(classes), unlabelled, out, seed, options)
    elif isinstance(gen, AdapterGenerator):
        made = generate_adapter(gen, support, out, columns, description, seed=seed, options=options)
    elif isinstance(gen, ImageGenerator) and (description or columns != Columns()):
        raise InputError(
            "--description and --columns are for generators of adapters, this one reads images",
            where="--description and --columns",
            fix="leave them out",
        )
    else:
        made = _from_images(gen, support, unlabelled, names, out, seed, options)
    OUT.print(made, soft_wrap=True)


def _from_names(
    gen: Generator,
    classes: str,
    unlabelled: str | None,
    out: str,
    seed: int,
    options: dict[str, Any],
) -> str:
    """Generate a head for named classes; what was made, for people."""
    file = claim_file(out, "weights")
    if not isinstance(gen, UnseenGenerator):
        raise InputError(
            f"this generator goes by labelled samples ({gen.kind}), not by class names",
            where="--classes",
            fix="give --support",
        )
    pool = _pool(unlabelled, gen.backbone.transform)
    task = Unseen(tuple(name.strip() for name in classes.split(",")), pool)
    head = gen.generate(task, seed=seed, **options)
    gen.save_weights(file, head, classes=task.classes, seed=seed)
    return f"{task.way}-way head from names  ->  {file}"


def _from_images(
    gen: Generator,
    support: str,
    unlabelled: str | None,
    names: bool | None,
    out: str,
    seed: int,
    options: dict[str, Any],
) -> str:
    """Generate from a folder of labelled images; what was made, for people."""
    if not isinstance(gen, ImageGenerator):
        named_only = isinstance(gen, UnseenGenerator)
        raise InputError(
            f"this generator ({gen.kind}) does not go by labelled images",
            where="--support",
            fix="give --classes" if named_only else "give what its card (README.md) says",
        )
    file = claim_file(out, "weights")
    t = gen.transform
    images = folder.load(support, size=t.size, channels=t.channels)
    check_domain(gen, unlabelled=unlabelled, names=names)
    named = isinstance(gen, DomainHeadGenerator) and names is not False
    way, pool = len(images.classes), _pool(unlabelled, t)
    task = Support(images.images, images.labels, pool, images.classes if named else None)
    if way > MOST_CLASSES:
        ERR.print(
            f"note: {way} classes; generators are made for at most {MOST_CLASSES}: "
            "compare with class means (`ltdi evaluate`)"
        )
    head = gen.generate(task, seed=seed, **options)
    gen.save_weights(file, head, classes=images.classes, seed=seed)
    return f"{way}-way {gen.kind} from {len(images)} images  ->  {file}"


def _pool(unlabelled: str | None, t: InputTransform) -> Tensor | None:
    """The images of `--unlabelled`."""
    if unlabelled is None:
        return None
    return folder.load_unlabelled(unlabelled, size=t.size, channels=t.channels)


def export(
    generator: str,
    weights: str,
    out: str,
    format: str = "safetensors",
) -> None:
    """Join a generated head with its backbone into one classifier; or write an adapter for PEFT.

    Args:
        generator: Directory of the generator that made the head, or a name on the hub.
        weights: File written by `ltdi generate`.
        out: Directory of the classifier or of PEFT's adapter; a file for an adapter's safetensors.
        format: "safetensors", "npz" for numpy, or "peft" for adapters.

    Raises:
        InputError: If the format is unknown, or the output is not ours.
        MismatchError: If the weights are not of this generator.
    """
    any_kind = Generator.from_pretrained(generator)
    adapter = isinstance(any_kind, AdapterGenerator)
    formats = ("safetensors", "peft" if adapter else "npz")
    if format not in formats:
        raise unknown("format", format, formats, where="--format")
    if isinstance(any_kind, AdapterGenerator):
        OUT.print(export_adapter(any_kind, weights, out, format), soft_wrap=True)
        return
    gen = any_kind
    if not isinstance(gen, HeadGenerator | UnseenGenerator):
        raise MismatchError(
            f"a generated {any_kind.kind} sits on no backbone to be joined with",
            where="--generator",
            fix="use the file of weights as it is: it is a whole state dict",
        )
    head, metadata, classes = read_weights(gen, Path(weights), "backbone", gen.backbone.fingerprint)
    folder_out = own_directory(out, "classifier")
    tensors = {f"backbone.{k}": v for k, v in gen.backbone.net.state_dict().items()}
    tensors |= {f"head.{k}": v for k, v in head.items()}
    # What an earlier export left in the other format is another head's.
    for stale in {"safetensors", "npz"} - {format}:
        (folder_out / f"model.{stale}").unlink(missing_ok=True)
    if format == "safetensors":
        write_tensors(folder_out / "model.safetensors", tensors, {"format": "pt"})
    else:
        import numpy as np

        np.savez(folder_out / "model.npz", **{k: v.numpy() for k, v in tensors.items()})
    write_json(
        folder_out / "config.json",
        {
            "classes": classes,
            "backbone": gen.backbone.config,
            "transform": asdict(gen.backbone.transform),
            "generator": metadata.get("generator"),
            "logits": "backbone(transform(images)) @ head.weight.T + head.bias",
        },
    )
    numbers = sum(t.numel() for t in tensors.values())
    OUT.print(f"classifier  {folder_out}  ({numbers} numbers)", soft_wrap=True)
