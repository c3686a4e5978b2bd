"""`ltdi.unseen`: from source classes to a generator that is saved, loaded and asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ltdi import cli
from ltdi.anchor.prior import NamePrior, PriorSettings
from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.backbone import build
from ltdi.errors import InputError, MismatchError
from ltdi.files import read_json, read_metadata
from ltdi.generator import Generator, UnseenGenerator
from ltdi.lora.names import NameEncoder
from ltdi.meta import MetaConfig
from ltdi.recipe import Network
from ltdi.tasks import FeatureBank, Unseen
from ltdi.unseen import NamedBank, UnseenRecipe, prepare_zoo, refit, train_unseen
from ltdi.unseen.training import held_out

ENCODER = NameEncoder("tiny", templates=("{}",))
RECIPE = UnseenRecipe(
    ways=(3, 5),
    pool=(3, 6),
    query=3,
    tasks=8,
    folds=4,
    network=Network(kind="naming", width=16, depth=1),
    meta=MetaConfig(iterations=2, meta_batch=2, inner_steps=2, tasks=2),
)


def source(width: int, seed: int = 0) -> NamedBank:
    rng = torch.Generator().manual_seed(seed)
    names = tuple(f"{a} {b}" for a in ("old", "new", "good", "bad") for b in "abcdefgh")
    text = ENCODER(names)
    means = 4 * text @ torch.randn(text.shape[1], width, generator=rng)
    images = means.repeat_interleave(12, 0) + torch.randn(12 * len(names), width, generator=rng)
    bank = FeatureBank(images, torch.arange(len(names) + 1) * 12, names)
    return NamedBank(bank, names, text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> UnseenGenerator:
    config = {"kind": "conv", "channels": 1, "width": 8, "size": 28}
    backbone = Backbone(build(config), InputTransform(28, 1), config)
    width = int(backbone.features(torch.zeros(1, 1, 28, 28)).shape[1])
    bank = source(width)
    prior = NamePrior.fit(bank.bank, bank.text, PriorSettings(iterations=2))
    zoo = prepare_zoo(tmp_path_factory.mktemp("zoo") / "zoo", bank, prior, RECIPE)
    return train_unseen(zoo, prior, backbone, ENCODER, RECIPE)


@pytest.fixture
def pool() -> Tensor:
    return torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(3))


def test_a_generator_is_the_same_after_saving(
    made: UnseenGenerator, pool: Tensor, tmp_path: Path
) -> None:
    task = Unseen(("cat", "dog", "old horse"), pool)
    path = made.save(tmp_path / "generator")
    again = Generator.from_pretrained(path)
    assert isinstance(again, UnseenGenerator)
    assert again.named.encoder.fingerprint == ENCODER.base.fingerprint
    a, b = made.generate(task), again.generate(task)
    for name in a:
        torch.testing.assert_close(a[name], b[name])
    assert a["weight"].shape == (3, made.width)
    probabilities = again.classify(a, pool)
    assert torch.allclose(probabilities.sum(-1), torch.ones(20))
    assert "Unseen(classes" in (path / "README.md").read_text()


def test_another_encoder_is_refused(made: UnseenGenerator, pool: Tensor) -> None:
    wrong = replace(
        made.named, encoder=replace(ENCODER, name="tiny-1", fingerprint=ENCODER.base.fingerprint)
    )
    other = UnseenGenerator(replace(made.parts, host=wrong))
    with pytest.raises(MismatchError, match="this generator was trained with"):
        other.generate(Unseen(("cat", "dog"), pool))


def test_a_generator_starts_from_a_prior_of_other_classes(
    made: UnseenGenerator, pool: Tensor, tmp_path: Path
) -> None:
    bank = source(made.width)
    prior = refit(made.prior, bank.select(range(20)))
    assert prior.settings == made.prior.settings and torch.equal(prior.scale, made.prior.scale)
    other, task = made.starting_from(prior), Unseen(("cat", "dog", "old horse"), pool)
    here = other.generate(task)["weight"]
    assert not torch.allclose(here, made.generate(task)["weight"], atol=1e-3)
    again = Generator.from_pretrained(other.save(tmp_path / "generator"))
    torch.testing.assert_close(again.generate(task)["weight"], here)


def test_the_order_of_names_is_that_of_rows(made: UnseenGenerator, pool: Tensor) -> None:
    a = made.generate(Unseen(("cat", "dog", "horse"), pool))["weight"]
    b = made.generate(Unseen(("horse", "cat", "dog"), pool))["weight"]
    torch.testing.assert_close(a[[2, 0, 1]], b, rtol=1e-3, atol=1e-3)


def test_a_batch_is_its_tasks(made: UnseenGenerator, pool: Tensor) -> None:
    one, two = Unseen(("cat", "dog"), pool[:7]), Unseen(("a", "b", "c"), pool)
    both = made.generate([one, two])
    torch.testing.assert_close(both[0]["weight"], made.generate(one)["weight"])
    assert both[1]["weight"].shape[0] == 3


def test_at_no_strength_the_network_is_not_asked(
    made: UnseenGenerator, pool: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, steps = Unseen(("cat", "dog"), pool), []
    # Who watches the chain sees its steps; what comes of them is the start all the same.
    text = ENCODER(("cat", "dog")).unsqueeze(0)
    features = made.backbone.features(pool).unsqueeze(0)
    watched = made.weights(text, features, strength=0.0, callback=lambda *at: steps.append(at))
    assert steps
    monkeypatch.setattr(made.parts.network, "forward", None)
    unasked = made.weights(text, features, strength=0.0)
    torch.testing.assert_close(unasked, watched, rtol=0, atol=0)
    assert made.generate(task, strength=0.0)["weight"].shape[0] == 2
    with pytest.raises(TypeError):
        made.weights(text, features)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat", "cat"), "the class name 'cat' is given more than once"),
        (("cat", " "), "class names must be non-empty text"),
        (("cat",), "at least 2 classes, got 1"),
        ("cat", "class names must be non-empty text"),
    ],
)
def test_names_that_cannot_be_used(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Unseen(classes)


def test_no_unlabelled_images(made: UnseenGenerator) -> None:
    with pytest.raises(InputError, match="trained with unlabelled images, and none are given"):
        made.generate(("cat", "dog"))
    with pytest.raises(InputError, match="unlabelled images must be a tensor"):
        Unseen(("cat", "dog"), torch.zeros(0, 1, 28, 28))
    with pytest.raises(InputError, match="a task without labels must be Unseen or a tuple"):
        made.generate(7)


def test_a_generator_of_names_alone_takes_no_images(made: UnseenGenerator, pool: Tensor) -> None:
    alone = UnseenGenerator(replace(made.parts, host=replace(made.named, pooled=False)))
    with pytest.raises(InputError, match="goes by class names alone"):
        alone.generate(Unseen(("cat", "dog"), pool))
    assert alone.generate(("cat", "dog"))["weight"].shape == (2, made.width)


def test_folds_hold_every_concept_out_equally_often() -> None:
    bank = source(4)
    folds = held_out(bank, RECIPE)
    assert len(folds) == 4
    assert sorted(i for fold in folds for i in fold) == list(range(32))


def test_the_command_goes_from_names_to_a_classifier(
    made: UnseenGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made.save(tmp_path / "generator")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        shade = Image.new("L", (28, 28), 60 * i)
        shade.save(photos / f"{i}.png")
    head = tmp_path / "head.safetensors"
    command = ["generate", "--generator", str(path), "--out", str(head)]
    assert cli.main([*command, "--classes", "cat, dog", "--unlabelled", str(photos)]) == 0
    assert "2-way head from names" in capsys.readouterr().out
    assert read_metadata(head)["task"] == '["cat", "dog"]'
    out = tmp_path / "classifier"
    arguments = ["--generator", str(path), "--weights", str(head), "--out", str(out)]
    assert cli.main(["export", *arguments]) == 0
    assert read_json(out / "config.json")["classes"] == ["cat", "dog"]
    for more, message in (
        ([], "either by --support or by --classes"),
        (["--classes", "cat,cat", "--unlabelled", str(photos)], "given more than once"),
        (["--classes", "cat,", "--unlabelled", str(photos)], "non-empty text"),
        (["--classes", "cat,dog"], "trained with unlabelled images, and none are given"),
        (["--support", str(photos)], "does not go by labelled images"),
    ):
        head.unlink(missing_ok=True)
        assert cli.main([*command, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    measure = ["evaluate", "--generator", str(path), "--data-dir", str(photos)]
    assert cli.main(measure) == 2
    assert "does not go by labelled samples" in " ".join(capsys.readouterr().err.split())
