"""What a user loads: a trained generator of classifier heads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor

from ltdi.backbone import Backbone
from ltdi.denoiser import Guide
from ltdi.diffusion import make_schedule, sample
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.files import own_directory, write_tensors, write_text
from ltdi.parts import (
    CONFIG,
    WEIGHTS,
    Parts,
    chain_end,
    check_sampling,
    load_parts,
    revision_of,
    save_parts,
)
from ltdi.recipe import Sampling
from ltdi.report.card import model_card
from ltdi.tasks import Support
from ltdi.weights import WeightSpace

CARD = "README.md"
Head = dict[str, Tensor]
Supports = Sequence[Support | tuple[Tensor, Tensor]]


class Generator(ModelHubMixin, library_name="ltdi", license="apache-2.0"):
    """Generates classifier heads for unseen tasks from their support, without gradients.

    Args:
        parts: The trained parts.
        backbone: The feature extractor that the heads sit on.
    """

    def __init__(self, parts: Parts, backbone: Backbone) -> None:
        self.parts, self.backbone = parts, backbone
        parts.network.eval().requires_grad_(False)
        # The token layout of a way is worked out once.
        self._spaces: dict[int, WeightSpace] = {}
        self.schedule = make_schedule(parts.diffusion.schedule, parts.diffusion.steps)

    @overload
    def generate(self, support: Support | tuple[Tensor, Tensor], **options: Any) -> Head: ...
    @overload
    def generate(self, support: list[Any], **options: Any) -> list[Head]: ...
    def generate(self, support: Any, **options: Any) -> Any:
        """Weights for one task, or for a list of tasks at once.

        Args:
            support: `Support`, or (images [n, 1 or 3, height, width], labels [n]), or a list of
                these. Tasks of a list may differ in way and shot.
            **options: Fields of `Sampling` (steps, sampler, temperature, samples, segments,
                strength, sharpness, end) that
                differ from the generator's defaults, and `seed`.

        Returns:
            State dict of the head: "weight" [way, D] and "bias" [way]; a list for a list.

        Raises:
            InputError: For a support or an option that cannot be used.
        """
        if isinstance(support, list):
            return self._generate_many([Support.of(s) for s in support], **options)
        return self._generate_many([Support.of(support)], **options)[0]

    def weights(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Flat weights [B, n] of B tasks from features: the mean over samples of `draws`."""
        return self.draws(features, mask, seed=seed, callback=callback, **options).mean(0)

    @torch.no_grad()
    def draws(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Samples of the flat weights of B tasks, one by one.

        Args:
            features: [B, way, shot, D] support features.
            mask: [B, way, shot] 1 for real samples, 0 for padding; all ones by default.
            seed: Of the noise.
            callback: Called as callback(t, theta, theta_0_estimate) after each step.
            **options: See `generate`.

        Returns:
            [samples, B, n]; without noise all samples are equal and one is returned.
        """
        p, s = self.parts, self.sampling(**options)
        self._check_features(features)
        mask = torch.ones(features.shape[:3]) if mask is None else mask
        space = self.space(features.shape[1])
        frame = p.anchor.frame(features.shape[-1])
        z = frame.enter(features)
        anchor = p.anchor.local(z, mask, space)
        rng = torch.Generator().manual_seed(seed)
        # Without noise all samples are equal.
        copies = s.samples if s.temperature > 0 else 1
        batch = copies * len(features)
        noise = torch.zeros(batch, space.size)
        if s.temperature > 0:
            noise = torch.randn(noise.shape, generator=rng)
        code = p.network.encode(_repeat(z, copies), _repeat(mask, copies))
        between, start = frame.between.expand(batch, -1), _repeat(anchor, copies)
        stage = torch.full((batch,), float(s.end))
        end = chain_end(s.end, p.diffusion)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            signal = self.schedule.alpha_bar_local(t, torch.full_like(t, end)).sqrt()
            return p.network.denoise(x, t, code, space, Guide(start, between, signal, stage))

        def whole(residual: Tensor) -> Tensor:
            change = s.strength * p.normaliser.denormalise(residual, space)
            return frame.leave(s.sharpness * (change + start))

        residual = sample(
            denoise,
            noise,
            self.schedule,
            prediction=p.diffusion.prediction,
            sampler=s.sampler,
            steps=s.steps,
            temperature=s.temperature,
            segments=s.segments,
            end=end,
            rng=rng,
            callback=callback and (lambda t, x, x0: callback(t, whole(x), whole(x0))),
        )
        drawn: Tensor = whole(residual).unflatten(0, (copies, -1))
        return drawn

    def classify(self, head: Head, images: Tensor) -> Tensor:
        """Class probabilities [n, way] of images under a generated head."""
        self.check_head(head)
        logits = self.backbone.features(images) @ head["weight"].T + head["bias"]
        return logits.softmax(-1)

    def save_weights(
        self, path: Path | str, head: Head, *, classes: Sequence[str] = (), seed: int = 0
    ) -> None:
        """Write a generated head as safetensors; the metadata say what made it.

        Args:
            path: File.
            head: As `generate` returned it.
            classes: Names of the task's classes, in the order of the labels.
            seed: That it was generated with.

        Raises:
            MismatchError: If it is not a head of this generator.
        """
        self.check_head(head)
        way, features = head["weight"].shape
        metadata = {
            "ltdi": "weights",
            "architecture": f"linear head, {features} features, {way} classes",
            "task": json.dumps(list(classes), ensure_ascii=False),
            "seed": str(seed),
            "generator": self.revision,
            "backbone": self.backbone.fingerprint,
        }
        write_tensors(Path(path), head, metadata)

    def sampling(self, **options: Any) -> Sampling:
        """The generator's defaults with some fields changed.

        A default `end` that leaves too few steps for what is asked gives way to the whole chain.

        Raises:
            InputError: If an option is unknown or out of range.
        """
        known = asdict(self.parts.sampling)
        for name in options:
            if name not in known:
                raise unknown("option of generate", name, [*known, "seed"])
        d, chosen = self.parts.diffusion, replace(self.parts.sampling, **options)
        if "end" not in options and (
            chosen.steps > chain_end(chosen.end, d) or chosen.segments > 1
        ):
            chosen = replace(chosen, end=1.0)
        check_sampling(chosen, d)
        return chosen

    def space(self, way: int) -> WeightSpace:
        """The weight space of tasks with `way` classes.

        Raises:
            InputError: If way < 2.
        """
        if way < 2:
            raise InputError(f"a task needs at least 2 classes, got {way}", where="support.labels")
        if way not in self._spaces:
            self._spaces[way] = self.parts.space.with_way(way)
        return self._spaces[way]

    def check_head(self, head: Head) -> None:
        """Refuse weights that are not a head of this generator's weight space.

        Raises:
            MismatchError: If a parameter is missing or has another shape.
        """
        way = len(head["weight"]) if "weight" in head else self.parts.space.way
        self.space(way or 2).flatten(head)

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse another backbone than the one the generator was trained on.

        Raises:
            MismatchError: If weights or transform differ.
        """
        if backbone.fingerprint != self.backbone.fingerprint:
            raise MismatchError(
                f"this generator was trained on backbone {self.backbone.fingerprint[:12]}, not "
                f"on {backbone.fingerprint[:12]}; its heads would be meaningless there",
                where="backbone",
                fix="use the backbone inside the generator, or train a generator on yours",
            )

    @property
    def revision(self) -> str:
        """Hash of every tensor of the generator."""
        return revision_of(self.parts, self.backbone)

    def _generate_many(
        self, supports: list[Support], *, seed: int = 0, **options: Any
    ) -> list[Head]:
        if not supports:
            raise InputError("no task was given", where="generate", fix="give at least one support")
        for s in supports:
            self.space(s.way)
        features = self._features(supports)
        heads: list[Head | None] = [None] * len(supports)
        ways: dict[int, list[int]] = {}
        for i, s in enumerate(supports):
            ways.setdefault(s.way, []).append(i)
        for way, members in ways.items():
            grid, mask = _grid(
                [features[i] for i in members], [supports[i].labels for i in members], way
            )
            theta = self.weights(grid, mask, seed=seed, **options)
            named = self.space(way).unflatten(theta)
            for row, i in enumerate(members):
                heads[i] = {name: value[row].clone() for name, value in named.items()}
        return [h for h in heads if h is not None]

    def _features(self, supports: list[Support]) -> list[Tensor]:
        """Features of all supports; images of one shape go through the backbone together."""
        out: list[Tensor] = [torch.empty(0)] * len(supports)
        shapes: dict[Any, list[int]] = {}
        for i, s in enumerate(supports):
            shapes.setdefault((s.images.shape[1:], s.images.dtype), []).append(i)
        for members in shapes.values():
            stacked = torch.cat([supports[i].images for i in members])
            sizes = [len(supports[i].labels) for i in members]
            try:
                features = self.backbone.features(stacked)
            except InputError:
                self._blame(supports, members)
                raise
            for i, part in zip(members, features.split(sizes), strict=True):
                out[i] = part
        return out

    def _blame(self, supports: list[Support], members: list[int]) -> None:
        """Raise the error of the first support at fault, with numbers that are its own."""
        for i in members:
            try:
                self.backbone.features(supports[i].images)
            except InputError as error:
                where = f"support {i}, {error.where}" if len(supports) > 1 else error.where
                raise InputError(error.what, where=where, fix=error.fix) from None

    def _check_features(self, features: Tensor) -> None:
        width = self.parts.space.layers[0].row - 1
        if features.ndim != 4 or features.shape[-1] != width:
            raise MismatchError(
                f"support features have shape {list(features.shape)}, this generator expects "
                f"[tasks, way, shot, {width}]",
                where="features",
                fix="take them from this generator's own backbone",
            )
        if not bool(features.isfinite().all()):
            raise InputError("support features are not finite", where="features")

    def save(self, path: Path | str) -> Path:
        """Write the generator into a directory of its own; see `own_directory` for refusals."""
        path = own_directory(path, "generator")
        self._save_pretrained(path)
        return path

    def _save_pretrained(self, save_directory: Path) -> None:
        config = save_parts(save_directory, self.parts, self.backbone)
        write_text(save_directory / CARD, model_card(config))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Generator:
        """Load a generator from its directory, or from the hub where there is no directory.

        Args:
            pretrained_model_name_or_path: A directory that `save` wrote, or a name on the hub.
            force_download: Fetch again what is in the hub's cache.
            token: For private repositories.
            cache_dir: Of the hub.
            local_files_only: Take from the hub's cache alone.
            revision: Branch, tag or commit on the hub.
            **model_kwargs: None; sampling options go to `generate`.

        Raises:
            InputError: If there is no generator, or for an unknown option.
            DamagedFileError: If a file is truncated or altered.
            MismatchError: If its files do not belong together or have another format.
        """
        hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        for name in model_kwargs:
            raise unknown("option of from_pretrained", name, hub)
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            path = _download(str(pretrained_model_name_or_path), **hub)
        return cls(*load_parts(path))


def _download(model_id: str, **options: Any) -> Path:
    try:
        return Path(snapshot_download(model_id, allow_patterns=[CONFIG, WEIGHTS, CARD], **options))
    except Exception as error:  # the hub raises many kinds: names, network, permissions
        raise InputError(
            f"there is no generator at {model_id!r}, neither as a directory nor on the hub: "
            f"{str(error).splitlines()[0]}",
            where="from_pretrained",
            fix="give the directory that `ltdi train` or `ltdi demo` wrote, or a hub name",
        ) from None


def _repeat(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))


def _grid(features: list[Tensor], labels: list[Tensor], way: int) -> tuple[Tensor, Tensor]:
    """Arrange the samples of B tasks by class: [B, way, most shots, D] and a mask."""
    counts = [torch.bincount(y.long(), minlength=way) for y in labels]
    shot = max(int(c.max()) for c in counts)
    grid = torch.zeros(len(features), way, shot, features[0].shape[1])
    mask = torch.zeros(len(features), way, shot)
    for i, (x, y, count) in enumerate(zip(features, labels, counts, strict=True)):
        order = y.long().argsort(stable=True)
        place = torch.arange(len(y)) - (count.cumsum(0) - count)[y[order].long()]
        grid[i, y[order].long(), place] = x[order]
        mask[i, y[order].long(), place] = 1
    return grid, mask
