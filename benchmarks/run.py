"""What the pipeline costs: preparation, meta-training, generation, both at once, and a cost model.

    python benchmarks/run.py --json speed.json
    python benchmarks/run.py train generate --repeats 9

Every figure is a median of at least five runs; the parts of a ratio are measured in turns, in the
same process, because machines are noisy. Seconds are those of one thread's processor, but for
`overlap` and `workers`, which need two cores to themselves.

`--markdown` prints the table as docs/scale.md holds it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A script sees its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console

from benchmarks.speed.common import Figure
from benchmarks.speed.cost import cost
from benchmarks.speed.features import features
from benchmarks.speed.generate import generate
from benchmarks.speed.overlap import overlap, workers
from benchmarks.speed.prepare import prepare
from benchmarks.speed.table import markdown, terminal
from benchmarks.speed.train import train

PARTS = {f.__name__: f for f in (prepare, train, features, generate, overlap, workers, cost)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="runs per figure")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/scale.md")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for name in given.parts or PARTS:
        start = time.perf_counter()
        figures += PARTS[name](given.repeats)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if given.markdown:
        print(markdown(figures))
    else:
        Console().print(terminal(figures))
    if given.json:
        settings = {"threads": 1, "repeats": given.repeats, "torch": torch.__version__}
        rows = [asdict(f) for f in figures]
        given.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
