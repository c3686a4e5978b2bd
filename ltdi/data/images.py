"""Images grouped by class, and the decoding of one image file."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ltdi.errors import DamagedFileError, InputError

# Refused before any pixel is decoded; below the size at which PIL itself refuses.
MAX_PIXELS = 50_000_000
_DECODE_ERRORS = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,  # PIL's PNG reader raises it for broken chunks
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    struct.error,
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one source grouped by class, all of one size.

    Attributes:
        name: The source, for messages and reports.
        images: uint8 [n, channels, size, size], sorted by class.
        offsets: int64 [classes + 1]; class c owns `images[offsets[c]:offsets[c + 1]]`.
        classes: Unique class names, such as "images_background/Greek/character01".

    Raises:
        InputError: When the parts do not fit together, or a class has no image.
    """

    name: str
    images: Tensor
    offsets: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes, types, offsets and names."""
        images, offsets, length = self.images, self.offsets, len(self.classes) + 1
        if images.ndim != 4 or images.shape[2] != images.shape[3] or images.dtype != torch.uint8:
            raise self._error(
                "images must be uint8 [n, channels, size, size], "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if offsets.shape != (length,) or offsets.dtype != torch.int64:
            raise self._error(
                f"offsets must be int64 [{length}], one more than classes, "
                f"got {offsets.dtype} {tuple(offsets.shape)}"
            )
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(images):
            raise self._error(
                f"offsets span {int(offsets[0])}..{int(offsets[-1])}, "
                f"but there are {len(images)} images"
            )
        empty = [c for c, n in zip(self.classes, self.counts.tolist(), strict=True) if n < 1]
        if empty:
            raise self._error(
                f"{len(empty)} classes have no image: {', '.join(map(repr, empty[:5]))}"
            )
        if repeated := _repeated(self.classes):
            raise self._error(f"class names are not unique: {', '.join(map(repr, repeated[:5]))}")

    def _error(self, what: str) -> InputError:
        return InputError(what, where=f"ImageSet {self.name!r}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def counts(self) -> Tensor:
        """Images per class, int64 [classes]."""
        return self.offsets.diff()

    @property
    def labels(self) -> Tensor:
        """Class number of every image, int64 [n]."""
        return torch.arange(len(self.classes)).repeat_interleave(self.counts)

    def select(self, class_indices: Sequence[int] | Tensor) -> ImageSet:
        """The given classes, in the given order.

        Raises:
            InputError: For an index out of range or given twice.
        """
        indices = [int(i) for i in class_indices]
        bad = [i for i in indices if not 0 <= i < len(self.classes)]
        if bad or _repeated(indices):
            raise self._error(
                f"class indices must be distinct and in 0..{len(self.classes) - 1}; "
                f"at fault: {(bad or _repeated(indices))[:5]}"
            )
        groups = self.groups()
        classes = [self.classes[i] for i in indices]
        return ImageSet.by_class(self.name, [groups[i] for i in indices], classes)

    def with_rotations(self) -> ImageSet:
        """Each class followed by its copies turned by 90, 180 and 270 degrees, as new classes.

        Class c becomes the classes 4c .. 4c + 3; the copies are named "<name>@90" and so on.
        """
        groups = [torch.rot90(g, k, dims=(2, 3)) for g in self.groups() for k in range(4)]
        classes = [c + turn for c in self.classes for turn in ("", "@90", "@180", "@270")]
        return ImageSet.by_class(self.name, groups, classes)

    def groups(self) -> list[Tensor]:
        """The images of each class."""
        return list(self.images.split(self.counts.tolist()))

    @classmethod
    def by_class(cls, name: str, groups: Sequence[Tensor], classes: Sequence[str]) -> ImageSet:
        """The inverse of `groups`; see `ImageSet` for the errors."""
        offsets = torch.tensor([0, *map(len, groups)]).cumsum(0)
        images = torch.cat(list(groups)) if groups else torch.empty(0, 1, 1, 1).byte()
        return cls(name, images, offsets, tuple(classes))


def decode(data: bytes, *, size: int, channels: int, where: str) -> Tensor:
    """One image file as a tensor, squeezed to a square (the aspect ratio is not kept).

    Transparent parts become white; 16-bit greys are scaled to 8; EXIF orientation is applied; of
    an animation the first frame counts. The filter is PIL's BILINEAR, antialiased like torch's
    `interpolate(mode="bilinear", antialias=True)`.

    Args:
        data: The file's bytes.
        size: Height and width of the result, in pixels.
        channels: 1 (grey) or 3 (RGB).
        where: The file's name, for messages.

    Returns:
        uint8 [channels, size, size].

    Raises:
        DamagedFileError: When the bytes are not a readable image.
        InputError: For an image that is too large or holds floating-point pixels.
    """
    check_geometry(size, channels)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"{image.width * image.height:,} pixels", where)
            pixels = np.asarray(_flatten(image, channels, where).resize((size, size), _BILINEAR))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("more than PIL accepts", where) from None
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is of no known format" if data else "the file is empty"
        raise DamagedFileError(
            f"not a readable image ({reason})",
            where=where,
            fix="restore the file from its source, or remove it",
        ) from error
    return torch.from_numpy(pixels.reshape(size, size, channels).transpose(2, 0, 1).copy())


def check_geometry(size: int, channels: int) -> None:
    """Refuse sizes of images that cannot be.

    Raises:
        InputError: Unless `size` is positive and `channels` is 1 or 3.
    """
    if size < 1:
        raise InputError(f"image size {size} is not positive", where="size")
    if channels not in (1, 3):
        raise InputError(
            f"cannot make images of {channels} channels", where="channels", fix="use 1 or 3"
        )


_BILINEAR = Image.Resampling.BILINEAR


def _flatten(image: Image.Image, channels: int, where: str) -> Image.Image:
    """`image` upright, opaque, 8-bit, in mode L or RGB."""
    target = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise InputError(
            "floating-point images have no defined black and white",
            where=where,
            fix="convert them to 8 or 16 bits",
        )
    image.load()  # a PNG's EXIF may stand behind its pixels
    upright = ImageOps.exif_transpose(image) if _may_be_turned(image) else image
    if upright.mode.startswith("I"):  # 16 bits; PIL's own conversion clips instead of scaling
        grey = np.clip(np.asarray(upright).astype(np.int64), 0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert(target)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert(target)
    return upright.convert(target)


def _may_be_turned(image: Image.Image) -> bool:
    """Whether there is an orientation to look for; looking takes as long as decoding."""
    sources = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
    return image.format == "TIFF" or not sources.isdisjoint(image.info)


def _too_large(how_large: str, where: str) -> InputError:
    return InputError(
        f"image too large ({how_large}; the limit is {MAX_PIXELS:,} pixels)",
        where=where,
        fix="shrink it before loading",
    )


def _repeated(items: Sequence[Hashable]) -> list[Hashable]:
    return [item for item, n in Counter(items).items() if n > 1]
