"""The zoo itself: shards with what each task has of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.files import locked, own_directory, write_tensors
from ltdi.weights import WeightSpace
from ltdi.zoo.common import LOCK, Common
from ltdi.zoo.header import COPY, HEADER, SCHEMA, read_header
from ltdi.zoo.index import NAME as INDEX
from ltdi.zoo.index import Entry, Index
from ltdi.zoo.remote import Remote, is_url
from ltdi.zoo.shard import Shards
from ltdi.zoo.solved import Group

AGAIN = "collect again with the same settings: only this shard is made anew"


class Zoo(Common):
    """A zoo of solved tasks, of whatever kind of weights.

    Every task is a row of named columns. One column, `theta` [E, k, n], is needed: the local
    targets. The others are what a task's condition and start are made of, and scores. What all
    tasks have in common is kept once, by name: see `keep`, and `keep_bank` and `keep_frames` for
    two such things that heads have.

        zoo = Zoo.create("runs/nets/zoo", space, {"seed": 0})
        theta_0 = zoo.keep("start", {"theta_0": theta_0})["theta_0"]
        zoo.append("shard-000000", {"theta": theta, "support": support, "loss": loss}, finite)

        for group in Zoo.open("runs/nets/zoo").groups():
            batch = group.read(torch.randint(len(group), (32,)), ["theta", "support"])

    Opening a zoo reads its index only, reading tasks touches their rows only, and several
    processes may append to one zoo at a time.
    """

    def __init__(self, path: Path, header: dict[str, Any], remote: Remote | None = None) -> None:
        super().__init__(path, header, remote)
        self.index = Index(path / INDEX)
        self.maps = Shards()
        self.verified: set[str] = set()
        self._latest: dict[str, Entry] = {}
        self._last = ""  # the last of its names
        self.refresh()

    @classmethod
    def create(cls, path: Path | str, space: WeightSpace, about: Mapping[str, Any]) -> Zoo:
        """Start a zoo, or take up one that was started with the same settings.

        Args:
            path: Directory; new, empty, or a zoo of ours.
            space: Weight space of the tasks (at any way).
            about: Settings, seeds and versions; JSON-able.

        Raises:
            InputError: If the directory holds something else.
            MismatchError: If it is a zoo with other settings.
        """
        if is_url(path):
            raise InputError(
                f"a zoo behind a URL is for reading: {path}",
                where="--out",
                fix="collect into a directory, and copy it there when it is done",
            )
        path = own_directory(path, "zoo")
        with locked(path / LOCK):
            if not (path / HEADER).exists():
                header = {
                    "schema": SCHEMA,
                    "space": space.to_dict(),
                    "about": dict(about),
                    "shared": {},
                }
                zoo = cls(path, header)
                zoo._write_header()
                return zoo
        zoo = cls.open(path)
        zoo.check(space)
        for key, value in about.items():
            if zoo.about.get(key) != value:
                raise MismatchError(
                    f"the zoo was made with {key} = {zoo.about.get(key)!r}, now {value!r}",
                    where=str(path),
                    fix="collect with the same settings, or into a new directory",
                )
        return zoo

    @classmethod
    def open(cls, path: Path | str, *, cache: Path | str | None = None) -> Zoo:
        """Open a zoo for reading; no shard is touched.

        Args:
            path: Directory, or any URL that fsspec reads.
            cache: Where files of a URL are kept; `~/.cache/ltdi` by default.

        Raises:
            InputError: If it is not a zoo.
            DamagedFileError: If its index is truncated or altered.
            MismatchError: If it has another schema.
        """
        remote = Remote.of(path, cache)
        here = remote.cache if remote else Path(path)
        if remote:
            remote.fetch(HEADER)
            remote.fetch(INDEX)
        if not (here / HEADER).is_file():
            raise InputError(
                f"this is not a zoo: it has no {HEADER}",
                where=str(path),
                fix="make one with `ltdi collect --out DIR`",
            )
        return cls(here, read_header(here / HEADER), remote)

    @property
    def shards(self) -> list[Entry]:
        """What the index says of every finished shard, in the order of their names.

        `name`, `digest`, `setting`, `tasks`, `dropped`, `bytes`, and `mean`: of every column that
        is one floating-point number per task, and of what was told beside them.
        """
        return list(self._latest.values())

    def refresh(self) -> bool:
        """See what others have appended; whether there was anything."""
        if self.remote:
            self.remote.fetch(INDEX)
        if not self.index.refresh():
            return False
        latest = {e["name"]: e for e in self.index.entries}
        # In the order of names: a shard made anew takes its old place.
        self._latest = {name: latest[name] for name in sorted(latest)}
        self._last = max(self._latest, default="")
        return True

    def entry(self, name: str) -> Entry:
        """What the index says of one finished shard."""
        return self._latest[name]

    def append(
        self,
        name: str,
        columns: Mapping[str, Tensor],
        finite: Tensor | None = None,
        *,
        setting: Mapping[str, int | str] | None = None,
        beside: Mapping[str, float] | None = None,
    ) -> Entry:
        """Write one shard; tasks that are not finite are dropped and counted.

        A shard that is there already is left as it is.

        Args:
            name: Name of the shard, unique in the zoo; tasks are in the order of names.
            columns: Tensors [E, ...], `theta` [E, k, n] among them.
            finite: [E] which tasks are sound; all by default.
            setting: What these tasks have in common and others may not, such as `way` (the weight
                space is that of this way) and `shot`. Tasks of one setting form a group, whose
                columns must have the same shapes.
            beside: Means that the index keeps beside those of columns: what is another every time
                a shard is made, such as seconds, is not in its file.

        Returns:
            The shard's entry in the index.

        Raises:
            MismatchError: If theta does not fit the zoo's weight space.
        """
        setting = dict(setting or {})
        self._check_columns(name, columns, setting)
        size = len(columns["theta"])
        finite = torch.ones(size, dtype=torch.bool) if finite is None else finite
        kept = {n: c.detach()[finite] for n, c in columns.items()}
        return self.add(name, kept, setting, dropped=size - len(kept["theta"]), beside=beside)

    def add(
        self,
        name: str,
        columns: Mapping[str, Tensor],
        setting: Mapping[str, Any],
        *,
        dropped: int,
        beside: Mapping[str, float] | None = None,
    ) -> Entry:
        """Write a shard of sound tasks; see `append`."""
        tasks = len(columns["theta"])
        scores = {n: c for n, c in columns.items() if c.ndim == 1 and c.is_floating_point()}
        file = self.path / f"{name}.safetensors"
        with locked(self.path / LOCK):
            self.refresh()
            if self.has(name):
                return self._latest[name]
            mark = write_tensors(file, {n: _narrow(c) for n, c in columns.items()})
            entry: Entry = {
                "name": name,
                "digest": mark,
                "setting": dict(setting),
                "tasks": tasks,
                "dropped": dropped,
                "bytes": file.stat().st_size,
                "mean": {
                    **{n: round(float(c.mean()), 6) if tasks else None for n, c in scores.items()},
                    **(beside or {}),
                },
            }
            if self._latest.get(name) != entry:  # made anew, and the same
                self.index.append(entry)
            self._latest[name] = entry
            if name != max(name, self._last):
                self._latest = dict(sorted(self._latest.items()))
            self._last = max(name, self._last)
        self.verified.discard(name)
        self.maps.close(file)
        return entry

    def has(self, name: str) -> bool:
        """Whether a shard is finished and still there."""
        return name in self._latest and (self.path / f"{name}.safetensors").is_file()

    def groups(self, names: Sequence[str] | None = None) -> list[Group]:
        """The tasks by setting, in a fixed order.

        Args:
            names: Shards to look at; all that are finished by default.

        Raises:
            InputError: If there is no task in them.
        """
        chosen = self._latest.values() if names is None else [self._latest[n] for n in names]
        found: dict[str, list[Entry]] = {}
        for entry in chosen:
            if entry["tasks"]:
                found.setdefault(json.dumps(entry["setting"]), []).append(entry)
        if not found:
            raise InputError(
                "the zoo holds no solved task", where=str(self.path), fix="run `ltdi collect`"
            )
        groups = [Group(self, e[0]["setting"], e) for e in found.values()]
        return sorted(groups, key=lambda g: tuple(g.setting.values()))

    def columns(self, entry: Entry) -> dict[str, Tensor]:
        """The columns of one shard as views of its file, verified when first asked for.

        Raises:
            DamagedFileError: If it is missing, truncated or altered.
        """
        name = str(entry["name"])
        path = self.path / f"{name}.safetensors"
        expected = None if name in self.verified else str(entry["digest"])
        if self.remote and not path.is_file():
            self.remote.fetch(path.name)
        if not path.is_file():
            raise DamagedFileError(
                f"shard {path.name} is listed in {INDEX} but missing", where=str(path), fix=AGAIN
            )
        try:
            shard = self.maps.get(path, expected)
        except DamagedFileError as error:
            # What was fetched may be of an earlier state of the zoo.
            if self.remote is None or not self.remote.fetch(path.name, anew=True):
                raise DamagedFileError(
                    error.what, where=str(path), fix=f"delete this shard and {AGAIN}"
                ) from None
            shard = self.maps.get(path, expected)
        self.verified.add(name)
        return shard.columns

    def verify(
        self, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[DamagedFileError]:
        """Read every file of the zoo; yields what is missing, truncated or altered."""
        for name in self.header["shared"]:
            try:
                self.shared(name)
            except InputError as error:
                yield DamagedFileError(error.what, where=error.where, fix=COPY)
            except DamagedFileError as error:
                yield error
        self.verified.clear()
        for done, entry in enumerate(self.shards, 1):
            try:
                self.columns(entry)
            except DamagedFileError as error:
                yield error
            if progress:
                progress(done, len(self._latest))

    def compact(self) -> int:
        """Rewrite the index with one line per shard, in the order of names.

        Returns:
            How many lines were superfluous.
        """
        with locked(self.path / LOCK):
            self.refresh()
            spare = len(self.index.entries) - len(self._latest)
            self.index.rewrite(self._latest.values())
        return spare

    def _check_columns(
        self, name: str, columns: Mapping[str, Tensor], setting: Mapping[str, Any]
    ) -> None:
        space = self.space_of(setting)
        theta = columns.get("theta")
        if theta is None or theta.ndim != 3 or theta.shape[-1] != space.size:
            found = "none" if theta is None else str(list(theta.shape))
            raise MismatchError(
                f"a shard needs theta [E, k, {space.size}], got {found}",
                where=name,
                fix="pass columns['theta'] with the local targets of every task as flat vectors "
                "of the zoo's weight space",
            )
        for other, value in columns.items():
            if len(value) != len(theta):
                raise InputError(
                    f"column {other!r} has {len(value)} rows, theta has {len(theta)}", where=name
                )


def _narrow(column: Tensor) -> Tensor:
    """Integers are stored in 32 bits where they fit; they are numbers of items and tokens."""
    if column.dtype != torch.int64 or (column.numel() and int(column.abs().max()) >= 1 << 31):
        return column
    return column.int()
