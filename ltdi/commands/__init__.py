"""What each command does, one file each; `cli` turns their signatures into options."""

from ltdi.commands.bench import bench
from ltdi.commands.collect import Collecting, collect
from ltdi.commands.demonstration import demo
from ltdi.commands.evaluate import evaluate
from ltdi.commands.generate import export, generate
from ltdi.commands.train import train
from ltdi.commands.zoo import zoo

__all__ = [
    "Collecting",
    "bench",
    "collect",
    "demo",
    "evaluate",
    "export",
    "generate",
    "train",
    "zoo",
]
