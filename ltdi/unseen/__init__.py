"""Heads for classes without a labelled image: tasks, their solution, and meta-training."""

from ltdi.unseen.choice import choose_prior, choose_steps, refit
from ltdi.unseen.tasks import NamedBank, TaskBatch, UnseenTasks, sample_tasks
from ltdi.unseen.training import (
    UnseenRecipe,
    prepare_zoo,
    train_unseen,
)

__all__ = [
    "NamedBank",
    "TaskBatch",
    "UnseenRecipe",
    "UnseenTasks",
    "choose_prior",
    "choose_steps",
    "prepare_zoo",
    "refit",
    "sample_tasks",
    "train_unseen",
]
