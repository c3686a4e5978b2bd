"""`ltdi.lora.files`: what is saved loads with plain PEFT, and only where it belongs."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ltdi.errors import InputError, LtdiError, MismatchError
from ltdi.lora import (
    Base,
    LoraSpec,
    check_base,
    describe_base,
    encode,
    load_base,
    make_adapter,
    save_adapter,
    tiny_base,
)
from ltdi.lora.adapter import POOLINGS
from ltdi.lora.files import ABOUT, CARD, CONFIG, WEIGHTS

from .conftest import PAIRS, other_base, save_base, some_weights

SPECS = [
    LoraSpec(),
    LoraSpec(pooling="model"),
    LoraSpec(8, 4.0, ("query", "key", "value", "attention.output.dense")),
]


def saved(base: Base, path: Path, spec: LoraSpec = SPECS[0], outputs: int = 3) -> Tensor:
    """Save an adapter; its logits [3, outputs] on `PAIRS`."""
    adapter = make_adapter(base, spec, outputs)
    theta = some_weights(adapter)
    save_adapter(path, adapter, theta, about={"label_names": ["a", "b", "c"], "score": 0.5})
    return adapter.predict(theta, encode(base, PAIRS))


@pytest.fixture(scope="module")
def roberta_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the family that users will choose first: no segments, and a head of two layers."""
    base = other_base(
        "Roberta",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
    )
    return save_base(base, tmp_path_factory.mktemp("models") / "tiny-roberta")


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=["mean", "model", "all"])
@pytest.mark.parametrize("model", ["base_dir", "roberta_dir"])
def test_plain_peft_loads_it_merges_it_and_gives_the_same_logits(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, spec: LoraSpec, outputs: int
) -> None:
    import peft
    import transformers

    place = request.getfixturevalue(model)
    wanted = saved(load_base(str(place)), tmp_path / "a", spec, outputs)
    kind = getattr(transformers, POOLINGS[spec.pooling][0])
    plain = kind.from_pretrained(place, num_labels=outputs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    first, second = [a for a, _ in PAIRS], [b for _, b in PAIRS]
    batch = tokenizer(first, second, padding=True, return_tensors="pt")

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            out: Tensor = model.eval()(**batch).logits
        if spec.pooling == "model":
            return out
        mask = batch["attention_mask"].unsqueeze(-1)
        mean: Tensor = (out * mask).sum(1) / mask.sum(1)
        return mean

    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "a")
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-5)
    merged = loaded.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)
    assert float(wanted.std()) > 0.01


@pytest.mark.parametrize("spec", SPECS[:2], ids=["mean", "model"])
def test_the_cards_code_runs(base_dir: Path, tmp_path: Path, spec: LoraSpec) -> None:
    base = load_base(str(base_dir))
    adapter = make_adapter(base, spec, 2)
    theta = some_weights(adapter)
    save_adapter(tmp_path / "a", adapter, theta)
    card = (tmp_path / "a" / CARD).read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(code.replace('"ADAPTER"', repr(str(tmp_path / "a"))).replace(
        f'base = "{base.name}"', f"base = {str(base_dir)!r}"), names)  # fmt: skip
    expected = adapter.predict(theta, encode(base, [("a text", None)]))
    torch.testing.assert_close(names["logits"], expected, rtol=1e-4, atol=1e-5)


def test_files_say_no_path_and_can_be_written_again(base_dir: Path, tmp_path: Path) -> None:
    base = load_base(str(base_dir))
    for _ in range(2):
        saved(base, tmp_path / "a")
        assert {p.name for p in (tmp_path / "a").iterdir()} == {
            ".ltdi",
            ABOUT,
            CARD,
            CONFIG,
            WEIGHTS,
        }
    for file in (ABOUT, CARD, CONFIG):
        assert str(tmp_path.anchor + tmp_path.parts[1]) not in (tmp_path / "a" / file).read_text()
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "tiny-saved"
    assert config["inference_mode"] is True
    assert (config["task_type"], config["r"]) == ("TOKEN_CLS", 4)


def test_the_card_says_what_outputs_mean(base: Base, tmp_path: Path) -> None:
    saved(base, tmp_path / "a")
    assert "logits of: a, b, c." in (tmp_path / "a" / CARD).read_text()
    value = make_adapter(base, LoraSpec(), 1)
    save_adapter(tmp_path / "b", value, value.theta_0, about={"label_range": [1.0, 5.0]})
    assert "1 + 4 x output" in (tmp_path / "b" / CARD).read_text()


def test_the_card_cannot_be_written_by_names(base: Base, tmp_path: Path) -> None:
    name = 'x"\nlicense: mine\n---\n<b>'
    adapter = make_adapter(replace(base, name=name), LoraSpec(), 2)
    about = {"label_names": ["a\n# b", "<i>"]}
    save_adapter(tmp_path / "a", adapter, adapter.theta_0, about=about)
    card = (tmp_path / "a" / CARD).read_text()
    front, text = card.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["base_model"] == name and "license" not in yaml.safe_load(front)
    assert "logits of: a # b, \\<i>." in text and "\n<b>" not in text
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert ast.literal_eval(re.findall("^base = (.*)$", code, re.M)[0]) == name


def test_other_files_are_left_alone(base: Base, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and was not made by ltdi"):
        saved(base, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_weights_of_another_size(base: Base, tmp_path: Path) -> None:
    adapter = make_adapter(base, LoraSpec(), 2)
    with pytest.raises(MismatchError, match="does not fit this weight space"):
        save_adapter(tmp_path / "a", adapter, adapter.theta_0[1:])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden size": 384}, "tiny-0 with hidden size 384; given is tiny-0 with hidden size 32"),
        ({"layers": 6}, "layers 6; given is tiny-0 with layers 2"),
        ({"architecture": "roberta"}, "architecture roberta; given is tiny-0 with .* bert"),
        ({"name": "roberta-base", "fingerprint": "0" * 32}, "roberta-base .hash 0{8}.; given is"),
    ],
)
def test_another_base_is_refused_naming_both(
    base: Base, change: dict[str, Any], message: str
) -> None:
    known = describe_base(base, LoraSpec())
    check_base(json.loads(json.dumps(known)), base, LoraSpec())
    with pytest.raises(MismatchError, match=r"base model tiny-0 .*given is tiny-1"):
        check_base(known, tiny_base(1), LoraSpec())
    with pytest.raises(MismatchError, match=message):
        check_base(known | change, base, LoraSpec())


def test_another_kind_of_adapter_is_refused_naming_both(base: Base) -> None:
    known = describe_base(base, LoraSpec())
    with pytest.raises(LtdiError) as caught:
        check_base(known, base, SPECS[2])
    for part in ("rank 4", "rank 8", "target_modules ['query', 'value']", "['query', 'key',"):
        assert part in caught.value.what
    assert "pooling" not in caught.value.what  # which does not differ
