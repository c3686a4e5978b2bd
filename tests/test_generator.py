"""`ltdi.generator`: symmetries, batches, noise, and a directory that is checked when it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ltdi.backbone import Backbone
from ltdi.data import ImageSet
from ltdi.errors import DamagedFileError, InputError, LtdiError, MismatchError
from ltdi.files import own_directory
from ltdi.generator import CARD, Generator, HeadGenerator, View, images
from ltdi.parts import CONFIG, FORMAT, WEIGHTS, build_network
from ltdi.recipe import Diffusion, Network
from ltdi.tasks import Support
from ltdi.weights import centre_classes

Task = tuple[Tensor, Tensor]
Draw = Callable[..., Task]


@pytest.fixture(scope="module")
def gen(demo_generator: Path) -> Generator:
    return Generator.from_pretrained(demo_generator)


@pytest.fixture(scope="module")
def draw(glyphs: dict[str, ImageSet]) -> Draw:
    """Support of a task on test scripts; `shots` per class, or one number for all."""
    test = glyphs["test"]

    def support(shots: list[int], *, first: int = 0, size: int = 28, seed: int = 0) -> Task:
        rng = torch.Generator().manual_seed(seed)
        rows, labels = [], []
        for label, shot in enumerate(shots):
            start = int(test.offsets[first + label])
            rows.append(start + torch.randperm(20, generator=rng)[:shot])
            labels += [label] * shot
        images = test.images[torch.cat(rows)]
        if size != 28:
            images = F.interpolate(images.float(), (size, size), mode="nearest").to(torch.uint8)
        return images, torch.tensor(labels)

    return support


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 2e-5) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=atol)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def flat(head: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in head.values()])


# ---- what a generated head is -------------------------------------------------------------------


def test_a_head_is_a_state_dict_of_a_linear_layer(gen: Generator, draw: Draw):
    images, labels = draw([2, 2, 2])
    head = gen.generate((images, labels))
    width = gen.backbone.features(images).shape[1]
    torch.nn.Linear(width, 3).load_state_dict(head)
    probabilities = gen.classify(head, images)
    expected = F.linear(gen.backbone.features(images), head["weight"], head["bias"]).softmax(-1)
    torch.testing.assert_close(probabilities, expected)
    assert (probabilities.argmax(-1) == labels).all()


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_relabelling_permutes_the_rows_and_changes_nothing_else(
    gen: Generator, draw: Draw, steps: int
):
    images, labels = draw([1, 3, 2, 1, 2])
    order = torch.tensor([3, 0, 4, 2, 1])  # class c is now called order[c]
    here = gen.generate((images, labels), steps=steps, strength=1.0)
    there = gen.generate((images, order[labels]), steps=steps, strength=1.0)
    close({n: t[order] for n, t in there.items()}, here)
    # The rows do differ: a constant head would pass the line above.
    assert (here["weight"][0] - here["weight"][1]).norm() > 0.01 * here["weight"][0].norm()


def test_the_order_of_the_samples_does_not_matter(gen: Generator, draw: Draw):
    images, labels = draw([3, 1, 2, 4])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    close(gen.generate((images, labels)), gen.generate((images[order], labels[order])))


def test_an_untrained_generator_is_its_anchor(gen: Generator, draw: Draw):
    p = gen.parts
    network = build_network(p.space, p.space.layers[0].row - 1, p.shape, p.diffusion)
    blank = HeadGenerator(replace(p, network=network))
    images, labels = draw([2, 2, 2, 2])
    features = gen.backbone.features(images).unflatten(0, (1, 4, 2))
    anchor = p.anchor(features, torch.ones(1, 4, 2), gen.space(4))
    for steps in (1, 5):
        head = blank.generate((images, labels), steps=steps, strength=1.0, sharpness=1.0)
        torch.testing.assert_close(gen.space(4).flatten(head), anchor[0])
    # The trained one has learned something on top of it, and strength 0 takes it away.
    trained = gen.generate((images, labels), strength=1.0, sharpness=1.0)
    assert (gen.space(4).flatten(trained) - anchor[0]).norm() > 1e-3 * anchor[0].norm()
    plain = gen.generate((images, labels), strength=0.0, sharpness=1.0)
    torch.testing.assert_close(gen.space(4).flatten(plain), anchor[0])


def test_strength_scales_what_is_generated(gen: Generator, draw: Draw):
    task, space = draw([1, 2, 3]), gen.space(3)
    at = {s: space.flatten(gen.generate(task, strength=s)) for s in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(at[0.5], (at[0.0] + at[1.0]) / 2)


def test_the_shift_that_softmax_does_not_see_is_not_generated_by_the_anchor(
    gen: Generator, draw: Draw
):
    images, _ = draw([1, 1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 3, 1))
    space = gen.space(3)
    anchor = space.unflatten(gen.parts.anchor(features, torch.ones(1, 3, 1), space))
    close(centre_classes(anchor), anchor, atol=1e-5)


# ---- batches ------------------------------------------------------------------------------------


def test_a_list_equals_one_by_one(gen: Generator, draw: Draw):
    tasks = [
        draw([1, 1]),
        draw([1, 4, 2, 1, 5], first=7, size=40),
        draw([2] * 50, first=3),
        draw([3, 1], first=20, size=17),
        Support(*draw([5, 1, 1, 1, 1], first=30)),
        draw([1, 4, 2, 1, 5], first=40),
    ]
    together = gen.generate(tasks)
    assert [len(h["bias"]) for h in together] == [2, 5, 50, 2, 5, 5]
    for task, head in zip(tasks, together, strict=True):
        close(gen.generate(task), head)
    assert not torch.allclose(together[1]["weight"], together[4]["weight"], atol=1e-3)


def test_many_tasks_go_through_the_chain_in_parts(
    gen: HeadGenerator, monkeypatch: pytest.MonkeyPatch
):
    grid = torch.randn(7, 3, 2, gen.width, generator=torch.Generator())
    mask = torch.ones(7, 3, 2)
    mask[::2, :, 1] = 0
    whole, noisy = gen.weights(grid, mask), gen.weights(grid, mask, temperature=1.0)
    seen: list[int] = []
    view = gen.view

    def counted(grid: Tensor, mask: Tensor, copies: int) -> View:
        seen.append(len(grid))
        return view(grid, mask, copies)

    monkeypatch.setattr(images, "TOGETHER", 3)
    monkeypatch.setattr(gen, "view", counted)
    torch.testing.assert_close(gen.weights(grid, mask), whole, rtol=1e-5, atol=1e-6)
    assert seen == [3, 3, 1]
    # Noise is drawn for all of them at once.
    assert torch.equal(gen.weights(grid, mask, temperature=1.0), noisy) and seen[3:] == [7]


def test_images_may_be_bytes_or_floats_grey_or_colour(gen: Generator, draw: Draw):
    images, labels = draw([2, 2])
    head = gen.generate((images, labels))
    close(gen.generate((images.float() / 255, labels)), head)
    # Luma rounds, and so does bfloat16 where the processor has it.
    close(gen.generate((images.expand(-1, 3, -1, -1), labels)), head, atol=0.05)
    assert flat(head).abs().max() > 1
    close(gen.generate((images, labels.to(torch.int32))), head)


def test_features_give_the_same_weights_as_images(gen: Generator, draw: Draw):
    images, labels = draw([2, 2, 2])
    features = gen.backbone.features(images).unflatten(0, (1, 3, 2))
    head = gen.space(3).unflatten(gen.weights(features)[0])
    close(head, gen.generate((images, labels)))


# ---- noise --------------------------------------------------------------------------------------


def test_temperature_zero_is_deterministic_and_ignores_the_seed(gen: Generator, draw: Draw):
    task = draw([1, 2, 1])
    head = gen.generate(task, steps=5, temperature=0.0, seed=1)
    torch.manual_seed(123)
    assert same(head, gen.generate(task, steps=5, temperature=0.0, seed=2))
    assert same(head, gen.generate(task, steps=5, temperature=0.0, samples=4))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_seed_fixes_what_noise_gives(gen: Generator, draw: Draw, sampler: str):
    task, options = (
        draw([1, 2, 1]),
        {"steps": 5, "temperature": 1.0, "sampler": sampler, "strength": 1.0},
    )
    state = torch.get_rng_state()
    head = gen.generate(task, seed=1, **options)
    assert same(head, gen.generate(task, seed=1, **options))
    assert not torch.allclose(flat(head), flat(gen.generate(task, seed=2, **options)), atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_averaging_divides_the_variance_by_the_samples(gen: Generator, draw: Draw):
    images, _ = draw([1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 1)).expand(400, -1, -1, -1)
    options = {"steps": 3, "temperature": 1.0, "sampler": "ddpm", "strength": 1.0}
    one = gen.weights(features, seed=1, **options)
    eight = gen.weights(features, seed=2, samples=8, **options)
    ratio = float(one.var(0).sum() / eight.var(0).sum())
    assert 6.5 < ratio < 9.5
    torch.testing.assert_close(
        eight.mean(0), one.mean(0), rtol=0.1, atol=0.5 * float(one.std(0).max())
    )


def test_sharpness_scales_the_whole_head(gen: Generator, draw: Draw):
    task = draw([1, 2, 3])
    one, three = (flat(gen.generate(task, sharpness=s)) for s in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


def test_the_mean_of_the_draws_is_what_is_generated(gen: Generator, draw: Draw):
    images, _ = draw([2, 2])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 2)).expand(3, -1, -1, -1)
    options = {"steps": 2, "temperature": 1.0, "samples": 5, "seed": 1}
    draws = gen.draws(features, **options)
    assert draws.shape == (5, 3, gen.space(2).size)
    torch.testing.assert_close(draws.mean(0), gen.weights(features, **options))
    assert float(draws.std((0, 1)).max()) > 1e-3
    # Without noise all are equal, and one is enough.
    assert gen.draws(features, samples=5, temperature=0.0).shape[0] == 1


def test_steps_that_the_default_end_does_not_have_take_the_whole_chain(gen: Generator, draw: Draw):
    """A generator whose validation classes chose an early end still serves 1..T steps."""
    sampling = replace(gen.parts.sampling, end=0.25, steps=2)
    early = HeadGenerator(replace(gen.parts, sampling=sampling))
    assert early.sampling(steps=5).end == 0.25
    assert early.sampling(steps=6).end == 1.0 and early.sampling(segments=4).end == 1.0
    task = draw([1, 2])
    assert same(early.generate(task, steps=20), early.generate(task, steps=20, end=1.0))
    with pytest.raises(InputError, match="6 inference steps"):
        early.sampling(steps=6, end=0.25)


def test_generated_heads_can_be_trained_on(gen: Generator, draw: Draw):
    """They come from inference mode, whose tensors autograd refuses; so do what callbacks get."""
    seen: list[Tensor] = []
    images, _ = draw([1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 1))
    out = gen.weights(features, steps=2, callback=lambda t, x, x0: seen.extend((x, x0)))
    for theta in (out, *seen):
        assert not theta.is_inference()
        free = theta.clone().requires_grad_()
        (free * theta).sum().backward()
        torch.testing.assert_close(free.grad, theta)


@pytest.mark.parametrize("end", [0.25, 0.5, 1.0])
def test_the_callback_sees_the_chain_and_its_end(gen: Generator, draw: Draw, end: float):
    images, _ = draw([1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 1))
    seen: list[tuple[int, Tensor]] = []
    theta = gen.weights(
        features, steps=5, temperature=1.0, end=end, callback=lambda t, x, x0: seen.append((t, x))
    )
    assert [t for t, _ in seen][-1] == end * gen.parts.diffusion.steps and len(seen) >= 5
    torch.testing.assert_close(seen[-1][1], theta)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.5}, r"unknown option of generate 'temprature'[\s\S]*'temperature'"),
        ({"step": 3}, r"unknown option of generate 'step'[\s\S]*'steps'"),
        ({"steps": 0}, "0 inference steps"),
        ({"steps": 21}, r"21 inference steps[\s\S]*between 1 and 20"),
        ({"temperature": -0.1}, "temperature >= 0, got 1 and -0.1"),
        ({"temperature": float("nan")}, "got 1 and nan"),
        ({"temperature": float("inf")}, "got 1 and inf"),
        ({"samples": 0}, "samples must be >= 1"),
        ({"strength": float("nan")}, "strength"),
        ({"sharpness": 0.0}, "sharpness must be positive and finite, got 0.0"),
        ({"end": 0.0}, r"end must lie in \(0, 1\]"),
        ({"end": float("nan")}, r"end must lie in \(0, 1\]"),
        ({"end": 1.5}, r"end must lie in \(0, 1\]"),
        ({"end": 0.25, "steps": 6}, r"6 inference steps[\s\S]*between 1 and 5"),
        ({"end": 0.5, "segments": 2, "steps": 4}, "be 1 where there are segments"),
        ({"sampler": "dim"}, r"unknown sampler 'dim'[\s\S]*'ddim'"),
    ],
)
def test_options_that_cannot_be(gen: Generator, draw: Draw, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        gen.generate(draw([1, 1]), **options)


def test_no_task_is_refused(gen: Generator):
    with pytest.raises(InputError, match="no task was given"):
        gen.generate([])


def test_heads_of_another_space_are_refused(gen: Generator, draw: Draw):
    images, labels = draw([1, 1])
    head = gen.generate((images, labels))
    gen.check(head)
    for wrong in (
        {"weight": head["weight"][:, :-1], "bias": head["bias"]},
        {"weight": head["weight"], "bias": head["bias"][:1]},
        {"bias": head["bias"]},
        {},
    ):
        with pytest.raises(LtdiError):
            gen.classify(wrong, images)
    with pytest.raises(MismatchError, match=r"expects \[tasks, way, shot, 32\]"):
        gen.weights(torch.zeros(1, 2, 1, 31))
    with pytest.raises(InputError, match="not finite"):
        gen.weights(torch.full((1, 2, 1, 32), torch.nan))


def test_another_backbone_is_refused(gen: Generator):
    gen.check_backbone(gen.backbone)
    state = {k: v.clone() for k, v in gen.backbone.net.state_dict().items()}
    about = {"config": gen.backbone.config, "transform": vars(gen.backbone.transform)}
    gen.check_backbone(Backbone.from_config(about, state))
    state["layers.0.weight"][0, 0, 0, 0] += 1e-3
    with pytest.raises(MismatchError, match="would be meaningless there"):
        gen.check_backbone(Backbone.from_config(about, state))


# ---- directory ----------------------------------------------------------------------------------


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
