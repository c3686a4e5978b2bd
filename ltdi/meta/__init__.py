"""Meta-training: REPTILE over any loss, its exact checkpoints, and the processes that share it."""

from ltdi.meta.reptile import (
    Batch,
    MetaConfig,
    MetaTrainer,
    Params,
    reptile_displacement,
)

__all__ = [
    "Batch",
    "MetaConfig",
    "MetaTrainer",
    "Params",
    "reptile_displacement",
]
