"""kill -9 at random moments: every run resumes, no finished shard is lost, the end is the same.

    python benchmarks/recovery.py --kills 50 --json recovery.json
    python benchmarks/recovery.py train adapters --kills 10

A run is started in a process of its own and killed at a random moment of its life, again and again,
until one gets through; then the next run is begun, until there were so many kills. After every kill
the finished shards are compared with those before it, and at the end zoo and generator with those
of a run that nobody killed, bit for bit. For `ray`, it is a random worker of the cluster that is
killed, while the run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from ltdi.adapters.collect import begin_runs
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.runs import Runs
from ltdi.adapters.source import prepare_source
from ltdi.adapters.training import AdapterRecipe
from ltdi.anchor import PrototypeAnchor
from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.backbone import build
from ltdi.collect import Preparation
from ltdi.commands.adapters import train_adapters
from ltdi.data.text import rules
from ltdi.engine import Engine, Runtime
from ltdi.lora import LoraSpec, load_base
from ltdi.meta import MetaConfig
from ltdi.pipeline import HeadCollection, begin_zoo, train_generator
from ltdi.recipe import Network, Recipe, Tasks
from ltdi.tasks import FeatureBank
from ltdi.zoo import Zoo
from ltdi.zoo.index import NAME as INDEX

WIDTH = 16
RECIPE = Recipe(
    tasks=Tasks(ways=(3,), shots=(1, 2), query=5, per_setting=48, shard=4, folds=0),
    prepare=Preparation(lr=0.1, steps=24, segments=2),
    network=Network(width=16, depth=1, heads=2),
    meta=MetaConfig(iterations=60, meta_batch=2, tasks=4, warmup=2, checkpoint_every=5),
    anchor="prototype",
)


ADAPTED = ("tone", "amount")
ADAPTERS = AdapterRecipe(
    runs=Runs(trunks=1, branches=4, shared=0.5),
    prepare=Preparation("adamw", lr=2e-2, steps=8, segments=2, weight_decay=0.01, batch=8),
    network=Network("transformer", 16, 1, 2),
    meta=MetaConfig(
        iterations=40, meta_batch=2, inner_steps=2, tasks=3, warmup=1, checkpoint_every=5
    ),
    rank=4,
)


def world() -> tuple[FeatureBank, Backbone]:
    """Features of 12 classes, and an untrained backbone of their width."""
    rng = torch.Generator().manual_seed(0)
    centre = 2 * torch.randn(12, 1, WIDTH, generator=rng)
    x = centre + torch.randn(12, 10, WIDTH, generator=rng)
    names = tuple(f"c{i}" for i in range(12))
    config = {"kind": "conv", "channels": 1, "width": WIDTH // 2, "size": 28}
    backbone = Backbone(build(config), InputTransform(), config)
    return FeatureBank(x.flatten(0, 1), torch.arange(13) * 10, names), backbone


def collect(path: Path, engine: Engine = Engine()) -> None:
    """The zoo."""
    bank, backbone = world()
    begin_zoo(path / "zoo", bank, PrototypeAnchor(0.5), RECIPE, backbone).fill(engine)


def train(path: Path) -> None:
    """The generator, of a zoo that is there."""
    _, backbone = world()
    out = path / "generator"
    out.mkdir(exist_ok=True)
    data = HeadCollection(Zoo.open(path / "zoo"))
    generator = train_generator(data, backbone, RECIPE, runtime=Runtime(out))
    generator.save(path / "saved")


def overlap(path: Path, engine: Engine = Engine(workers=1)) -> None:
    """Both at once."""
    bank, backbone = world()
    collection = begin_zoo(path / "zoo", bank, PrototypeAnchor(0.5), RECIPE, backbone)
    out = path / "generator"
    out.mkdir(exist_ok=True)
    with collection.start(engine) as running:
        seen = collection.arrivals(RECIPE.meta.iterations, running)
        runtime = Runtime(out, arrivals=seen)
        generator = train_generator(collection, backbone, RECIPE, runtime=runtime)
    generator.save(path / "saved")


def adapters(path: Path, engine: Engine = Engine(workers=1)) -> None:
    """Both at once, for adapters of a tiny language model."""
    base = load_base("tiny")
    host = LanguageHost.of(base, LoraSpec(rank=2), "tiny")
    tasks = [prepare_source(base, n, rules.load(n, rows=160), topics=0) for n in ADAPTED]
    collection = begin_runs(path / "zoo", host, tasks, {}, ADAPTERS)
    out = path / "generator"
    out.mkdir(exist_ok=True)
    with collection.start(engine) as running:
        seen = collection.arrivals(ADAPTERS.meta.iterations, running)
        made = train_adapters(collection.zoo, ADAPTERS, Runtime(out, arrivals=seen))
    made.save(path / "saved")


@dataclass
class Report:
    """What came of a kind of run.

    Attributes:
        kind: Of run.
        kills: How many processes were killed.
        runs: How many runs got through.
        resumed: Runs that began where a killed one had been.
        lost: Finished shards that were gone or altered after a kill.
        equal: Runs whose zoo and generator are those of the uninterrupted run, bit for bit.
        seconds: Of all of it.
    """

    kind: str
    kills: int = 0
    runs: int = 0
    resumed: int = 0
    lost: int = 0
    equal: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether everything was as it should be."""
        return self.lost == 0 and self.equal == self.runs > 0


