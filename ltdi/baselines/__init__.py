"""Peers: published few-shot methods, re-implemented and tuned with care, one file each."""

from ltdi.baselines.anil import Maml
from ltdi.baselines.finetune import FineTune
from ltdi.baselines.hypernetwork import Hypernetwork
from ltdi.baselines.linear_probe import LinearProbe
from ltdi.baselines.maml_full import MamlFull
from ltdi.baselines.meta_baseline import MetaBaseline
from ltdi.baselines.metadiff import MetaDiff
from ltdi.baselines.method import Banks, Budget, Method, fitted
from ltdi.baselines.ocd import Ocd
from ltdi.baselines.protonet import ProtoNet
from ltdi.baselines.reptile import Reptile
from ltdi.baselines.simpleshot import SimpleShot
from ltdi.baselines.tuning import (
    Batch,
    choose,
    validation_episodes,
)

PEERS: dict[str, type[Method]] = {
    peer.name: peer
    for peer in (
        ProtoNet,
        SimpleShot,
        MetaBaseline,
        LinearProbe,
        FineTune,
        Maml,
        MamlFull,
        Reptile,
        Hypernetwork,
        MetaDiff,
        Ocd,
    )
}

__all__ = [
    "PEERS",
    "Banks",
    "Batch",
    "Budget",
    "FineTune",
    "Hypernetwork",
    "LinearProbe",
    "Maml",
    "MamlFull",
    "MetaBaseline",
    "MetaDiff",
    "Method",
    "Ocd",
    "ProtoNet",
    "Reptile",
    "SimpleShot",
    "choose",
    "fitted",
    "validation_episodes",
]
