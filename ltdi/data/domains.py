"""Sets with the same classes in several domains: PACS, Office-Caltech-10, any of that layout."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ltdi.data import folder
from ltdi.data.archive import FileTree, open_tree
from ltdi.data.images import ImageSet
from ltdi.data.layout import Groups, ImageSource, choose, decode_groups
from ltdi.errors import InputError

# Li et al., 2017; and Gong et al., 2012, from Office-31 and Caltech-256.
DOMAINS: dict[str, tuple[str, ...]] = {
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "office-caltech10": ("amazon", "caltech10", "dslr", "webcam"),
}
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
    with open_tree(path) as tree:
        return {
            domain: decode_groups(
                f"{folder.name_of(path)}-{domain}", groups, size=size, channels=channels
            )
            for domain, groups in _parts(tree, domains).items()
        }


def _parts(tree: FileTree, wanted: Sequence[str]) -> dict[str, Groups]:
    found: dict[str, Groups] = {}
    for name, files in folder.classes_of(tree).items():
        domain, _, label = name.partition("/")
        found.setdefault(domain, {})[label] = files
    if any("" in labels for labels in found.values()):
        raise InputError("these images have no domains", where=tree.where, fix=_LAYOUT)
    if absent := [d for d in wanted if d not in found]:
        raise InputError(
            f"there is no domain {absent[0]!r}, only {', '.join(map(repr, sorted(found)))}",
            where=tree.where,
            fix=_LAYOUT,
        )
    chosen = {d: found[d] for d in wanted or sorted(found)}
    labels = sorted({label for groups in chosen.values() for label in groups})
    return {d: choose(g, labels, f"{tree.where}, domain {d!r}") for d, g in chosen.items()}


def _source(name: str, archive: str) -> ImageSource:
    def parts(tree: FileTree, split: str, seed: int) -> dict[str, Groups]:
        return _parts(tree, DOMAINS[name])

    return ImageSource(name, name, ("domains",), parts, (archive,))


# One part a domain.
SETS = {
    "pacs": _source("pacs", "PACS.zip"),
    "office-caltech10": _source("office-caltech10", "office_caltech10.zip"),
}
