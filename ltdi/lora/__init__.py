"""LoRA adapters of language models: what they are made of, fitted, saved and read.

PEFT builds, saves, loads and merges adapters; here is what a generator needs beside it: adapters
as flat weight vectors, one start for all tasks, trajectories, and checks that an adapter and its
base model belong together.
"""

from ltdi.lora.adapter import Adapter, LoraSpec, make_adapter
from ltdi.lora.base import Base
from ltdi.lora.features import embed, pair_features
from ltdi.lora.files import check_base, describe_base, save_adapter
from ltdi.lora.fit import Fitted, adapter_logits, fit_adapter
from ltdi.lora.inputs import encode
from ltdi.lora.pretrained import load_base
from ltdi.lora.tiny import tiny_base

__all__ = [
    "Adapter",
    "Base",
    "Fitted",
    "LoraSpec",
    "adapter_logits",
    "check_base",
    "describe_base",
    "embed",
    "encode",
    "fit_adapter",
    "load_base",
    "make_adapter",
    "pair_features",
    "save_adapter",
    "tiny_base",
]
