"""What a user loads: one interface, one file for each kind of weights."""

from ltdi.generator.adapters import AdapterGenerator, TextSupport
from ltdi.generator.base import CARD, KINDS, Generator, View, Weights
from ltdi.generator.domains import DomainHeadGenerator
from ltdi.generator.heads import HeadGenerator
from ltdi.generator.images import ImageGenerator
from ltdi.generator.nets import NetGenerator
from ltdi.generator.samples import SampleGenerator
from ltdi.generator.unseen import NamedHost, UnseenGenerator

# A new kind of weights is one line here.
for _kind in (
    HeadGenerator,
    DomainHeadGenerator,
    NetGenerator,
    SampleGenerator,
    AdapterGenerator,
    UnseenGenerator,
):
    KINDS[_kind.kind] = _kind

__all__ = [
    "CARD",
    "KINDS",
    "AdapterGenerator",
    "DomainHeadGenerator",
    "Generator",
    "HeadGenerator",
    "ImageGenerator",
    "NamedHost",
    "NetGenerator",
    "SampleGenerator",
    "TextSupport",
    "UnseenGenerator",
    "View",
    "Weights",
]
