"""Whole small networks as what is generated: architecture, host, and shared initialisation."""

from ltdi.nets.host import NetHost, NetPredictor
from ltdi.nets.initial import Initial, InitialTraining, learn_initial
from ltdi.nets.net import NetConfig, SmallNet, net_space

__all__ = [
    "Initial",
    "InitialTraining",
    "NetConfig",
    "NetHost",
    "NetPredictor",
    "SmallNet",
    "learn_initial",
    "net_space",
]
