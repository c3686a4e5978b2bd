"""A zoo: solved tasks on disk (design section 4).

A directory with `zoo.json` (what all tasks have in common), `shards.jsonl` (one line per finished
shard, appended) and shards in safetensors, whose columns are read by row through a memory map.
Killing the collector at any moment loses at most the shards in flight.
"""

from ltdi.zoo.common import BANK, FRAMES
from ltdi.zoo.header import HEADER, SCHEMA
from ltdi.zoo.merge import merge
from ltdi.zoo.solved import Group
from ltdi.zoo.store import Zoo

__all__ = ["BANK", "FRAMES", "HEADER", "SCHEMA", "Group", "Zoo", "merge"]
