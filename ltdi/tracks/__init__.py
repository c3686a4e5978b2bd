"""Tracks: each wires data, weight space, condition, metric and peers into one benchmark."""

from ltdi.tracks import (
    checkpoint_methods,
    checkpoints,
    domain,
    fewshot,
    fewshot_methods,
    llm,
    net_methods,
    nets,
    transfer,
)
from ltdi.tracks.track import Outcome, Track, episode_label

TRACKS: dict[str, Track] = {
    "fewshot": Track(fewshot.bench, fewshot_methods.ALL_METHODS, episode_label),
    "checkpoints": Track(
        checkpoints.bench, checkpoint_methods.ALL_METHODS, lambda options: str(options["dataset"])
    ),
    "nets": Track(nets.bench, net_methods.ALL_METHODS, episode_label),
    "llm": Track(llm.bench, llm.ALL_METHODS, llm.label),
    "domain": Track(domain.bench, domain.ALL_METHODS, domain.label),
    "transfer": Track(transfer.bench, transfer.ALL_METHODS, transfer.label),
}

__all__ = [
    "TRACKS",
    "Outcome",
    "Track",
    "checkpoints",
    "domain",
    "fewshot",
    "llm",
    "nets",
    "transfer",
]
