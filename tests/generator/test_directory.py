"""`ltdi.generator.base` and `ltdi.parts`: a directory that is checked when it is read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
from safetensors import safe_open

from ltdi.errors import DamagedFileError, InputError, LtdiError, MismatchError
from ltdi.files import own_directory
from ltdi.generator import CARD, Generator, HeadGenerator
from ltdi.parts import CONFIG, FORMAT, WEIGHTS, build_network
from ltdi.recipe import Diffusion, Network
from tests.generator.made import Draw, same


def test_save_and_load_give_the_identical_head(gen: Generator, draw: Draw, tmp_path: Path):
    again = Generator.from_pretrained(gen.save(tmp_path / "a"))
    assert again.revision == gen.revision and again.parts.about == gen.parts.about
    for options in ({}, {"steps": 6, "temperature": 1.0, "samples": 2, "sampler": "ddpm"}):
        task = draw([1, 3, 2, 1])
        assert same(gen.generate(task, **options), again.generate(task, **options))
    third = again.save(tmp_path / "b")
    for name in (CONFIG, CARD):
        assert (tmp_path / "a" / name).read_bytes() == (third / name).read_bytes(), name


def test_what_is_in_the_directory(gen: Generator, demo_generator: Path):
    config = json.loads((demo_generator / CONFIG).read_text())
    assert (config["library"], config["kind"], config["format"]) == ("ltdi", "head", FORMAT)
    assert config["revision"] == gen.revision
    assert config["about"]["data"] == "glyphs"
    assert config["about"]["recipe"]["meta"]["iterations"] == 15
    # End, steps and strength are those that the validation classes chose.
    scores, chosen = config["about"]["validation NLL"], config["sampling"]
    named = f"end {chosen['end']:.2f}, {chosen['steps']} steps, strength {chosen['strength']}"
    as_few = [nll for name, nll in scores.items() if f" {chosen['steps']} steps" in name]
    assert scores[named] == min(as_few)
    with safe_open(demo_generator / WEIGHTS, "pt") as stream:
        assert stream.metadata()["format"] == "pt"
        groups = {name.partition(".")[0] for name in stream.keys()}  # noqa: SIM118
    assert groups == {"network", "anchor", "normaliser", "backbone"}
    card = (demo_generator / CARD).read_text(encoding="utf-8")
    assert card.startswith("---\n") and "library_name: ltdi" in card and "glyphs" in card


@pytest.fixture
def copy(demo_generator: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_generator, tmp_path / "copy"))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_flipped_bit_is_found(copy: Path, share: float):
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[int(share * len(data))] ^= 4
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(DamagedFileError, match=WEIGHTS):
        Generator.from_pretrained(copy)


def test_truncated_files_are_found(copy: Path):
    whole = (copy / CONFIG).read_text()
    (copy / CONFIG).write_text(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match=f"{CONFIG} is not valid JSON"):
        Generator.from_pretrained(copy)
    (copy / CONFIG).write_text(whole)
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[:-100])
    with pytest.raises(DamagedFileError, match=WEIGHTS):
        Generator.from_pretrained(copy)


def test_files_of_two_generators_are_not_mixed(gen: Generator, copy: Path, tmp_path: Path):
    # Of another shape.
    p = gen.parts
    shape = replace(p.shape, width=16)
    network = build_network(p.space, p.space.layers[0].row - 1, shape, p.diffusion)
    other = HeadGenerator(replace(p, network=network, shape=shape))
    shutil.copy(other.save(tmp_path / "other") / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(MismatchError, match="do not belong together"):
        Generator.from_pretrained(copy)
    # Of the same shape.
    twin = HeadGenerator(replace(p, network=build_network(p.space, 32, p.shape, p.diffusion)))
    shutil.copy(twin.save(tmp_path / "twin") / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(LtdiError, match=f"{WEIGHTS} is not the file that {CONFIG} was written"):
        Generator.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"format 99, this version reads 2[\s\S]*train it anew"),
        ({"library": "other"}, "not that of a generator"),
        ({"kind": "heda"}, r"unknown kind of generator 'heda'[\s\S]*'head'"),
        ({"kind": []}, "does not say what kind"),
        ({"diffusion": {"steps": "a"}}, "do not belong together"),
        ({"anchor": "gausian"}, r"unknown anchor 'gausian'[\s\S]*'gaussian'"),
        ({"network": {"kind": "transfomer", "width": 32}}, r"'transfomer'[\s\S]*'transformer'"),
        ({"space": {}}, "do not belong together"),
    ],
)
def test_foreign_or_edited_configurations(copy: Path, change: dict, message: str):
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(LtdiError, match=message):
        Generator.from_pretrained(copy)
    (copy / CONFIG).write_text("[]")
    with pytest.raises(MismatchError, match="not that of a generator"):
        Generator.from_pretrained(copy)
    for text in ("[" * 100_000, "1" * 5_000):
        (copy / CONFIG).write_text(text)
        with pytest.raises(DamagedFileError, match="not valid JSON"):
            Generator.from_pretrained(copy)


def test_heads_of_an_earlier_version_are_generated_as_it_did(copy: Path, tmp_path: Path):
    """Its files do not say where tasks are seen from: the origin of the frame, as it was learnt."""
    assert Generator.from_pretrained(copy).parts.anchor.own_mean
    config = json.loads((copy / CONFIG).read_text())
    del config["own_mean"]
    (copy / CONFIG).write_text(json.dumps(config))
    earlier = Generator.from_pretrained(copy)
    anchor, width = earlier.parts.anchor, earlier.width
    z, mask = torch.randn(2, 3, 4, width) + 5, torch.ones(2, 3, 4)
    assert not anchor.task_mean(z, mask, anchor.frame(width)).any()
    # And saved again they stay so.
    earlier.save_pretrained(tmp_path / "again")
    assert not Generator.from_pretrained(tmp_path / "again").parts.anchor.own_mean


def test_the_kind_in_the_files_is_the_kind_that_is_loaded(copy: Path):
    class Other(HeadGenerator):
        kind = "other"

    assert type(Generator.from_pretrained(copy)) is HeadGenerator
    with pytest.raises(MismatchError, match="kind 'head', which a Other does not"):
        Other.from_pretrained(copy)


@pytest.mark.parametrize("name", ["no/such/directory", "/no/such/directory", "../x", "nonsense"])
def test_a_path_that_leads_nowhere(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"there is no generator at[\s\S]*to do"):
        Generator.from_pretrained(name, cache_dir=tmp_path)


def test_a_directory_that_is_no_generator(tmp_path: Path):
    with pytest.raises(InputError, match=rf"is not a generator: it has no {CONFIG}"):
        Generator.from_pretrained(tmp_path)


def test_options_of_loading_are_checked(demo_generator: Path):
    with pytest.raises(InputError, match=r"'revison'[\s\S]*'revision'"):
        Generator.from_pretrained(demo_generator, revison="main")


def test_a_foreign_directory_is_left_alone(gen: Generator, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="was not made by ltdi"):
        gen.save(tmp_path)
    zoo = own_directory(tmp_path / "zoo", "zoo")
    with pytest.raises(InputError, match="holds a zoo"):
        gen.save(zoo)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".ltdi", "notes.txt", "zoo"]


def test_push_to_hub_uploads_three_files(
    gen: Generator, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **_: object) -> object:
            calls.append(("create", repo_id))
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
            calls.append(("upload", repo_id))
            shutil.copytree(folder_path, tmp_path / "hub")
            return "https://example.org/commit"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Hub)
    gen.push_to_hub("someone/heads")
    assert calls == [("create", "someone/heads"), ("upload", "someone/heads")]
    assert sorted(p.name for p in (tmp_path / "hub").iterdir()) == [CARD, CONFIG, WEIGHTS]
    monkeypatch.setattr(
        "ltdi.generator.base.snapshot_download",
        lambda repo, **_: {"someone/heads": tmp_path / "hub"}[repo],
    )
    task = draw([1, 1])
    assert same(Generator.from_pretrained("someone/heads").generate(task), gen.generate(task))


def test_an_unknown_network_is_refused(gen: Generator):
    with pytest.raises(InputError, match=r"unknown network 'unett'[\s\S]*'unet'"):
        build_network(gen.parts.space, 32, Network("unett"), Diffusion())
