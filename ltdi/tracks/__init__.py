"""Tracks: each wires data, weight space, condition, metric and peers into one benchmark."""

from collections.abc import Callable

from ltdi.tracks import fewshot

TRACKS: dict[str, Callable[..., fewshot.Outcome]] = {"fewshot": fewshot.bench}

__all__ = ["TRACKS", "fewshot"]
