"""Sets with the same classes in several domains: PACS, Office-Caltech-10, any of that layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ltdi.data import folder
from ltdi.data.images import ImageSet
from ltdi.data.layout import check_split, choose, locate
from ltdi.errors import InputError

# Li et al., 2017; and Gong et al., 2012, from Office-31 and Caltech-256.
DOMAINS: dict[str, tuple[str, ...]] = {
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "office-caltech10": ("amazon", "caltech10", "dslr", "webcam"),
}
_ARCHIVES = {"pacs": ("PACS.zip",), "office-caltech10": ("office_caltech10.zip",)}
_LAYOUT = "lay the images out as <domain>/<class>/<image>, the same classes in every domain"


def load_domains(
    path: str | os.PathLike[str], *, size: int, channels: int, domains: Sequence[str] = ()
) -> dict[str, ImageSet]:
    """Read images laid out as `<domain>/<class>/<image>`.

    Args:
        path: A directory or a zip; folders around the domains do not matter.
        size: Height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        domains: The domains wanted, in this order; none means all that there are.

    Returns:
        Domain name -> its images; all have the same classes, named without the domain, in the
        same order (compare `glyphs.load_domains`).

    Raises:
        InputError: For another layout, a domain that is not there, or a class that a domain lacks.
        DamagedFileError: For an unreadable image or zip.
    """
    images = folder.load(path, size=size, channels=channels)
    found: dict[str, dict[str, int]] = {}
    for index, name in enumerate(images.classes):
        domain, _, label = name.partition("/")
        found.setdefault(domain, {})[label] = index
    if any("" in labels for labels in found.values()):
        raise InputError("these images have no domains", where=os.fspath(path), fix=_LAYOUT)
    wanted = {d: _domain(d, found, os.fspath(path)) for d in domains or found}
    labels = sorted({label for domain in wanted.values() for label in domain})
    out = {}
    for domain, indices in wanted.items():
        rows = choose(indices, labels, f"{os.fspath(path)}, domain {domain!r}")
        part = images.select(list(rows.values()))
        out[domain] = replace(part, name=f"{images.name}-{domain}", classes=tuple(labels))
    return out


def load(
    path: str | os.PathLike[str] | None,
    source: str,
    *,
    size: int,
    channels: int,
    split: str | None = None,
    seed: int = 0,
) -> dict[str, ImageSet]:
    """One of `DOMAINS`, one part a domain; `split` is "domains", `seed` is not looked at.

    Raises:
        InputError: As `load_domains`, for an unknown split, and when no path is given.
    """
    check_split(split, ("domains",), source)
    at = locate(path, source, _ARCHIVES[source])
    return load_domains(at, size=size, channels=channels, domains=DOMAINS[source])


def _domain(domain: str, found: dict[str, dict[str, int]], where: str) -> dict[str, int]:
    if domain not in found:
        raise InputError(
            f"there is no domain {domain!r}, only {', '.join(map(repr, found))}",
            where=where,
            fix=_LAYOUT,
        )
    return found[domain]
