"""The corridor: a bank of features becomes a zoo, a zoo becomes a generator."""

from ltdi.pipeline.choice import tuned
from ltdi.pipeline.collecting import (
    HeadCollection,
    begin_zoo,
    check_start,
    make_anchor,
    make_folds,
    solve,
    start_zoo,
)
from ltdi.pipeline.objective import HeadObjective, fit_normaliser
from ltdi.pipeline.shared import load_shared, save_shared
from ltdi.pipeline.training import train_generator

__all__ = [
    "HeadCollection",
    "HeadObjective",
    "begin_zoo",
    "check_start",
    "fit_normaliser",
    "load_shared",
    "make_anchor",
    "make_folds",
    "save_shared",
    "solve",
    "start_zoo",
    "train_generator",
    "tuned",
]
