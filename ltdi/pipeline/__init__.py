"""The corridor: a bank of features becomes a zoo, a zoo becomes a generator."""

from ltdi.pipeline.collecting import (
    HeadCollection,
    begin_zoo,
    check_start,
    load_anchor,
    make_anchor,
    make_folds,
    prepare_zoo,
    solve,
    start_zoo,
)
from ltdi.pipeline.meta_training import train_parts, tuned
from ltdi.pipeline.objective import HeadObjective, TrainingSet, fit_normaliser
from ltdi.pipeline.shared import Shared, load_shared, save_shared
from ltdi.pipeline.training import train_generator

__all__ = [
    "HeadCollection",
    "HeadObjective",
    "Shared",
    "TrainingSet",
    "begin_zoo",
    "check_start",
    "fit_normaliser",
    "load_anchor",
    "load_shared",
    "make_anchor",
    "make_folds",
    "prepare_zoo",
    "save_shared",
    "solve",
    "start_zoo",
    "train_generator",
    "train_parts",
    "tuned",
]
