"""`ltdi demo`."""

from __future__ import annotations

import shlex

from ltdi import demonstration
from ltdi.commands.common import OUT, run_in
from ltdi.report.table import show


def demo(out: str = "runs/demo", seed: int = 0, resolved: str = "") -> None:
    """Train a generator on the embedded glyphs and use it on scripts it has never seen.

    Args:
        out: Directory for the generator, generated weights, table and figure.
        seed: Fixes data, training and episodes.
        resolved: The command's options, saved beside the run.
    """
    with run_in(out, "demo", "demo.yaml", resolved) as (path, progress, log):
        result = demonstration.run(path, seed=seed, progress=progress, log=log)
    show(result, OUT)
    made = shlex.quote(str(path / "generator"))
    OUT.print(
        f"\ngenerator   {path / 'generator'}\nweights     {path / 'weights'}\n"
        f"table       {path / 'result.json'}\nfigure      {path / 'chains.png'}\n\n"
        f"next: ltdi evaluate --generator {made} --data-dir FOLDER_OR_ZIP --way 5 --shot 1",
        soft_wrap=True,
    )
