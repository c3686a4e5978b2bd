"""The corridor for whole networks: images become solved nets, solved nets a generator.

It is that of heads (`ltdi.pipeline`) with images in the place of features, and a shared,
meta-learned initialisation in the place of an anchor that depends on the support.
"""

from ltdi.whole.collecting import (
    NetCollection,
    begin_net_zoo,
    initial_of,
    solve_nets,
    start_net_zoo,
)
from ltdi.whole.objective import NetObjective
from ltdi.whole.training import fit_doubt, fit_normaliser, standardise, train_net_generator

__all__ = [
    "NetCollection",
    "NetObjective",
    "begin_net_zoo",
    "fit_doubt",
    "fit_normaliser",
    "initial_of",
    "solve_nets",
    "standardise",
    "start_net_zoo",
    "train_net_generator",
]
