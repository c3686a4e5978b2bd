"""Denoisers: networks f(x_t, t, condition) over weights."""

from ltdi.denoiser.conditional import ConditionalDenoiser, Guide, Network
from ltdi.denoiser.domain import DomainDenoiser, DomainGuide, DomainWalk
from ltdi.denoiser.equivariant import EquivariantDenoiser, Pace
from ltdi.denoiser.naming import NamedCode, NamingDenoiser
from ltdi.denoiser.rows import Descent, Opening, RowDenoiser
from ltdi.denoiser.transformer import TokenTransformer
from ltdi.denoiser.unet import UNet1d

__all__ = [
    "ConditionalDenoiser",
    "Descent",
    "DomainDenoiser",
    "DomainGuide",
    "DomainWalk",
    "EquivariantDenoiser",
    "Guide",
    "NamedCode",
    "NamingDenoiser",
    "Network",
    "Opening",
    "Pace",
    "RowDenoiser",
    "TokenTransformer",
    "UNet1d",
]
