"""`ltdi bench`."""

from __future__ import annotations

from pathlib import Path

from ltdi.commands.common import OUT, fetch, run_in
from ltdi.errors import unknown
from ltdi.files import (
    claim_file,
)
from ltdi.report.table import show
from ltdi.tracks import TRACKS, fewshot
from ltdi.tracks.generated import Generated


def bench(
    dataset: str,
    track: str = "fewshot",
    data_dir: str | None = None,
    methods: str = "all",
    preset: str = "standard",
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int | None = None,
    split: str | None = None,
    backbone: str | None = None,
    cache: str | None = None,
    download: bool = False,
    seed: int = 0,
    json: str | None = None,
    out: str | None = None,
    resolved: str = "",
) -> None:
    """Compare methods on the same test episodes, and write table, JSON and our generator.

    Args:
        dataset: "glyphs", "omniglot", "cifar-fs", "fc100", "tiny-imagenet", or a folder or zip of
            <class>/<image>.
        track: "fewshot".
        data_dir: Where a named data set lies.
        methods: Comma-separated names, or "all".
        preset: "smoke" (60 s), "standard" (30 minutes) or "paper", on two cores.
        way: Classes per test episode.
        shot: Support images per class.
        query: Query images per class.
        episodes: Test episodes; the preset's number by default.
        split: The data set's split, such as "official" for Omniglot.
        backbone: A pretrained backbone instead of the preset's: "efficientnet-lite0", "timm:NAME",
            "transformers:NAME", or a directory of a saved one.
        cache: Directory where features of images are kept between runs.
        download: Whether to fetch what Omniglot's --data-dir lacks from its official place first.
        seed: Fixes everything.
        json: File for the result.
        out: Directory for the generator, log and resolved options; by default
            runs/bench/TRACK-DATASET-WAYwSHOTs-PRESET-SEED.
        resolved: The command's options, saved beside the run.
    """
    if track not in TRACKS:
        raise unknown("track", track, TRACKS, where="bench")
    if download:
        fetch(dataset, data_dir)
    target = claim_file(json, "result") if json else None
    label = Path(dataset).name.removesuffix(".zip")
    default = f"runs/bench/{track}-{label}-{way}w{shot}s-{preset}-{seed}"
    names = tuple(fewshot.ALL_METHODS) if methods == "all" else tuple(methods.split(","))
    with run_in(out or default, "bench", "bench.yaml", resolved) as (path, progress, log):
        outcome = TRACKS[track](
            dataset,
            data_dir,
            methods=[n.strip() for n in names],
            preset=preset,
            way=way,
            shot=shot,
            query=query,
            episodes=episodes,
            split=split,
            backbone=backbone,
            cache=cache,
            seed=seed,
            progress=progress,
            log=log,
        )
        ours = outcome.methods.get("lt-di")
        if isinstance(ours, Generated):
            ours.publish(outcome.result, path / "generator")
        outcome.result.write_json(path / "result.json")
    show(outcome.result, OUT)
    if target:
        outcome.result.write_json(target)
    OUT.print(f"run  {path}", soft_wrap=True)
