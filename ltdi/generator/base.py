"""What all kinds of generators share: the chain, its options, and the files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn

from ltdi.anchor import Anchor
from ltdi.diffusion import make_schedule, sample
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.files import claim_file, own_directory, write_tensors, write_text
from ltdi.parts import (
    CONFIG,
    WEIGHTS,
    Host,
    Parts,
    Saved,
    chain_end,
    check_sampling,
    check_types,
    load_parts,
    read_config,
    revision_of,
    save_parts,
)
from ltdi.products import MANY, fast_products
from ltdi.recipe import Sampling
from ltdi.report.card import model_card
from ltdi.seeding import check_seed
from ltdi.weights import WeightSpace

CARD = "README.md"
Weights = dict[str, Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class View:
    """B tasks as the chain sees them.

    Attributes:
        space: Weight space of the tasks.
        start: [B, n] the anchor, in the coordinates that generation takes place in.
        denoise: `(x [B, n], t [B], signal [B], stage [B]) -> [B, n]`, the network with all that it
            is told about these tasks; `Guide` says what signal and stage are.
        leave: From those coordinates to weights.
    """

    space: WeightSpace
    start: Tensor
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    leave: Callable[[Tensor], Tensor] = lambda theta: theta


class Generator(ModelHubMixin, ABC, library_name="ltdi", license="apache-2.0"):
    """Generates weights for unseen tasks, without gradients.

    A kind of weights is a subclass. It says what a support is and how it becomes a `View`; chain,
    options and files are here. `Generator.from_pretrained` gives the kind that is in the files.
    """

    kind: ClassVar[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """The mixin's would copy all parts, a language model among them, to look at them."""
        return object.__new__(cls)

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        parts.network.eval().requires_grad_(False)
        # The token layout of a way is worked out once.
        self._spaces: dict[int, WeightSpace] = {}
        self._signals: dict[tuple[int, int], Tensor] = {}
        self._units: dict[int, tuple[Tensor, Tensor]] = {}
        check_sampling(parts.sampling, parts.diffusion)
        self.schedule = make_schedule(parts.diffusion.schedule, parts.diffusion.steps)

    # ---- what a kind supplies -------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Anchor, Host]:
        """Untrained network, empty anchor, and the host, as `config.json` describes them."""

    @abstractmethod
    def read(self, support: Any) -> Any:
        """Take a support in any form that a user may have it.

        Raises:
            InputError: If it cannot be used.
        """

    @abstractmethod
    def generate_many(self, supports: list[Any], *, seed: int, **options: Any) -> list[Weights]:
        """Weights for tasks that `read` has taken; options were checked."""

    @abstractmethod
    def architecture(self, weights: Weights) -> str:
        """One line that says what generated weights are."""

    # ---- generation -----------------------------------------------------------------------------

    @overload
    def generate(self, support: list[Any], **options: Any) -> list[Weights]: ...
    @overload
    def generate(self, support: Any, **options: Any) -> Weights: ...
    def generate(self, support: Any, *, seed: int = 0, **options: Any) -> Any:
        """Weights for one task, or for a list of tasks at once.

        Args:
            support: What the kind generates from: for images `Support`, or (images [n, 1 or 3,
                height, width], labels [n]); or a list of these. Tasks of a list may differ in way
                and shot.
            seed: Of the noise.
            **options: Fields of `Sampling` (steps, sampler, temperature, samples, segments,
                strength, sharpness, end) that differ from the generator's defaults.

        Returns:
            State dict of the generated parameters; a list for a list.

        Raises:
            InputError: For a support or an option that cannot be used, or options that lead to
                weights that are not finite.
        """
        supports = support if isinstance(support, list) else [support]
        if not supports:
            raise InputError("no task was given", where="generate", fix="give at least one support")
        check_seed(seed)
        taken = [self.read(s) for s in supports]
        out = self.generate_many(taken, seed=seed, **asdict(self.sampling(**options)))
        # The defaults were tried on validation tasks.
        if options and not all(bool(v.isfinite().all()) for w in out for v in w.values()):
            raise InputError(
                "the generated weights are not finite: strength, sharpness or temperature is too "
                "large",
                where="generate",
                fix="leave them out, or take values near 1",
            )
        return out if isinstance(support, list) else out[0]

    def chain(
        self,
        view: Callable[[int], View],
        sampling: Sampling,
        *,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Samples of the flat weights of B tasks, one by one.

        It runs in inference mode, which takes a fifth off; what a caller sees is made of ordinary
        tensors.

        Args:
            view: The tasks, given how many copies of the batch are to be drawn at once.
            sampling: As `Generator.sampling` checked it.
            seed: Of the noise.
            callback: Called as callback(t, theta, theta_0_estimate) after each step.

        Returns:
            [samples, B, n]; without noise all samples are equal and one is returned.
        """
        with torch.inference_mode():
            drawn = self._chain(view, sampling, seed, callback)
        return drawn.clone()

    def _chain(
        self, view: Callable[[int], View], sampling: Sampling, seed: int, callback: Callback | None
    ) -> Tensor:
        p, s = self.parts, sampling
        copies = s.samples if s.temperature > 0 else 1
        v = view(copies)
        scale, mean = self.unit(v.space)
        rng = torch.Generator().manual_seed(seed)
        noise = torch.zeros_like(v.start)
        if s.temperature > 0:
            noise = torch.randn(noise.shape, generator=rng)
        stage = torch.full((len(noise),), float(s.end))
        end = chain_end(s.end, p.diffusion)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return v.denoise(x, t, self.signal(int(t[0]), end).expand(len(t)), stage)

        def whole(residual: Tensor) -> Tensor:
            change = s.strength * (residual * scale + mean)
            return v.leave(s.sharpness * (change + v.start))

        def told(t: int, x: Tensor, x0: Tensor) -> None:
            seen = whole(x), whole(x0)
            with torch.inference_mode(False):
                assert callback is not None
                callback(t, *(theta.clone() for theta in seen))

        if s.strength == 0 and callback is None:
            # The start alone: the network is not asked.
            start: Tensor = whole(noise).unflatten(0, (copies, -1))
            return start
        with fast_products() if len(noise) >= MANY else nullcontext():
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
                callback=callback and told,
            )
        drawn: Tensor = whole(residual).unflatten(0, (copies, -1))
        return drawn

    def sampling(self, **options: Any) -> Sampling:
        """The generator's defaults with some fields changed.

        A default `end` that leaves too few steps for what is asked gives way to the whole chain.

        Raises:
            InputError: If an option is unknown or out of range.
        """
        if not options:
            return self.parts.sampling
        known = asdict(self.parts.sampling)
        for name in options:
            if name not in known:
                raise unknown("option of generate", name, [*known, "seed"])
        check_types(options)
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
            MismatchError: If weights of this kind cannot change their way.
        """
        if way < 2:
            raise InputError(f"a task needs at least 2 classes, got {way}", where="support.labels")
        if way not in self._spaces:
            self._spaces[way] = self.parts.space.with_way(way)
        return self._spaces[way]

    def signal(self, t: int, end: int) -> Tensor:
        """[1] share of the target in x_t of the chain to `end`; worked out once for each step."""
        if (t, end) not in self._signals:
            one = self.schedule.alpha_bar_local(torch.tensor([t]), torch.tensor([end]))
            self._signals[t, end] = one.sqrt()
        return self._signals[t, end]

    @torch.inference_mode(False)
    def unit(self, space: WeightSpace) -> tuple[Tensor, Tensor]:
        """[n] size and origin of normalised residuals; looked up once for each way."""
        if space.size not in self._units:
            n = self.parts.normaliser
            self._units[space.size] = n.scale(space), n.mean[space.param_of]
        return self._units[space.size]

    def check(self, weights: Weights) -> None:
        """Refuse weights that are not of this generator's weight space, at any way.

        Raises:
            MismatchError: If a parameter is missing or has another shape.
        """
        name = next((p.name for p in self.parts.space.class_params), None)
        way = len(weights[name]) if name in weights else self.parts.space.way
        space = self.parts.space if way is None else self.space(way or 2)
        space.flatten(weights)

    @property
    def host(self) -> Host:
        """What the generated weights live in."""
        return self.parts.host

    @property
    def revision(self) -> str:
        """Hash of every tensor of the generator."""
        return revision_of(self.parts)

    # ---- files ----------------------------------------------------------------------------------

    def save_weights(
        self, path: Path | str, weights: Weights, *, classes: Sequence[str] = (), seed: int = 0
    ) -> None:
        """Write weights of `generate` as safetensors; the metadata say what made them.

        Classes are named in the order of the labels.

        Raises:
            InputError: If they are not finite, or the file exists and holds something else.
            MismatchError: If they are not of this generator's weight space.
        """
        self.check(weights)
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise InputError("the weights are not finite", where="weights", fix="generate anew")
        path = claim_file(path, "weights")
        metadata = {
            "ltdi": "weights",
            "architecture": self.architecture(weights),
            "task": json.dumps(list(classes), ensure_ascii=False),
            "seed": str(seed),
            "generator": self.revision,
            self.host.group: self.host.fingerprint,
        }
        write_tensors(path, weights, metadata)

    def save(self, path: Path | str) -> Path:
        """Write the generator into a directory of its own; see `own_directory` for refusals."""
        path = own_directory(path, "generator")
        self._save_pretrained(path)
        return path

    def _save_pretrained(self, save_directory: Path) -> None:
        config = save_parts(save_directory, self.parts, self.kind)
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
    ) -> Self:
        """Load a generator from its directory, or from the hub where there is no directory.

        Args:
            pretrained_model_name_or_path: A directory that `save` wrote, or a name on the hub.
            force_download: Fetch again what is in the hub's cache.
            token: For private repositories.
            cache_dir: Of the hub.
            local_files_only: Take from the hub's cache alone.
            revision: Branch, tag or commit on the hub.
            **model_kwargs: None; sampling options go to `generate`.

        Returns:
            A generator of the kind that the files hold.

        Raises:
            InputError: If there is no generator, or for an unknown option.
            DamagedFileError: If a file is truncated or altered.
            MismatchError: If its files do not belong together, or have another format or kind.
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
        config = read_config(path)
        if config["kind"] not in KINDS:
            raise unknown("kind of generator", config["kind"], KINDS, where=str(path / CONFIG))
        found = KINDS[config["kind"]]
        if not issubclass(found, cls):
            raise MismatchError(
                f"the generator there generates weights of kind {found.kind!r}, which a "
                f"{cls.__name__} does not",
                where=str(path),
                fix="load it with ltdi.Generator.from_pretrained, and see its `kind`",
            )
        return found(load_parts(path, config, found.build))


KINDS: dict[str, type[Generator]] = {}


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


def repeat(x: Tensor, copies: int) -> Tensor:
    """The batch x [B, ...] several times over, [copies * B, ...]."""
    return x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))
