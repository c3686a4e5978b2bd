"""`ltdi bench`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltdi.commands.common import OUT, run_in
from ltdi.files import claim_file
from ltdi.report.table import show
from ltdi.tracks import TRACKS


def bench(
    track: str,
    options: Mapping[str, Any],
    methods: str = "all",
    preset: str = "standard",
    json: str | None = None,
    out: str | None = None,
    resolved: str = "",
) -> None:
    """Compare methods on the same tasks, and write table, JSON and our generator.

    Args:
        track: A key of `TRACKS`.
        options: Those of the track's own benchmark.
        methods: Comma-separated names, or "all".
        preset: "smoke" (60 s), "standard" (30 minutes) or "paper", on two cores.
        json: File for the result.
        out: Directory for the generator, log and resolved options; by default
            runs/bench/TRACK-RUN-PRESET-SEED, where RUN names the data and the kind of task.
        resolved: The command's options, saved beside the run.
    """
    chosen = TRACKS[track]
    target = claim_file(json, "result") if json else None
    default = f"runs/bench/{track}-{chosen.label(options)}-{preset}-{options['seed']}"
    names = chosen.methods if methods == "all" else tuple(n.strip() for n in methods.split(","))
    with run_in(out or default, "bench", "bench.yaml", resolved) as (path, progress, log):
        outcome = chosen.bench(**options, methods=names, preset=preset, progress=progress, log=log)
        outcome.publish(path)
        outcome.result.write_json(path / "result.json")
    show(outcome.result, OUT)
    if target:
        outcome.result.write_json(target)
    OUT.print(f"run  {path}", soft_wrap=True)
