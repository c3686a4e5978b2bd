"""`ltdi.data.text.glue`: the official layout, and the real files where a machine has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltdi.data.text import TextSet, glue
from ltdi.errors import DamagedFileError, InputError

from ..conftest import write, zipped

SST = "sentence\tlabel\na \"good film\t1\nit 's bad \t0\n"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
FILES = {
    "glue/CoLA/train.tsv": "gj04\t1\t\tFine here.\ngj04\t0\t*\tHere bad is.",
    "glue/CoLA/dev.tsv": "gj04\t1\t\tWell said.\n",
    "glue/CoLA/test.tsv": "index\tsentence\n0\tUnknown.\n",
    "glue/SST-2/train.tsv": SST,
    "glue/SST-2/dev.tsv": SST.replace("\n", "\r\n"),
    "glue/MRPC/train.tsv": MRPC + "1\t7\t8\tA b\tB a\n",
    "glue/MRPC/dev.tsv": MRPC + "0\t7\t8\tA\tB\u2028c\n",
    "glue/RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tP\tH\tnot_entailment\n",
    "glue/RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tP\tH\tentailment\n",
    "glue/STS-B/train.tsv": "index\tsentence1\tsentence2\tscore\n0\tA\tB\t5.000\n1\tA\tC\t2.5\n",
    "glue/STS-B/dev.tsv": "index\tsentence1\tsentence2\tscore\n0\tA\tB\t0\n",
}


def coded(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


@pytest.fixture(params=["directory", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "zip":
        return zipped(tmp_path / "glue.zip", coded(FILES))
    return write(tmp_path / "g", coded(FILES))


def test_quotes_have_no_meaning_and_spaces_stay(place: Path) -> None:
    parts = glue.load(place, "sst-2")
    assert list(parts) == ["train", "dev"]
    train = parts["train"]
    assert train.name == "SST-2-train"
    assert train.texts == (('a "good film', None), ("it 's bad ", None))
    assert train.targets.tolist() == [1, 0]
    assert train.label_names == ("negative", "positive")
    assert parts["dev"].texts == train.texts  # Windows' ends of lines


def test_cola_has_no_header_except_in_test(place: Path) -> None:
    parts = glue.load(place, "cola", glue.PARTS)
    assert parts["train"].texts == (("Fine here.", None), ("Here bad is.", None))
    assert parts["train"].targets.tolist() == [1, 0]
    assert parts["test"].texts == (("Unknown.", None),)
    assert parts["test"].labels is None
    assert parts["test"].outputs == 2


def test_a_byte_order_mark_is_no_part_of_the_header(place: Path) -> None:
    parts = glue.load(place, "mrpc")
    assert parts["train"].texts == (("A b", "B a"),)
    assert parts["train"].metrics == ("accuracy", "f1")
    assert parts["train"].label_names[1] == "equivalent"
    assert parts["dev"].texts == (("A", "B\u2028c"),)  # no end of a line


def test_classes_written_as_words_and_values(place: Path) -> None:
    rte = glue.load(place, "rte")
    assert (rte["train"].targets.tolist(), rte["dev"].targets.tolist()) == ([1], [0])
    sts = glue.load(place, "sts-b")["train"]
    assert sts.labels is not None
    assert sts.labels.dtype == torch.float32
    assert (sts.labels.tolist(), sts.targets.tolist()) == ([5.0, 2.5], [1.0, 0.5])
    assert sts.metrics == ("spearman", "pearson")


@pytest.mark.parametrize("name", ["sst-2", "SST-2", "sst2", "SST_2"])
def test_a_task_by_any_of_its_names(name: str) -> None:
    assert glue.is_task(name)
    assert glue.task_name(name) == "sst-2"


def damaged(tmp_path: Path, file: str, text: str | bytes) -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    return write(tmp_path / "d", coded(FILES) | {f"glue/{file}": data})


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("SST-2/dev.tsv", SST + "three\tcolumns\t1\n", r"3 columns instead of 2[\s\S]*line 4"),
        ("SST-2/dev.tsv", SST + "\n", r"1 columns instead of 2[\s\S]*line 4"),
        ("SST-2/dev.tsv", SST + " \t1\n", r"the text is empty[\s\S]*line 4"),
        ("SST-2/dev.tsv", SST + "good\t\n", r"the label is missing[\s\S]*line 4"),
        ("SST-2/dev.tsv", SST + "good\t2\n", r"unknown label '2'[\s\S]*line 4"),
        ("SST-2/dev.tsv", "", "the file is empty"),
        ("SST-2/dev.tsv", "sentence\tlabel\n", "no row"),
        (
            "SST-2/dev.tsv",
            "sentences\tlabel\na\t1\n",
            "column 'sentence'[\\s\\S]*line 1\n[\\s\\S]*'sentences'",
        ),
        (
            "SST-2/dev.tsv",
            "sentence\tlabels\na\t1\n",
            "column 'label'[\\s\\S]*restore the official file[\\s\\S]*'labels'",
        ),
        (
            "SST-2/dev.tsv",
            "sentence\tlabel\tlabel\na\t1\t0\n",
            "column is there twice[\\s\\S]*line 1",
        ),
        ("CoLA/dev.tsv", FILES["glue/CoLA/test.tsv"], r"2 columns instead of 4[\s\S]*line 1"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        glue.load(damaged(tmp_path, file, text), file.partition("/")[0])
    assert file in caught.value.where


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("RTE/dev.tsv", "entailmnet", r"label 'entailmnet'[\s\S]*did you mean 'entailment'"),
        ("STS-B/dev.tsv", "5.5", r"label 5\.5 is outside the range 0\.\.5[\s\S]*line 2"),
        ("STS-B/dev.tsv", "nan", "label 'nan' is not a finite number"),
        ("STS-B/dev.tsv", "high", "label 'high' is not a finite number"),
    ],
)
def test_a_label_outside_the_set(tmp_path: Path, file: str, text: str, message: str) -> None:
    header = FILES[f"glue/{file}"].partition("\n")[0]
    with pytest.raises(InputError, match=message):
        glue.load(damaged(tmp_path, file, f"{header}\n0\tA\tB\t{text}\n"), file[:-8])


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = damaged(tmp_path, "SST-2/dev.tsv", b"sentence\tlabel\na\t1\n\xff\t0\n")
    with pytest.raises(DamagedFileError, match=r"byte 0xff is not UTF-8[\s\S]*line 3"):
        glue.load(path, "sst-2")


def test_what_is_not_there(tmp_path: Path, place: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'mrpc'"):
        glue.load(place, "mprc")
    with pytest.raises(InputError, match=r"there is no QNLI/train\.tsv"):
        glue.load(place, "qnli")
    with pytest.raises(InputError, match=r"unknown part 'valid'"):
        glue.load(place, "sst-2", ("valid",))
    with pytest.raises(InputError, match="GLUE is not embedded"):
        glue.load(None, "sst-2")
    with pytest.raises(InputError, match="no such directory"):
        glue.load(tmp_path / "nowhere", "sst-2")


# Rows of train, dev and test, and the share of the last class in dev (or the mean value).
REAL = {
    "cola": (8551, 1043, 1063, 0.6913),
    "sst-2": (67349, 872, 1821, 0.5092),
    "mrpc": (None, 408, 1725, 0.6838),
    "qnli": (None, 5463, 5463, 0.5054),
    "rte": (2490, 277, 3000, 0.4729),
    "sts-b": (5749, 1500, 1379, 2.3639),
    "wnli": (635, 71, 146, 0.4366),
}


@pytest.mark.data
@pytest.mark.parametrize("task", glue.TASKS)
def test_the_real_files(real: Callable[[str], Path], task: str) -> None:
    parts: dict[str, TextSet] = glue.load(real("glue"), task, glue.PARTS)
    train, dev, test, mean = REAL[task]
    # Train files differ between the mirrors of MRPC, and that of QNLI may be a sample.
    assert train in (len(parts["train"]), None)
    assert (len(parts["dev"]), len(parts["test"])) == (dev, test)
    assert parts["dev"].labels is not None
    assert float(parts["dev"].labels.double().mean()) == pytest.approx(mean, abs=1e-4)
    assert parts["test"].labels is None
    assert parts["dev"].pairs == (task not in ("cola", "sst-2"))
