"""Sets with the same classes in several domains: PACS, Office-Caltech-10, any of that layout."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ltdi.data import folder
from ltdi.data.archive import FileTree
from ltdi.data.images import ImageSet
from ltdi.data.layout import Groups, ImageSource, choose
from ltdi.errors import InputError

# Li et al., 2017; and Gong et al., 2012, from Office-31 and Caltech-256.
DOMAINS: dict[str, tuple[str, ...]] = {
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "office-caltech10": ("amazon", "caltech10", "dslr", "webcam"),
}
_LAYOUT = "lay the images out as <domain>/<class>/<image>, the same classes in every domain"


def load_domains(path: str | os.PathLike[str], *, size: int, channels: int) -> dict[str, ImageSet]:
    """Read images laid out as `<domain>/<class>/<image>`; folders around that do not matter.

    Returns:
        Domain name -> its images; all have the same classes, named without the domain, in the
        same order (compare `glyphs.load_domains`).

    Raises:
        InputError: For another layout, or a class that a domain lacks.
        DamagedFileError: For an unreadable image or archive.
    """
    return _source(folder.name_of(path), ())(path, size=size, channels=channels)


def _parts(tree: FileTree, wanted: Sequence[str]) -> dict[str, Groups]:
    found: dict[str, Groups] = {}
    for name, files in folder.classes_of(tree, _LAYOUT).items():
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


def _source(name: str, wanted: Sequence[str], *archives: str) -> ImageSource:
    def parts(tree: FileTree, split: str, seed: int) -> dict[str, Groups]:
        return _parts(tree, wanted)

    return ImageSource(name, name, ("domains",), parts, archives)


_ARCHIVES = {"pacs": "PACS.zip", "office-caltech10": "office_caltech10.zip"}
# One part a domain.
SETS = {name: _source(name, wanted, _ARCHIVES[name]) for name, wanted in DOMAINS.items()}
