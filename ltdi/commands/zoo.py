"""`ltdi zoo`: what is in a zoo, whether it is whole, and several into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from ltdi.commands.common import ERR, OUT
from ltdi.errors import DamagedFileError, InputError, unknown
from ltdi.files import claim_file, write_json
from ltdi.progress import bars
from ltdi.zoo import Zoo, merge


def zoo(
    action: str,
    zoos: list[str],
    out: str | None = None,
    json: str | None = None,
) -> None:
    """Look into a zoo, verify its files, or merge several.

    Args:
        action: "info", "verify" or "merge".
        zoos: Directories, or URLs that fsspec reads.
        out: Directory of the merged zoo.
        json: File for what "info" shows.

    Raises:
        InputError: If the action is unknown, or an option does not belong to it.
        DamagedFileError: If "verify" finds a file that is missing, truncated or altered.
        MismatchError: If zoos to merge do not fit together.
    """
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS, where="ltdi zoo")
    for name, given, fits in (("--out", out, "merge"), ("--json", json, "info")):
        if given is not None and action != fits:
            raise InputError(f"{name} is for `ltdi zoo {fits}`", where=name, fix="leave it out")
    ACTIONS[action](zoos, out, json)


def describe(store: Zoo) -> dict[str, Any]:
    """Sizes of a zoo and of its groups; no shard is read."""
    groups, tokens = [], 0
    for group in store.groups() if any(e["tasks"] for e in store.shards) else []:
        means = {
            name: sum(e["mean"][name] * e["tasks"] for e in group.entries) / len(group)
            for name in group.entries[0]["mean"]
        }
        tokens += len(group) * len(group.space.tokens.layer)
        groups.append({**group.setting, "tasks": len(group), **means})
    return {
        "tasks": sum(e["tasks"] for e in store.shards),
        "tokens": tokens,
        "dropped": sum(e["dropped"] for e in store.shards),
        "shards": len(store.shards),
        "bytes": sum(e["bytes"] for e in store.shards),
        "shared": sorted(store.header["shared"]),
        "about": store.about,
        "groups": groups,
    }


def _info(zoos: list[str], out: str | None, json: str | None) -> None:
    target = claim_file(json, "result") if json else None
    found = {path: describe(Zoo.open(path)) for path in zoos}
    for path, about in found.items():
        gigabytes = about["bytes"] / 1e9
        OUT.print(
            f"{path}: {about['tasks']} tasks of {about['tokens']} tokens in {about['shards']} "
            f"shards, {gigabytes:.3g} GB; {about['dropped']} dropped; "
            f"shared: {', '.join(about['shared']) or 'nothing'}",
            soft_wrap=True,
        )
        if about["groups"]:
            columns = list(about["groups"][0])
            table = Table(*columns)
            for group in about["groups"]:
                table.add_row(*(_cell(group.get(c)) for c in columns))
            OUT.print(table)
    if target:
        write_json(target, {"track": "zoo", "rows": found})


def _verify(zoos: list[str], out: str | None, json: str | None) -> None:
    problems = []
    for path in zoos:
        store = Zoo.open(path)
        with bars(ERR) as progress:
            problems += list(store.verify(lambda i, n: progress("verifying", i, n, "")))
        OUT.print(f"{path}: {len(store.shards)} shards, {len(problems)} damaged", soft_wrap=True)
        # Validation features lie beside the shards of heads.
        known = {e["name"] for e in store.shards} | {*store.header["shared"], "valid"}
        spare = [f.stem for f in store.path.glob("*.safetensors") if f.stem not in known]
        if spare:
            ERR.print(
                f"note: the index does not list {len(spare)} shards that lie there, such as "
                f"{min(spare)}: collecting again makes them anew"
            )
    for problem in problems:
        OUT.print(str(problem), soft_wrap=True)
    if problems:
        raise DamagedFileError(
            f"{len(problems)} files are missing, truncated or altered",
            where=", ".join(zoos),
            fix="see the list above",
        )


def _merge(zoos: list[str], out: str | None, json: str | None) -> None:
    if out is None:
        raise InputError(
            "a merge needs a directory for the result", where="--out", fix="add --out DIR"
        )
    with bars(ERR) as progress:
        merged = merge(zoos, out, progress=lambda i, n: progress("merging", i, n, ""))
    tasks = sum(e["tasks"] for e in merged.shards)
    OUT.print(f"zoo  {out}  {tasks} tasks in {len(merged.shards)} shards", soft_wrap=True)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


ACTIONS: dict[str, Callable[[list[str], str | None, str | None], None]] = {
    "info": _info,
    "verify": _verify,
    "merge": _merge,
}
