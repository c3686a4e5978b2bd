"""The trained parts of a generator, and their two files: config.json and model.safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ltdi.anchor import Anchor
from ltdi.denoiser import (
    ConditionalDenoiser,
    DomainDenoiser,
    EquivariantDenoiser,
    TokenTransformer,
    UNet1d,
)
from ltdi.denoiser import Network as Denoiser
from ltdi.denoiser.condition import SetEncoder
from ltdi.diffusion import make_schedule
from ltdi.diffusion.sampler import SAMPLERS, time_grid
from ltdi.errors import DamagedFileError, InputError, LtdiError, MismatchError, unknown
from ltdi.files import digest, plain, read_json, read_tensors, write_json, write_tensors
from ltdi.recipe import Diffusion, Network, Sampling, Varied
from ltdi.weights import Normaliser, WeightSpace

FORMAT = 2
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


Groups = dict[str, dict[str, Tensor]]


class Host(Protocol):
    """What generated weights live in: a backbone under a head, a net, a language model."""

    @property
    def group(self) -> str:
        """Its entry in config.json, and the prefix of its tensors."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that gives generated weights their meaning."""

    def describe(self) -> dict[str, Any]:
        """How to build it again from its tensors; JSON-able."""

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of it inside the generator."""


@dataclass(frozen=True)
class Parts:
    """What a generator is made of.

    Attributes:
        space: Weight space at any way.
        network: Encoder and denoiser.
        anchor: Where generation starts.
        normaliser: Of residuals to the anchor.
        diffusion: The chain.
        shape: Sizes of the network.
        sampling: Defaults of `Generator.generate`.
        host: What the weights live in.
        about: Data, settings, metrics; JSON-able, shown in the model card.
    """

    space: WeightSpace
    network: nn.Module
    anchor: Anchor
    normaliser: Normaliser
    diffusion: Diffusion
    shape: Network
    sampling: Sampling
    host: Host
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        recipe: Varied,
        space: WeightSpace,
        network: nn.Module,
        anchor: Anchor,
        normaliser: Normaliser,
        host: Host,
        about: Mapping[str, Any] | None = None,
    ) -> Parts:
        """With chain, sizes and sampling of a recipe, which the card shows."""
        shown = plain({"recipe": asdict(recipe), **(about or {})})
        chain, shape, sampling = recipe.diffusion, recipe.network, recipe.sampling
        return cls(space, network, anchor, normaliser, chain, shape, sampling, host, shown)


EQUIVARIANT = {"equivariant": EquivariantDenoiser, "domain": DomainDenoiser}


@dataclass(frozen=True)
class Saved:
    """What the files of a generator say, for a kind of weights to make its parts of.

    Attributes:
        config: config.json.
        groups: The tensors by the first part of their name.
        space: Weight space at any way.
        shape: Sizes of the network.
        diffusion: The chain.
    """

    config: dict[str, Any]
    groups: Groups
    space: WeightSpace
    shape: Network
    diffusion: Diffusion


# From what was saved to an untrained network, an empty anchor and a host.
Build = Callable[[Saved], tuple[nn.Module, Anchor, Host]]


def chain_end(share: float, diffusion: Diffusion) -> int:
    """The step at which a chain ends that is asked for a share of the trajectory."""
    return max(1, round(share * diffusion.steps))


def check_sampling(chosen: Sampling, diffusion: Diffusion) -> None:
    """Refuse a sampling that the chain cannot run.

    Raises:
        InputError: With the field and its range.
    """
    check_types(asdict(chosen))
    # Written so that NaN is refused too.
    if not (0 < chosen.end <= 1 and (chosen.end == 1 or chosen.segments == 1)):
        raise InputError(
            f"end must lie in (0, 1], and be 1 where there are segments, got {chosen.end}",
            where="end",
        )
    time_grid(chain_end(chosen.end, diffusion), chosen.steps)
    if chosen.segments != 1:
        make_schedule(diffusion.schedule, diffusion.steps).segment_length(chosen.segments)
    if chosen.sampler not in SAMPLERS:
        raise unknown("sampler", chosen.sampler, SAMPLERS, where="sampler")
    if not (chosen.samples >= 1 and 0 <= chosen.temperature < float("inf")):
        raise InputError(
            f"samples must be >= 1 and temperature >= 0, got {chosen.samples} and "
            f"{chosen.temperature}",
            where="samples and temperature",
        )
    if not abs(chosen.strength) < float("inf"):
        raise InputError(f"strength must be finite, got {chosen.strength}", where="strength")
    if not 0 < chosen.sharpness < float("inf"):
        raise InputError(
            f"sharpness must be positive and finite, got {chosen.sharpness}", where="sharpness"
        )


def check_types(options: Mapping[str, Any]) -> None:
    """Refuse options of another type than the defaults of `Sampling` have.

    Raises:
        InputError: With the first.
    """
    for name, value in options.items():
        default = getattr(Sampling(), name)
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(
                f"{name} must be {kinds[-1].__name__}, got {value!r}", where=name, fix="convert it"
            )


def check_shape(shape: Network) -> None:
    """Refuse sizes of a network that do not fit together.

    Raises:
        InputError: With all three.
    """
    if min(shape.heads, shape.depth) < 1 or shape.width < 2 or shape.width % (2 * shape.heads):
        raise InputError(
            f"width {shape.width}, depth {shape.depth} and {shape.heads} heads do not fit together",
            where="network",
            fix="choose depth and heads >= 1, and width as a multiple of twice the heads",
        )


def build_network(
    space: WeightSpace, features: int, shape: Network, diffusion: Diffusion
) -> Denoiser:
    """An untrained encoder and denoiser.

    Args:
        space: Weight space; its way matters only for the U-Net.
        features: D of the condition.
        shape: Kind and sizes.
        diffusion: For T.

    Raises:
        InputError: If the kind is unknown, or the sizes do not fit together.
    """
    check_shape(shape)
    if shape.kind in EQUIVARIANT:
        if diffusion.prediction != "x0":
            raise unknown(f"prediction of the {shape.kind} network", diffusion.prediction, ("x0",))
        return EQUIVARIANT[shape.kind](
            steps=diffusion.steps, width=shape.width, depth=shape.depth, heads=shape.heads
        )
    encoder = SetEncoder(features, shape.width)
    common = {"condition_width": shape.width, "steps": diffusion.steps}
    if shape.kind == "transformer":
        denoiser: nn.Module = TokenTransformer(
            space, **common, width=shape.width, depth=shape.depth, heads=shape.heads
        )
    elif shape.kind == "unet":
        channels = max(4, shape.width // 32 * 4)
        denoiser = UNet1d(space, **common, channels=channels, levels=shape.depth)
    else:
        kinds = (*EQUIVARIANT, "transformer", "unet")
        raise unknown("network", shape.kind, kinds, where="network.kind")
    return ConditionalDenoiser(encoder, denoiser)


def tensors_of(parts: Parts) -> dict[str, Tensor]:
    """Every tensor of a generator: `network.*`, `anchor.*`, `normaliser.*` and the host's."""
    normaliser = parts.normaliser
    groups = {
        "network": parts.network.state_dict(),
        "anchor": parts.anchor.state_dict(),
        "normaliser": {"mean": normaliser.mean, "std": normaliser.std},
        parts.host.group: parts.host.tensors(),
    }
    return {f"{g}.{name}": t for g, ts in groups.items() for name, t in ts.items()}


