"""The trained parts of a generator, and their two files: config.json and model.safetensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ltdi.anchor import Anchor, make_empty_anchor
from ltdi.backbone import Backbone
from ltdi.condition import SetEncoder
from ltdi.denoiser import ConditionalDenoiser, EquivariantDenoiser, TokenTransformer, UNet1d
from ltdi.diffusion import make_schedule
from ltdi.diffusion.sampler import SAMPLERS, time_grid
from ltdi.errors import DamagedFileError, InputError, LtdiError, MismatchError, unknown
from ltdi.files import digest, read_json, read_tensors, write_json, write_tensors
from ltdi.recipe import Diffusion, Network, Sampling
from ltdi.weights import Normaliser, WeightSpace

FORMAT = 2
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


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
        about: Data, settings, metrics; JSON-able, shown in the model card.
    """

    space: WeightSpace
    network: ConditionalDenoiser | EquivariantDenoiser
    anchor: Anchor
    normaliser: Normaliser
    diffusion: Diffusion
    shape: Network
    sampling: Sampling
    about: dict[str, Any] = field(default_factory=dict)


def chain_end(share: float, diffusion: Diffusion) -> int:
    """The step at which a chain ends that is asked for a share of the trajectory."""
    return max(1, round(share * diffusion.steps))


def check_sampling(chosen: Sampling, diffusion: Diffusion) -> None:
    """Refuse a sampling that the chain cannot run.

    Raises:
        InputError: With the field and its range.
    """
    # Written so that NaN is refused too.
    if not (0 < chosen.end <= 1 and (chosen.end == 1 or chosen.segments == 1)):
        raise InputError(
            f"end must lie in (0, 1], and be 1 where there are segments, got {chosen.end}",
            where="end",
        )
    time_grid(chain_end(chosen.end, diffusion), chosen.steps)
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


def build_network(
    space: WeightSpace, features: int, shape: Network, diffusion: Diffusion
) -> ConditionalDenoiser | EquivariantDenoiser:
    """An untrained encoder and denoiser.

    Args:
        space: Weight space; its way matters only for the U-Net.
        features: D of the condition.
        shape: Kind and sizes.
        diffusion: For T.

    Raises:
        InputError: If the kind is unknown, or the sizes do not fit together.
    """
    if min(shape.heads, shape.depth) < 1 or shape.width < 2 or shape.width % (2 * shape.heads):
        raise InputError(
            f"width {shape.width}, depth {shape.depth} and {shape.heads} heads do not fit together",
            where="network",
            fix="choose depth and heads >= 1, and width as a multiple of twice the heads",
        )
    if shape.kind == "equivariant":
        if diffusion.prediction != "x0":
            raise unknown("prediction of the equivariant network", diffusion.prediction, ("x0",))
        return EquivariantDenoiser(
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
        kinds = ("equivariant", "transformer", "unet")
        raise unknown("network", shape.kind, kinds, where="network.kind")
    return ConditionalDenoiser(encoder, denoiser)


def revision_of(parts: Parts, backbone: Backbone) -> str:
    """Hash of every tensor of a generator."""
    return digest(tensors_of(parts, backbone))[:16]


def save_parts(path: Path, parts: Parts, backbone: Backbone) -> dict[str, Any]:
    """Write a generator's two files into a directory.

    Returns:
        The content of `config.json`.
    """
    mark = write_tensors(path / WEIGHTS, tensors_of(parts, backbone), {"format": "pt"})
    config = {
        "format": FORMAT,
        "library": "ltdi",
        "kind": "head",
        "revision": revision_of(parts, backbone),
        "digest": mark,
        "space": parts.space.to_dict(),
        "diffusion": asdict(parts.diffusion),
        "network": asdict(parts.shape),
        "sampling": asdict(parts.sampling),
        "anchor": parts.anchor.name,
        "backbone": {"config": backbone.config, "transform": asdict(backbone.transform)},
        "about": parts.about,
    }
    write_json(path / CONFIG, config)
    return config


def load_parts(path: Path) -> tuple[Parts, Backbone]:
    """Read a generator's directory.

    Raises:
        InputError: If it is not a generator.
        DamagedFileError: If a file is truncated or altered.
        MismatchError: If its files do not belong together or have another format.
    """
    if not (path / CONFIG).is_file():
        raise InputError(
            f"{path} is not a generator: it has no {CONFIG}",
            where="--generator",
            fix="make one with `ltdi train --out DIR` or `ltdi demo`",
        )
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("library") != "ltdi":
        raise MismatchError(f"{CONFIG} is not that of a generator", where=str(path / CONFIG))
    if config.get("format") != FORMAT:
        raise MismatchError(
            f"the generator has format {config.get('format')}, this version reads {FORMAT}",
            where=str(path / CONFIG),
            fix="train it anew, or install the version that made it",
        )
    tensors = read_tensors(path / WEIGHTS)
    try:
        parts, backbone = _assemble(config, tensors)
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
    return parts, backbone


def _assemble(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Parts, Backbone]:
    space = WeightSpace.from_dict(config["space"])
    diffusion, shape = Diffusion(**config["diffusion"]), Network(**config["network"])
    group = _split(tensors)
    features = space.layers[0].row - 1
    network = build_network(space, features, shape, diffusion)
    network.load_state_dict(group["network"])
    anchor = make_empty_anchor(config["anchor"], features)
    anchor.load_state_dict(group.get("anchor", {}))
    backbone = Backbone.from_config(config["backbone"], group["backbone"])
    parts = Parts(
        space,
        network,
        anchor,
        Normaliser(**group["normaliser"]),
        diffusion,
        shape,
        Sampling(**config["sampling"]),
        config["about"],
    )
    return parts, backbone


def _split(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    return groups


def tensors_of(parts: Parts, backbone: Backbone) -> dict[str, Tensor]:
    """Every tensor of a generator, named `network.*`, `anchor.*`, `normaliser.*`, `backbone.*`."""
    normaliser = parts.normaliser
    groups = {
        "network": parts.network.state_dict(),
        "anchor": parts.anchor.state_dict(),
        "normaliser": {"mean": normaliser.mean, "std": normaliser.std},
        "backbone": backbone.net.state_dict(),
    }
    return {f"{g}.{name}": t for g, ts in groups.items() for name, t in ts.items()}
