"""Trajectory diffusion: schedule, objectives and samplers, all stateless."""

from ltdi.diffusion.objective import OBJECTIVES, Draw, draw
from ltdi.diffusion.sampler import SAMPLERS, sample
from ltdi.diffusion.schedule import Schedule, cosine_schedule, linear_schedule, make_schedule

__all__ = [
    "OBJECTIVES",
    "SAMPLERS",
    "Draw",
    "Schedule",
    "cosine_schedule",
    "draw",
    "linear_schedule",
    "make_schedule",
    "sample",
]
