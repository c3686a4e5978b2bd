"""The corridor for nets of a task that was seen: checkpoints become a generator of new ones.

The checkpoints of one training lie in one basin, those of different trainings in different ones,
and nothing good lies between. So a net is generated as a residual to the mean of one training.
Under a loss in function space that mean moves as well, to where nets predict what they should.
"""

from ltdi.samples.checkpoints import (
    Checkpoints,
    Trainings,
    collect_checkpoints,
    train_nets,
    transformed,
)
from ltdi.samples.choice import chosen_sampler, predictions, standing
from ltdi.samples.training import (
    BATCH,
    JUDGED,
    CheckpointObjective,
    Lessons,
    Moving,
    descended,
    train_sampler,
)

__all__ = [
    "BATCH",
    "JUDGED",
    "CheckpointObjective",
    "Checkpoints",
    "Lessons",
    "Moving",
    "Trainings",
    "chosen_sampler",
    "collect_checkpoints",
    "descended",
    "predictions",
    "standing",
    "train_nets",
    "train_sampler",
    "transformed",
]
