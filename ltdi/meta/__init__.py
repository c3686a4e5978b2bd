"""Meta-training: REPTILE over any loss, its exact checkpoints, and the processes that share it."""

from ltdi.meta.reptile import (
    Batch,
    Loss,
    MetaConfig,
    MetaTrainer,
    Params,
    Progress,
    reptile_displacement,
)

__all__ = [
    "Batch",
    "Loss",
    "MetaConfig",
    "MetaTrainer",
    "Params",
    "Progress",
    "reptile_displacement",
]