def outcome(path: Path) -> dict[str, bytes]:
    """All that a run leaves: shards and index of the zoo, and the generator."""
    files = [*(path / "zoo").glob("*.safetensors"), *(path / "saved").glob("*")]
    found = {str(p.relative_to(path)): p.read_bytes() for p in files if p.is_file()}
    # Workers finish shards in any order, and in another time.
    shards = [{**e, "mean": {**e["mean"], "seconds": 0}} for e in Zoo.open(path / "zoo").shards]
    return {**found, "index": json.dumps(shards).encode()}


def finished(path: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every finished shard."""
    if not (path / "zoo" / "zoo.json").is_file():
        return {}
    return {
        e["name"]: (e["digest"], (path / "zoo" / f"{e['name']}.safetensors").stat().st_mtime_ns)
        for e in Zoo.open(path / "zoo").shards
    }


def begin(run: Callable[[Path], None], path: Path) -> int:
    """Run in a process of its own, which has the libraries loaded already."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 1
        try:
            run(path)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child: int, seconds: float) -> int | None:
    """Exit status of a process, or None if it is still there after some seconds."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


# Carries one run through, in a directory, by the life of an uninterrupted one; it counts kills.
Attempt = Callable[[Path, float, "Report"], None]


def repeated(kind: str, run: Callable[[Path], None], kills: int, attempt: Attempt) -> Report:
    """Attempts until there were so many kills, each compared with a run that nobody killed."""
    begun, report = time.monotonic(), Report(kind)
    with tempfile.TemporaryDirectory() as folder:

        def fresh(name: str) -> Path:
            path = Path(folder) / name
            path.mkdir()
            if kind == "train":
                collect(path)
            return path

        whole = fresh("whole")
        start = time.monotonic()
        assert ended(begin(run, whole), 600) == 0, "the uninterrupted run failed"
        life, wanted = time.monotonic() - start, outcome(whole)
        while report.kills < kills:
            path = fresh(f"run-{report.runs}")
            attempt(path, life, report)
            report.runs += 1
            report.equal += outcome(path) == wanted
    report.seconds = round(time.monotonic() - begun, 1)
    return report


def counted(report: Report, path: Path, before: dict[str, tuple[str, int]]) -> None:
    """Count a kill, and the shards that it took."""
    report.kills += 1
    after = finished(path)
    report.lost += sum(after.get(n) != mark for n, mark in before.items())


def checked(kind: str, status: int | None) -> None:
    """Leave if a run did not get through."""
    if status != 0:
        raise SystemExit(f"{kind}: a run failed with status {status}")


def killed_runs(kind: str, run: Callable[[Path], None], kills: int, seed: int) -> Report:
    """Kill the process of a run."""
    chance = random.Random(seed)

    def attempt(path: Path, life: float, report: Report) -> None:
        while True:
            before = finished(path)
            child = begin(run, path)
            status = ended(child, life * chance.random())
            if status is not None or report.kills >= kills:
                return checked(kind, ended(child, 600) if status is None else status)
            os.kill(child, signal.SIGKILL)
            ended(child, 60)
            counted(report, path, before)
            report.resumed += 1

    return repeated(kind, run, kills, attempt)


def killed_workers(kills: int, seed: int) -> Report:
    """Kill workers of a local Ray cluster while a run with two of them goes on."""
    import psutil

    chance = random.Random(seed)

    def attempt(path: Path, life: float, report: Report) -> None:
        child = begin(lambda p: overlap(p, Engine("ray", 2)), path)
        before: dict[str, tuple[str, int]] = {}
        status = None
        while status is None and report.kills < kills:
            status = ended(child, 0.3 + chance.random() / 3)
            if status is not None or not (path / "zoo" / INDEX).is_file():
                continue
            children = psutil.Process(child).children(recursive=True)
            workers = [p for p in children if p.name().startswith("ray::make")]
            if workers:
                before |= finished(path)
                chance.choice(workers).kill()
                counted(report, path, before)
        checked("ray", ended(child, 600) if status is None else status)
        report.resumed = report.kills

    return repeated("ray", partial(overlap, engine=Engine()), kills, attempt)


KINDS = {"collect": collect, "train": train, "overlap": overlap, "adapters": adapters}


def main() -> int:
    """Kill, compare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "kinds", nargs="*", help="collect, train, overlap, adapters or ray; all by default"
    )
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reports = []
    for kind in given.kinds or [*KINDS, "ray"]:
        if kind == "ray":
            reports.append(killed_workers(given.kills, given.seed))
        else:
            reports.append(killed_runs(kind, KINDS[kind], given.kills, given.seed))
    table = Table("run", "kills", "runs", "resumed", "shards lost", "equal", "seconds")
    for r in reports:
        table.add_row(*map(str, (r.kind, r.kills, r.runs, r.resumed, r.lost, r.equal, r.seconds)))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({"rows": [asdict(r) for r in reports]}, indent=2) + "\n")
    return 0 if all(r.good for r in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
