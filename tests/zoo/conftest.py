"""A zoo of three shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltdi.zoo import Zoo
from tests.zoo.made import append, create, make_tasks


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """Three shards: two of 3-way 2-shot, one of 2-way 1-shot between them."""
    out = create(tmp_path / "zoo")
    for name, tasks in (
        ("a", make_tasks(0)),
        ("b", make_tasks(1, way=2, shot=1)),
        ("c", make_tasks(2)),
    ):
        append(out, name, tasks)
    return out
