"""Peers for classes without a labelled image, one file each or by family."""

from ltdi.baselines.unseen.adapted import Adapted
from ltdi.baselines.unseen.convex import Conse
from ltdi.baselines.unseen.icis import Icis
from ltdi.baselines.unseen.learned import D2nwg, Hypernetwork
from ltdi.baselines.unseen.method import UnseenMethod
from ltdi.baselines.unseen.ridge import Devise

UNSEEN_PEERS: dict[str, type[UnseenMethod]] = {
    peer.name: peer for peer in (Icis, Conse, Devise, D2nwg, Hypernetwork)
}

__all__ = [
    "UNSEEN_PEERS",
    "Adapted",
    "Conse",
    "D2nwg",
    "Devise",
    "Hypernetwork",
    "Icis",
    "UnseenMethod",
]
