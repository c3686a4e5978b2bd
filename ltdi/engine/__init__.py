"""Shards made by worker processes or a Ray cluster, and training that does not wait for the last.

A job `(zoo, number)` makes one shard of a zoo and can be run again: `Collection.job`.
Scheduling is the standard library's or Ray's.
"""

from ltdi.engine.arrivals import Arrivals, planned
from ltdi.engine.collection import Collection, Piece, plan_of, recipe_of, settings_of
from ltdi.engine.training import Objective, Runtime, meta_train
from ltdi.engine.workers import ENGINES, Engine, Job, Running

__all__ = [
    "ENGINES",
    "Arrivals",
    "Collection",
    "Engine",
    "Job",
    "Objective",
    "Piece",
    "Running",
    "Runtime",
    "meta_train",
    "plan_of",
    "planned",
    "recipe_of",
    "settings_of",
]