def revision_of(parts: Parts) -> str:
    """Hash of every tensor of a generator."""
    return digest(tensors_of(parts))[:16]


def save_parts(path: Path, parts: Parts, kind: str) -> dict[str, Any]:
    """Write a generator's two files into a directory.

    Returns:
        The content of `config.json`.
    """
    mark = write_tensors(path / WEIGHTS, tensors_of(parts), {"format": "pt"})
    config = {
        "format": FORMAT,
        "library": "ltdi",
        "kind": kind,
        "revision": revision_of(parts),
        "digest": mark,
        "space": parts.space.to_dict(),
        "diffusion": asdict(parts.diffusion),
        "network": asdict(parts.shape),
        "sampling": asdict(parts.sampling),
        "anchor": parts.anchor.name,
        "own_mean": parts.anchor.own_mean,
        parts.host.group: parts.host.describe(),
        "about": parts.about,
    }
    write_json(path / CONFIG, config)
    return config


def read_config(path: Path) -> dict[str, Any]:
    """The content of a generator's `config.json`.

    Raises:
        InputError: If the directory is not a generator.
        DamagedFileError: If the file is truncated or altered.
        MismatchError: If it is something else's, or has another format.
    """
    if not (path / CONFIG).is_file():
        raise InputError(
            f"this is not a generator: it has no {CONFIG}",
            where=str(path),
            fix="make one with `ltdi train --out DIR` or `ltdi demo`",
        )
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("library") != "ltdi":
        raise MismatchError(
            f"{CONFIG} is not that of a generator",
            where=str(path / CONFIG),
            fix="give a directory that `ltdi train` or Generator.save wrote",
        )
    if not isinstance(config.get("kind"), str) or "revision" not in config:
        raise DamagedFileError(
            f"{CONFIG} does not say what kind of generator it is of, or which revision",
            where=str(path / CONFIG),
            fix="restore the file from a copy, or train the generator anew",
        )
    if config.get("format") != FORMAT:
        raise MismatchError(
            f"the generator has format {config.get('format')}, this version reads {FORMAT}",
            where=str(path / CONFIG),
            fix="train it anew, or install the version that made it",
        )
    return config


def load_parts(path: Path, config: dict[str, Any], build: Build) -> Parts:
    """Read a generator's directory.

    Args:
        path: The directory.
        config: What `read_config` read there.
        build: What the kind of weights makes of it.

    Raises:
        DamagedFileError: If a file is truncated or altered.
        MismatchError: If its files do not belong together.
    """
    tensors = read_tensors(path / WEIGHTS)
    try:
        parts = _assemble(config, tensors, build)
        check_sampling(parts.sampling, parts.diffusion)
    except LtdiError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise MismatchError(
            f"{CONFIG} and {WEIGHTS} do not belong together: {reason}",
            where=str(path),
            fix="restore both files from the same run",
        ) from None
    if digest(tensors)[:16] != config["revision"]:
        raise DamagedFileError(
            f"{WEIGHTS} is not the file that {CONFIG} was written with",
            where=str(path),
            fix="restore both files from the same run",
        )
    return parts


def _assemble(config: dict[str, Any], tensors: dict[str, Tensor], build: Build) -> Parts:
    space = WeightSpace.from_dict(config["space"])
    diffusion, shape = Diffusion(**config["diffusion"]), Network(**config["network"])
    groups = _split(tensors)
    network, anchor, host = build(Saved(config, groups, space, shape, diffusion))
    network.load_state_dict(groups["network"])
    anchor.load_state_dict(groups.get("anchor", {}))
    return Parts(
        space,
        network,
        anchor,
        Normaliser(**groups["normaliser"]),
        diffusion,
        shape,
        Sampling(**config["sampling"]),
        host,
        config["about"],
    )


def _split(tensors: dict[str, Tensor]) -> Groups:
    groups: Groups = {}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    return groups
