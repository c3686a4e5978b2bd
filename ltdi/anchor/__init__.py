"""Anchors: the cheap head that generation starts from.

The denoiser learns the residual to its anchor (design section 3, point 2), so an untrained
generator is as good as the anchor, and training adds what many solved tasks know beyond it.
"""

from ltdi.anchor.anchor import Anchor, Centres, PrototypeAnchor, SharedAnchor, masked_mean
from ltdi.anchor.fitting import fit_anchor, make_empty_anchor
from ltdi.anchor.gaussian import GaussianAnchor, shrinkage

__all__ = [
    "Anchor",
    "Centres",
    "GaussianAnchor",
    "PrototypeAnchor",
    "SharedAnchor",
    "fit_anchor",
    "make_empty_anchor",
    "masked_mean",
    "shrinkage",
]
