"""Whatever is wrong with the input: one clear message, status 2, and nothing on disk changed."""

from __future__ import annotations

import shlex
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import torch

from ltdi import cli
from ltdi.backbone import Backbone, ConvNet
from ltdi.data import ImageSet
from ltdi.errors import InputError, LtdiError
from ltdi.files import own_directory, write_tensors
from ltdi.generator import Generator
from ltdi.tasks import Support
from tests.folders import write_folders

TINY = (
    "--tasks.ways [3] --tasks.shots [1] --tasks.query 4 --tasks.per-setting 12 --tasks.shard 6 "
    "--prepare.steps 4 --training.iterations 2 --training.classes 8 --training.width 16"
)
SMALL = (
    "--network.width 16 --network.depth 1 --network.heads 2 --meta.meta-batch 2 --meta.tasks 2 "
    "--meta.iterations 3 --meta.warmup 1"
)


SMALL_TASK = (
    torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 0, 1, 1]),
)


def flip(file: Path, share: float = 0.7) -> None:
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


@pytest.fixture(scope="module")
def place(tmp_path_factory, glyphs: dict[str, ImageSet], demo_generator: Path) -> Path:
    """One of everything, sound and broken."""
    p = tmp_path_factory.mktemp("bad")
    gen = Generator.from_pretrained(demo_generator)
    shutil.copytree(demo_generator, p / "gen")
    write_folders(p / "drawings", glyphs["train"].select(range(0, 800, 32)), 8)
    write_folders(p / "support", glyphs["test"].select([3, 30, 60]), 2)
    support = [["generate", "--generator", p / "gen", "--support", p / "support"]]
    assert run(*support[0], "--out", p / "head.safetensors")[0] == 0
    gen.backbone.save(p / "backbone")
    base = ["--data", p / "drawings", "--backbone", p / "backbone"]
    assert run(*shlex.split(f"collect {TINY}"), *base, "--out", p / "zoo")[0] == 0
    train = shlex.split(f"train {SMALL}")
    assert run(*train, "--zoo", p / "zoo", "--out", p / "trained")[0] == 0
    # Broken ones.
    for name, file, harm in (
        ("gen-flipped", "model.safetensors", flip),
        ("gen-cut", "model.safetensors", cut),
        ("gen-config", "config.json", cut),
    ):
        shutil.copytree(p / "gen", p / name)
        harm(p / name / file)
    shutil.copytree(p / "gen", p / "gen-mixed")
    shutil.copy(p / "trained" / "model.safetensors", p / "gen-mixed")
    for name, file, harm in (
        ("zoo-flipped", "shard-000001.safetensors", flip),
        ("zoo-cut", "shard-000000.safetensors", cut),
        ("zoo-index", "zoo.json", cut),
        ("zoo-bank", "bank.safetensors", flip),
        ("zoo-anchor", "anchor.safetensors", cut),
    ):
        shutil.copytree(p / "zoo", p / name)
        harm(p / name / file)
    shutil.copytree(p / "zoo", p / "zoo-missing")
    (p / "zoo-missing" / "shard-000001.safetensors").unlink()
    shutil.copytree(p / "trained", p / "trained-cut")
    for file in p.glob("trained-cut/checkpoint*"):
        cut(file)
    shutil.copy(p / "head.safetensors", p / "cut.safetensors")
    cut(p / "cut.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = Backbone(ConvNet(1, 16, 28), gen.backbone.transform, gen.backbone.config)
    other.save(p / "other-backbone")
    head = {"weight": torch.zeros(3, 7), "bias": torch.zeros(3)}
    marks = {"ltdi": "weights", "backbone": gen.backbone.fingerprint, "task": "[]"}
    write_tensors(p / "narrow.safetensors", head, marks)
    write_tensors(p / "foreign.safetensors", head, {**marks, "backbone": other.fingerprint})
    (p / "empty").mkdir()
    (p / "theirs").mkdir()
    (p / "theirs" / "notes.txt").write_text("mine")
    (p / "file").write_text("mine")
    (p / "number.yaml").write_text("meta: 3\n")
    (p / "bytes.yaml").write_bytes(b"\xff\xfe")
    write_folders(p / "one-class", glyphs["test"].select([5]), 3)
    write_folders(p / "uneven", glyphs["test"].select(range(6)), 6)
    for file in list((p / "uneven" / "class03").iterdir())[1:]:
        file.unlink()
    write_folders(p / "damaged", glyphs["test"].select(range(3)), 2)
    cut(p / "damaged" / "class01" / "00.png")
    (p / "loose").mkdir()
    shutil.copy(p / "support" / "class00" / "00.png", p / "loose")
    for name, entry in (("escape", "../evil/0.png"), ("absolute", "/evil/0.png")):
        with zipfile.ZipFile(p / f"{name}.zip", "w") as file:
            file.writestr(entry, (p / "loose" / "00.png").read_bytes())
    with zipfile.ZipFile(p / "link.zip", "w") as file:
        entry = zipfile.ZipInfo("a/0.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, "/etc/hostname")
    shutil.copytree(p / "support", p / "no-images")
    (p / "no-images" / "class99").mkdir()
    bad_names = {**marks, "task": "[" * 100_000}
    write_tensors(p / "no-names.safetensors", gen.generate(SMALL_TASK), bad_names)
    (p / "torn.zip").write_bytes((p / "escape.zip").read_bytes()[:-10])
    return p


def run(*arguments: object) -> tuple[int, str]:
    """Exit status of a command in this process."""
    try:
        return cli.main([str(a) for a in arguments]), ""
    except SystemExit as stop:
        return int(stop.code or 0), ""


def tree(*roots: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() if p.is_file() else b"" for root in roots for p in root.rglob("*")
    }


GENERATE = "generate --generator {p}/gen --support {p}/support --out {t}/h.safetensors"
EVALUATE = "evaluate --generator {p}/gen --data-dir {p}/drawings --episodes 5 --json {t}/r.json"
EXPORT = "export --generator {p}/gen --weights {p}/head.safetensors --out {t}/c"
TRAIN = f"train {SMALL} --zoo {{p}}/zoo --out {{t}}/g"
COLLECT = f"collect {TINY} --data {{p}}/drawings --out {{t}}/z"
BENCH = "bench fewshot --dataset glyphs --methods protonet --preset smoke --out {t}/b"

DOMAIN = "bench domain --dataset glyphs --methods erm --preset smoke --out {t}/b"

# A later option overrides an earlier one, so each case states only what is wrong.
CASES = {
    # supports
    f"{GENERATE} --support {{p}}/nowhere": "no such directory, zip or tar.gz",
    f"{GENERATE} --support {{p}}/empty": "no image among 0 files",
    f"{GENERATE} --support {{p}}/loose": "outside any class folder",
    f"{GENERATE} --unlabelled {{p}}/support": "does not read a domain",
    f"{EVALUATE} --names true": "does not read a domain",
    f"{GENERATE} --support {{p}}/one-class": "class 1 of 0..1 has no support sample",
    f"{GENERATE} --support {{p}}/damaged": "class01/00.png",
    f"{GENERATE} --support {{p}}/escape.zip": "leads out of the archive",
    f"{GENERATE} --support {{p}}/absolute.zip": "is an absolute path",
    f"{GENERATE} --support {{p}}/link.zip": "is a link or a device",
    f"{GENERATE} --support {{p}}/no-images": "the folder 'class99' lies beside",
    f"{GENERATE} --support {{p}}/torn.zip": "not a readable zip",
    f"{GENERATE} --support {{p}}/file": "not a readable zip",
    # sampling
    f"{GENERATE} --steps 0": "0 inference steps",
    f"{GENERATE} --steps 21": "between 1 and 20",
    f"{GENERATE} --temperature=-0.5": "temperature >= 0",
    f"{GENERATE} --temperature .nan": "temperature >= 0",
    f"{GENERATE} --samples 0": "samples must be >= 1",
    f"{GENERATE} --sampler dim": "did you mean 'ddim'?",
    f"{GENERATE} --steps 2.5": "Expected int. Got value: 2.5",
    f"{GENERATE} --sharpness 1e39": "generated weights are not finite",
    f"{GENERATE} --seed 99999999999999999999": "a seed is a whole number",
    f"{GENERATE} --samples 1000000000000 --temperature 1": "memory of this machine is not enough",
    f"{GENERATE} --description spam": "--description and --columns are for",
    f"{GENERATE} --support ''": "--support is empty",
    # generators
    f"{GENERATE} --generator ''": "--generator is empty",
    f"{GENERATE} --generator {{p}}/empty": "it has no config.json",
    f"{GENERATE} --generator {{p}}/zoo": "it has no config.json",
    f"{GENERATE} --generator {{p}}/no/such/one": "there is no generator at",
    f"{GENERATE} --generator {{p}}/gen-flipped": "model.safetensors",
    f"{GENERATE} --generator {{p}}/gen-cut": "model.safetensors",
    f"{GENERATE} --generator {{p}}/gen-config": "config.json is not valid JSON",
    f"{GENERATE} --generator {{p}}/gen-mixed": "do not belong together",
    # output files
    f"{GENERATE} --out {{p}}/file": "exists and is not a weights file of ours",
    f"{GENERATE} --out {{p}}/theirs": "is a directory",
    f"{GENERATE} --out {{p}}/file/h.safetensors": "cannot write to",
    f"{GENERATE} --out {{p}}/cut.safetensors": "exists and is not a weights file of ours",
    f"{EVALUATE} --json {{p}}/file": "exists and is not a result file of ours",
    f"{EVALUATE} --json {{p}}/head.safetensors": "exists and is not a result file of ours",
    f"{EVALUATE} --json {{p}}/file/r.json": "cannot write to",
    # evaluation
    f"{EVALUATE} --way 26": "needs 26 classes, the data have 25",
    f"{EVALUATE} --way 1": "way must be at least 2",
    f"{EVALUATE} --shot 8": "fewer than 9 images",
    f"{EVALUATE} --shot 0": "shot must be at least 1",
    f"{EVALUATE} --query 0": "query must be at least 1",
    f"{EVALUATE} --episodes 0": "episodes must be at least 1",
    f"{EVALUATE} --episodes 100000000000": "episodes must be at most 1,000,000",
    f"{EVALUATE} --data-dir {{p}}/uneven": "'class03' (1)",
    f"{EVALUATE} --data-dir {{p}}/empty": "no image among 0 files",
    f"{EVALUATE} --data-dir {{p}}/escape.zip": "leads out of the archive",
    f"{EVALUATE} --backbone {{p}}/other-backbone": "would be meaningless there",
    f"{EVALUATE} --backbone {{p}}/empty": "backbone.json",
    f"{EVALUATE} --steps 99": "99 inference steps",
    # export
    f"{EXPORT} --weights {{p}}/none.safetensors": "not found",
    f"{EXPORT} --weights {{p}}/cut.safetensors": "cut.safetensors",
    f"{EXPORT} --weights {{p}}/file": "is not a readable safetensors file",
    f"{EXPORT} --weights {{p}}/foreign.safetensors": "these weights belong to backbone",
    f"{EXPORT} --weights {{p}}/narrow.safetensors": "'weight' has shape (3, 7)",
    f"{EXPORT} --weights {{p}}/no-names.safetensors": "do not name classes",
    f"{EXPORT} --format npy": "did you mean 'npz'?",
    f"{EXPORT} --out {{p}}/theirs": "was not made by ltdi; it is left as it is",
    f"{EXPORT} --out {{p}}/gen": "holds a generator",
    f"{EXPORT} --out {{p}}/file": "is a file",
    f"{EXPORT} --out {{p}}/file/c": "to do:",
    # training
    f"{TRAIN} --zoo {{p}}/nowhere": "it has no zoo.json",
    f"{TRAIN} --zoo {{p}}/zoo-flipped": "shard-000001.safetensors",
    f"{TRAIN} --zoo {{p}}/zoo-cut": "shard-000000.safetensors",
    f"{TRAIN} --zoo {{p}}/zoo-missing": "shard-000001.safetensors",
    f"{TRAIN} --zoo {{p}}/zoo-index": "zoo.json is not valid JSON",
    f"{TRAIN} --zoo {{p}}/zoo-bank": "bank.safetensors",
    f"{TRAIN} --zoo {{p}}/zoo-anchor": "anchor.safetensors",
    f"{TRAIN} --backbone {{p}}/other-backbone": "leave --backbone out",
    f"{TRAIN} --out {{p}}/theirs": "was not made by ltdi; it is left as it is",
    f"{TRAIN} --out {{p}}/zoo": "holds a zoo",
    f"{TRAIN} --out {{p}}/trained-cut": "checkpoint.safetensors",
    f"{TRAIN} --out {{p}}/trained --meta.inner-lr 0.3": "inner_lr was 0.05, now 0.3",
    f"{TRAIN} --out {{p}}/file/g": "to do:",
    f"{TRAIN} --network.kind transfomer": "did you mean 'transformer'?",
    f"{TRAIN} --network.width 15": "to do:",
    f"{TRAIN} --meta.outer adm": "did you mean 'adam'?",
    f"{TRAIN} --meta.iterations 0": "iterations must be at least 1",
    f"{TRAIN} --diffusion.steps 0": "to do:",
    f"{TRAIN} --diffusion.steps 3": "to do:",
    f"{TRAIN} --diffusion.steps 1000000000": "longer than 100,000",
    f"{TRAIN} --config {{p}}/number.yaml": "a group of settings is no mapping",
    f"{TRAIN} --config {{p}}/bytes.yaml": "is not UTF-8 text",
    f"{TRAIN} --diffusion.objective trajectry": "did you mean 'trajectory'?",
    f"{TRAIN} --diffusion.loss predctive": "did you mean 'predictive'?",
    f"{TRAIN} --diffusion.plus-weight=-1": "plus_weight must be at least 0",
    f"{TRAIN} --diffusion.schedule cosin": "did you mean 'cosine'?",
    f"{TRAIN} --diffusion.prediction x1": "did you mean 'x0'?",
    f"{TRAIN} --sampling.temperature=-1": "temperature >= 0",
    f"{TRAIN} --sampling.steps 50 --sampling.temperature 0.5": "50 inference steps",
    f"{TRAIN} --meta.iteratoins 3": "did you mean --meta.iterations?",
    # collecting
    f"{COLLECT} --data {{p}}/nowhere": "no such directory, zip or tar.gz",
    f"{COLLECT} --data glyhps": "did you mean 'glyphs'?",
    f"{COLLECT} --data {{p}}/support": "too few for three parts",
    f"{COLLECT} --data {{p}}/escape.zip": "leads out of the archive",
    f"{COLLECT} --data omniglot --data-dir {{p}}/empty": "to do:",
    f"{COLLECT} --tasks.ways [30]": "needs 30 classes",
    f"{COLLECT} --tasks.ways [9]": "of 25 classes",
    f"{COLLECT} --tasks.ways []": "no ways were given",
    f"{COLLECT} --tasks.ways 3": "write a list, such as [3]",
    f"{COLLECT} --prepare.lr=-1": "lr = -1.0 is no step size",
    f"{COLLECT} --prepare.weight-decay .inf": "weight_decay = inf",
    f"{COLLECT} --target adapter --data ''": "--data is empty",
    f"{COLLECT} --tasks.query 20": "needs 21 items per class",
    f"{COLLECT} --tasks.per-setting 0": "per_setting must be at least 1",
    f"{COLLECT} --prepare.steps 5": "multiple of segments",
    f"{COLLECT} --prepare.optimiser adm": "did you mean 'adam'?",
    f"{COLLECT} --anchor gausian": "did you mean 'gaussian'?",
    f"{COLLECT} --start anchr": "did you mean 'anchor'?",
    f"{COLLECT} --held-out 1.5": "cannot be held out",
    f"{COLLECT} --backbone {{p}}/empty": "backbone.json",
    f"{COLLECT} --backbone {{p}}/nowhere": "there is no backbone at",
    f"{COLLECT} --out {{p}}/theirs": "was not made by ltdi; it is left as it is",
    f"{COLLECT} --out {{p}}/gen": "holds a generator",
    f"{COLLECT} --out {{p}}/zoo --backbone {{p}}/backbone --prepare.steps 8": "made with prepare",
    f"{COLLECT} --out {{p}}/zoo --backbone {{p}}/backbone --anchor prototype": "made with anchor",
    f"{COLLECT} --out {{p}}/zoo --backbone {{p}}/other-backbone": "made with backbone",
    f"{COLLECT} --out {{p}}/file/z": "to do:",
    # benchmarks
    f"{BENCH} --methods lt-di,fintune": "did you mean 'finetune'?",
    f"{BENCH} --preset smok": "did you mean 'smoke'?",
    f"{BENCH} --dataset glyhps": "did you mean 'glyphs'?",
    f"{BENCH} --dataset {{p}}/nowhere": "no such directory, zip or tar.gz",
    f"{BENCH} --dataset {{p}}/one-class": "too few for three parts",
    f"{BENCH} --out {{p}}/theirs": "was not made by ltdi; it is left as it is",
    f"{BENCH} --json {{p}}/file": "exists and is not a result file of ours",
    f"{BENCH} --episodes 0": "episodes must be at least 1",
    f"{DOMAIN} --domains prnit": "did you mean 'print'?",
    f"{DOMAIN} --dataset pcas": "did you mean 'pacs'?",
    f"{DOMAIN} --methods emr": "did you mean 'erm'?",
    "bench fewshto --dataset glyphs --out {t}/b": "did you mean 'fewshot'?",
    "bench llm --preset smoke --data-dir {p} --out {t}/b": "none of the tasks is one of GLUE",
    "zoo info": "needed but not given: ZOOS",
    # the demo
    "demo --out {p}/theirs": "was not made by ltdi; it is left as it is",
    "demo --out {p}/file": "is a file",
}


@pytest.mark.parametrize("command", CASES)
def test_a_command_refuses(
    command: str, place: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    before = tree(place, tmp_path)
    status, _ = run(*shlex.split(command.format(p=place, t=tmp_path)))
    shown = capsys.readouterr()
    assert status == 2, shown
    assert CASES[command] in shown.err, shown.err
    assert shown.err.count("error: ") == 1 and "Traceback" not in shown.err
    message = shown.err[shown.err.index("error: ") :].splitlines()
    # What was wrong, then where and what to do, indented; nothing else.
    assert all(line.startswith("  ") for line in message[1:]) and len(message) <= 3, message
    assert len(message) >= 2, message
    assert tree(place, tmp_path) == before


@pytest.mark.parametrize("name", ["GENERATE", "EVALUATE", "EXPORT", "TRAIN", "COLLECT"])
def test_the_same_command_without_a_mistake_succeeds(name: str, place: Path, tmp_path: Path):
    """Otherwise every case above could fail for a reason of its own."""
    command = globals()[name].format(p=place, t=tmp_path)
    if name == "COLLECT":
        command += f" --backbone {place}/backbone"
    assert run(*shlex.split(command))[0] == 0


def test_a_run_that_made_something_keeps_it(place: Path, tmp_path: Path):
    """Only what a refused command has just made goes away."""
    own_directory(tmp_path / "g", "generator")
    (tmp_path / "g" / "notes.txt").write_text("mine")
    command = f"{TRAIN} --diffusion.steps 3".format(p=place, t=tmp_path)
    assert run(*shlex.split(command))[0] == 2
    assert (tmp_path / "g" / "notes.txt").read_text() == "mine"


# ---- supports in Python -------------------------------------------------------------------------

GREY, LABELS = SMALL_TASK
NAN = GREY.clone()
NAN[2, 0, 5, 5] = torch.nan


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ((GREY[0], LABELS), r"expected \[n, channels, height, width\]"),
        ((GREY[:, 0], LABELS), r"expected \[n, channels, height, width\]"),
        ((GREY.expand(-1, 2, -1, -1), LABELS), r"\[n, 1 or 3, height, width\]"),
        ((GREY[:, :, :0], LABELS), r"\[n, 1 or 3, height, width\]"),
        ((GREY[:3], LABELS), "one label per image"),
        ((GREY[:0], LABELS[:0]), "support images have shape"),
        ((GREY.numpy(), LABELS), "two tensors, got ndarray"),
        ((GREY.to(torch.int32), LABELS), "uint8 .* or floating point"),
        ((GREY > 0.5, LABELS), "uint8 .* or floating point"),
        ((255 * GREY, LABELS), "must lie in 0..1"),
        ((GREY - 0.5, LABELS), "must lie in 0..1"),
        ((NAN, LABELS), "image 2 has NaN"),
        ((GREY * torch.inf, LABELS), "NaN or infinite"),
        ((GREY, LABELS.float()), "labels must be integers"),
        ((GREY, LABELS.bool()), "labels must be integers"),
        ((GREY, LABELS.to_sparse()), r"sparse[\s\S]*to_dense"),
        ((GREY.to("meta"), LABELS), r"on meta[\s\S]*cpu"),
        ((GREY, LABELS, GREY.to_sparse()), r"unlabelled[\s\S]*to_dense"),
        ((GREY, torch.tensor([0, 0, 2, 2])), "class 1 of 0..2 has no support sample"),
        ((GREY, torch.tensor([1, 1, 2, 2])), "class 0 of 0..2 has no support sample"),
        ((GREY, torch.tensor([0, 0, 0, 0])), "class 1 of 0..1 has no support sample"),
        ((GREY, torch.tensor([-1, 0, 1, 1])), "labels lie in -1..1"),
        ((GREY, torch.tensor([0, 1, 1, 9])), "labels lie in 0..9"),
        ((GREY, LABELS, GREY[0]), r"unlabelled images must be a tensor \[m"),
        ((GREY, LABELS, GREY[:0]), r"unlabelled images must be a tensor \[m"),
        ((GREY, LABELS, None, ("a",)), "1 class names are given for 2 classes"),
        ((GREY, LABELS, None, ("a", "b", "c")), "3 class names are given for 2 classes"),
        ((GREY, LABELS, None, ("a", "a")), "'a' is given more than once"),
        ((GREY, LABELS, None, ("a", " ")), "must be non-empty text"),
        ((GREY, LABELS, None, "ab"), "must be non-empty text"),
        (GREY, "must be Support or"),
        (None, "got NoneType"),
    ],
)
def test_a_support_that_cannot_be(support, message: str, demo_generator: Path):
    gen = Generator.from_pretrained(demo_generator)
    # In a list too the message counts from the start of its own support.
    for given in (support, [(GREY, LABELS), support]):
        with pytest.raises(InputError, match=message) as caught:
            gen.generate(given)
        assert caught.value.where and caught.value.fix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "2"}, "steps must be int, got '2'"),
        ({"steps": 2.0}, "steps must be int, got 2.0"),
        ({"samples": True}, "samples must be int, got True"),
        ({"temperature": None}, "temperature must be float, got None"),
        ({"sampler": 3}, "sampler must be str, got 3"),
        ({"seed": 0.5}, "a seed is a whole number"),
        ({"seed": 1 << 64}, "a seed is a whole number"),
        ({"strength": 1e39}, "generated weights are not finite"),
        ({"temperature": 1e39}, "generated weights are not finite"),
    ],
)
def test_an_option_that_cannot_be(options: dict, message: str, demo_generator: Path):
    with pytest.raises(InputError, match=message):
        Generator.from_pretrained(demo_generator).generate(SMALL_TASK, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint64])
