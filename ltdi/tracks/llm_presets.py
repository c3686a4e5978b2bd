"""Presets of the llm track, and the settings that its tasks are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ltdi.adapters.runs import Runs
from ltdi.adapters.source import Source
from ltdi.adapters.training import AdapterRecipe
from ltdi.collect import Preparation
from ltdi.data.text import rules
from ltdi.errors import InputError
from ltdi.meta import MetaConfig
from ltdi.recipe import Diffusion, Network

GLUE = ("sst-2", "cola", "mrpc", "sts-b", "rte", "qnli")
RULES = tuple(f"rule:{name}" for name in rules.TASKS)
SETTINGS = ("known", "unseen", "slices")
# How `Setting.kind` calls them; unseen tasks are measured on two kinds of rows.
UNSEEN, DEV, SLICE = "unseen", "unseen, dev rows", "unseen slice"
KINDS_OF = ("", UNSEEN, DEV, SLICE)


@dataclass(frozen=True)
class Preset:
    """What is spent.

    Attributes:
        unlabelled: Texts that make tasks without labels, which help unseen tasks.
        recipe: Of `lt-di`; controls change one idea of it.
        rows: Most training rows of a task.
        held: Training rows that unseen tasks are measured on: in no support, no fit and no choice
            that has to do with them.
        spent: Training rows that unseen tasks were measured on while the search was made, in
            nothing now.
        full_rates: Its learning rates; validation rows choose.
        control_seeds: Seeds of generated controls and peers on what is unseen.
        warm_steps: Steps of LoRA that starts at a generated adapter, and of its control that starts
            from scratch, of a task that is solved in as many steps as most; 0 leaves that out.
        warm_rates: Learning rates of these runs, in units of the task's own; validation rows
            choose, for each start.
        warm_seeds: Seeds of that.
        few_steps: Steps of LoRA on the support rows.
    """

    base: str
    tasks: tuple[str, ...]
    recipe: AdapterRecipe
    unlabelled: tuple[str, ...] = ()
    rows: int = 8000
    dev: int = 1050
    held: int = 420
    spent: int = 420
    valid: int = 400
    support: int = 128
    full: Preparation = field(
        default_factory=lambda: Preparation(
            "adamw", steps=600, segments=5, weight_decay=0.01, batch=16
        )
    )
    full_rates: tuple[float, ...] = (1e-4, 3e-4)
    full_seeds: int = 1
    control_seeds: int = 1
    warm_steps: int = 300
    warm_rates: tuple[float, ...] = (0.5, 1.0, 1.5)
    warm_seeds: int = 1
    few_steps: int = 30


_STANDARD = AdapterRecipe(runs=Runs(trunks=3, branches=3))
_LONG = replace(_STANDARD.prepare, lr=2e-3, steps=1500)
_TINY = Preparation("adamw", lr=2e-2, steps=30, segments=5, weight_decay=0.01, batch=16)
PRESETS = {
    "smoke": Preset(
        "tiny",
        RULES,
        replace(
            _STANDARD,
            runs=Runs(trunks=1, branches=3, shared=0.6),
            prepare=_TINY,
            diffusion=Diffusion(steps=5, loss="weight"),
            network=Network("transformer", 32, 1, 2),
            meta=MetaConfig(iterations=20, meta_batch=2, tasks=4, warmup=2, ema=0.8),
            rank=8,
        ),
        dev=100,
        held=40,
        spent=0,
        valid=50,
        support=32,
        full=_TINY,
        full_rates=(2e-3,),
        warm_steps=15,
        few_steps=10,
    ),
    "short": Preset(
        "minilm",
        ("sst-2", "cola", "mrpc"),
        replace(
            _STANDARD,
            runs=Runs(trunks=1, branches=2),
            prepare=replace(_STANDARD.prepare, steps=200),
        ),
        rows=4000,
        dev=500,
        valid=200,
        full=Preparation("adamw", steps=200, segments=5, weight_decay=0.01, batch=16),
        warm_steps=100,
    ),
    "standard": Preset(
        "minilm",
        GLUE,
        # By validation rows: 600 steps at 3e-3 fail on CoLA in two runs of three.
        replace(_STANDARD, own=dict.fromkeys(("cola", "intact-qnli"), _LONG)),
        unlabelled=("intact:qnli",),
        spent=840,
    ),
    "paper": Preset(
        "roberta-base",
        GLUE,
        replace(
            _STANDARD,
            runs=Runs(trunks=8, branches=64),
            prepare=replace(_STANDARD.prepare, steps=5000, lr=5e-4, batch=32),
            meta=replace(_STANDARD.meta, iterations=6000),
        ),
        unlabelled=("intact:qnli",),
        rows=100_000,
        dev=10_000,
        full=Preparation("adamw", steps=5000, weight_decay=0.01, batch=32, segments=5),
        full_rates=(2e-5, 5e-5),
        full_seeds=3,
        control_seeds=3,
        warm_steps=2500,
    ),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """One task in one setting: what is known of it, and what is measured.

    Attributes:
        name: Such as "sst-2" or "sst-2, unseen".
        weights_of: Name of the setting whose weights are measured: its own, or that of another
            which only measures them on other rows.
        task: Number of the task.
        source: The task.
        known: Tasks whose runs may be learnt from.
        pool: Rows of the source that a support is drawn from.
        inputs: [rows, channels, T] of the rows that are measured on.
        labels: [rows].
    """

    name: str
    task: int
    source: Source
    known: tuple[int, ...]
    pool: Tensor
    inputs: Tensor
    labels: Tensor
    weights_of: str = ""

    @property
    def kind(self) -> str:
        """What is unseen of the task; nothing of one that is known as a whole."""
        return self.name.partition(", ")[2]

    @property
    def piece(self) -> str:
        """For names of files: what is fitted and generated."""
        return (self.weights_of or self.name).replace(", ", "-").replace(" ", "-")


def settings_of(sources: Sequence[Source], wanted: Sequence[str], p: Preset) -> list[Setting]:
    """What is measured: known tasks, then unseen ones on both kinds of rows, then unseen slices.

    A task without labels is measured nowhere. It is known where another one is unseen, but not
    where its own texts are that other's.

    Raises:
        InputError: If a dev part has no labels.
    """
    out: dict[str, list[Setting]] = {kind: [] for kind in KINDS_OF}
    everything = tuple(t for t, s in enumerate(sources) if not s.origin)
    for task, s in enumerate(sources):
        if s.origin:
            continue
        labels = s.dev.labels
        if labels is None:
            raise InputError(
                f"the dev part of {s.name} has no labels",
                where="--tasks",
                fix="give labels to its dev file, or leave the task out",
            )
        if "known" in wanted:
            out[""].append(Setting(s.name, task, s, everything, s.fit, s.dev_inputs, labels))
        if "unseen" in wanted:
            others = tuple(t for t, o in enumerate(sources) if s.name not in (o.name, o.origin))
            name = f"{s.name}, {UNSEEN}"
            end = len(s.fit) - min(p.spent, len(s.fit) // 2)
            cut = end - min(p.held, len(s.fit) // 4)
            pool, half = s.fit[:cut], slice(None, max(100, p.dev // 5 * 2))
            held = s.inputs[s.fit[cut:end]], _labels(s, s.fit[cut:end])
            out[UNSEEN].append(Setting(name, task, s, others, pool, *held))
            dev = s.dev_inputs[half], labels[half]
            out[DEV].append(Setting(f"{s.name}, {DEV}", task, s, others, pool, *dev, name))
        if "slices" in wanted and len(s.unseen) >= p.support:
            pool, test = s.unseen[::2], s.unseen[1::2]
            own = s.inputs[test], _labels(s, test)
            out[SLICE].append(Setting(f"{s.name}, {SLICE}", task, s, everything, pool, *own))
    return [place for places in out.values() for place in places]


def _labels(source: Source, rows: Tensor) -> Tensor:
    labels = source.train.select(rows).labels
    assert labels is not None
    return labels
