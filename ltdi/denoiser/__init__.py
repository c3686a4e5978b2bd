"""Denoisers: networks f(x_t, t, condition) over weights."""

from ltdi.denoiser.transformer import TokenTransformer
from ltdi.denoiser.unet import UNet1d

__all__ = ["TokenTransformer", "UNet1d"]
