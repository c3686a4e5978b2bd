"""A generator of adapters as a user meets it: files, PEFT, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.source import Source
from ltdi.adapters.training import Solved, train_network
from ltdi.data.text import TextSet
from ltdi.data.text.metrics import measure
from ltdi.errors import InputError, MismatchError
from ltdi.files import digest, read_json, read_tensors, write_json, write_tensors
from ltdi.generator import AdapterGenerator, HeadGenerator, TextSupport
from ltdi.lora import LoraSpec, tiny_base
from ltdi.parts import CONFIG, WEIGHTS
from tests.lora.conftest import some_weights

from .conftest import RECIPE


def support(source: Source, n: int = 24) -> TextSet:
    return source.train.select(source.fit[:n])


def test_it_comes_back_from_its_files(
    generator: AdapterGenerator, sources: list[Source], tmp_path: Path
) -> None:
    generator.save(tmp_path / "g")
    again = ltdi.Generator.from_pretrained(tmp_path / "g")
    assert isinstance(again, AdapterGenerator) and again.revision == generator.revision
    for s in sources:
        a, b = (g.generate(support(s), steps=2) for g in (generator, again))
        assert all(torch.equal(a[n], b[n]) for n in a) and a.keys() == b.keys()
    card = (tmp_path / "g" / "README.md").read_text()
    assert "save_peft" in card and "tiny-0" in card and "image" not in card
    with pytest.raises(MismatchError, match="'adapter'"):
        HeadGenerator.from_pretrained(tmp_path / "g")


def test_one_of_an_earlier_version_has_learnt_from_labels_alone(
    generator: AdapterGenerator, tmp_path: Path
) -> None:
    place = tmp_path / "g"
    generator.save(place)
    old = read_tensors(place / WEIGHTS)
    del old["network.known_labelled"]
    write_tensors(place / WEIGHTS, old)
    config = read_json(place / CONFIG)
    write_json(place / CONFIG, {**config, "revision": digest(old)[:16]})
    again = ltdi.Generator.from_pretrained(place)
    assert isinstance(again, AdapterGenerator)
    assert again.network.get_buffer("known_labelled").tolist() == [True, True]


def test_the_output_is_an_adapter_that_peft_loads(
    generator: AdapterGenerator, sources: list[Source], tmp_path: Path
) -> None:
    """Loaded and merged by the library alone, it gives the same logits."""
    peft = pytest.importorskip("peft", reason="PEFT NOT TESTED")
    transformers = pytest.importorskip("transformers", reason="TRANSFORMERS NOT TESTED")
    base = tiny_base()
    base.encoder.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    for s in sources:
        texts = support(s)
        weights = generator.generate(texts)
        place = generator.save_peft(tmp_path / s.name, weights, texts=texts)
        assert {p.name for p in place.iterdir()} >= {
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
        }
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            tmp_path / "base", num_labels=s.outputs, attn_implementation="eager"
        )
        model = peft.PeftModel.from_pretrained(model, place).eval()
        few = s.dev.select(range(8))
        coded = base.tokenizer([a for a, _ in few.texts], padding=True, return_tensors="pt")
        want = generator.logits(weights, few)
        for loaded in (model, model.merge_and_unload()):
            with torch.no_grad():
                logits = loaded(**coded).logits
            mask = coded["attention_mask"].unsqueeze(-1)
            mean = (logits * mask).sum(1) / mask.sum(1)
            torch.testing.assert_close(mean, want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rank", [4, 8])
def test_all_projections_of_attention(rank: int, sources: list[Source], tmp_path: Path) -> None:
    """From weights of any rank and place to a file that PEFT loads, with the same logits."""
    peft, transformers = (
        pytest.importorskip("peft", reason="PEFT NOT TESTED"),
        pytest.importorskip("transformers", reason="TRANSFORMERS NOT TESTED"),
    )
    targets = ("query", "key", "value", "attention.output.dense")
    base = tiny_base()
    host = LanguageHost.of(base, LoraSpec(rank=rank, target_modules=targets), "tiny")
    adapter, texts = host.adapter(2), support(sources[0])
    theta = torch.stack([some_weights(adapter, seed=i) for i in range(6)]).unsqueeze(1)
    features = host.features(texts.texts).expand(6, -1, -1)
    group = Solved(
        theta.expand(-1, 2, -1),
        features + 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0)),
        texts.targets.expand(6, -1),
        torch.zeros(6, base.width + 1),
        torch.arange(6) // 2,
        torch.ones(6, dtype=torch.bool),
    )
    gen = AdapterGenerator(train_network([group], host, RECIPE))
    weights = gen.generate(texts)
    place = gen.save_peft(tmp_path / "adapter", weights, texts=texts)
    base.encoder.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path / "base", num_labels=2, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, place).merge_and_unload().eval()
    assert peft.PeftConfig.from_pretrained(place).r == rank
    few = sources[0].dev.select(range(6))
    coded = base.tokenizer([a for a, _ in few.texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**coded).logits
    mask = coded["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(
        (logits * mask).sum(1) / mask.sum(1), gen.logits(weights, few), rtol=0.05, atol=0.05
    )


def test_generation_beats_an_empty_head(generator: AdapterGenerator, sources: list[Source]) -> None:
    s = sources[1]
    labels = s.dev.labels
    assert labels is not None
    weights = generator.generate(support(s, 60))
    assert measure("spearman", generator.logits(weights, s.dev), labels) > 0.3


def test_names_of_classes_do_not_matter(generator: AdapterGenerator, sources: list[Source]) -> None:
    """Relabelling the support permutes the rows of the head and changes nothing else."""
    texts = support(sources[0])
    assert texts.labels is not None
    turned = replace(texts, labels=1 - texts.labels)
    a, b = (generator.generate(TextSupport(t, head="generated"), steps=4) for t in (texts, turned))
    for name in a:
        want = a[name].flip(0) if "modules_to_save" in name else a[name]
        torch.testing.assert_close(b[name], want, rtol=1e-4, atol=1e-5)


def test_lists_noise_and_descriptions(generator: AdapterGenerator, sources: list[Source]) -> None:
    texts = support(sources[0])
    one, two = generator.generate([texts, support(sources[1])])
    assert generator.outputs_of(one) == 2 and generator.outputs_of(two) == 1
    plain = TextSupport(texts, head="generated")
    draws = generator.draws(plain, samples=3, temperature=1.0)
    assert draws.shape == (3, generator.space(2).size) and len(draws.unique(dim=0)) == 3
    told = generator.draws(replace(plain, description="is it good or bad"))
    assert not torch.equal(told, generator.draws(plain))


def test_bad_supports(generator: AdapterGenerator, sources: list[Source]) -> None:
    texts = support(sources[0])
    assert texts.labels is not None
    with pytest.raises(InputError, match="no row of the class 1"):
        generator.generate(texts.select((texts.labels == 0).nonzero()[:, 0]))
    with pytest.raises(InputError, match="not tuple"):
        generator.generate(("good", 1))
    with pytest.raises(InputError, match="no labels"):
        generator.generate(replace(texts, labels=None))
    with pytest.raises(InputError, match="generated"):
        TextSupport(texts, head="none")
    pair = [int((texts.labels == c).nonzero()[0]) for c in (0, 1)]
    with pytest.raises(InputError, match="2 rows cannot be split"):
        generator.generate(texts.select(pair))
    with pytest.raises(InputError, match="text 0 is empty"):
        replace(texts, texts=((" ", None), *texts.texts[1:]))


def test_weights_of_another_generator(generator: AdapterGenerator, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"lora_A.* is missing"):
        generator.save_peft(tmp_path / "x", {"weight": torch.zeros(2, 3)})


def test_a_generator_copies_no_part(
    generator: AdapterGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the host was copied, its language model too")

    monkeypatch.setattr(LanguageHost, "__deepcopy__", refuse, raising=False)
    assert AdapterGenerator(generator.parts).parts is generator.parts