def test_labels_of_any_integer_type(dtype: torch.dtype, demo_generator: Path):
    gen = Generator.from_pretrained(demo_generator)
    wanted, found = gen.generate((GREY, LABELS)), gen.generate((GREY, LABELS.to(dtype)))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_features_that_cannot_be(demo_generator: Path):
    gen = Generator.from_pretrained(demo_generator)
    grid, ones = torch.rand(1, 3, 2, gen.width), torch.ones(1, 3, 2)
    for features, mask, message in (
        (grid.double(), None, "float64"),
        (grid.long(), None, "int64"),
        (grid[:, :, :0], None, r"\[1, 3, 0,"),
        (grid, ones[:, :2], "mask of shape"),
        (grid, ones * torch.tensor([1, 1, 0])[:, None], "each class"),
    ):
        with pytest.raises(LtdiError, match=message):
            gen.weights(features, mask)
    assert gen.weights(grid, ones).isfinite().all()


def test_saved_weights_replace_nothing_of_others(demo_generator: Path, tmp_path: Path):
    gen = Generator.from_pretrained(demo_generator)
    head = gen.generate(SMALL_TASK)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a weights file of ours"):
        gen.save_weights(tmp_path / "notes.txt", head)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="not finite"):
        gen.save_weights(tmp_path / "h.safetensors", {k: v * torch.nan for k, v in head.items()})
    for _ in range(2):
        gen.save_weights(tmp_path / "h.safetensors", head)


def test_an_export_leaves_no_other_head(place: Path, tmp_path: Path):
    for kind, other in (("safetensors", "npz"), ("npz", "safetensors")):
        command = f"{EXPORT} --format {kind}".format(p=place, t=tmp_path)
        assert run(*shlex.split(command))[0] == 0
        assert (tmp_path / "c" / f"model.{kind}").is_file()
        assert not (tmp_path / "c" / f"model.{other}").exists()


def test_the_sound_support_next_to_these_is_taken(demo_generator: Path):
    head = Generator.from_pretrained(demo_generator).generate(Support(GREY, LABELS))
    assert head["weight"].isfinite().all() and len(head["bias"]) == 2
