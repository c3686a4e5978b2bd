"""`ltdi.files`: nothing half-written stays, nothing altered is read, nothing foreign is touched."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltdi.errors import DamagedFileError, InputError
from ltdi.files import (
    MARKER,
    claim_file,
    digest,
    own_directory,
    read_json,
    read_metadata,
    read_tensors,
    replacing,
    write_json,
    write_tensors,
    write_text,
)

TENSORS = {"a": torch.arange(3, dtype=torch.float32), "b": torch.tensor([[1, -2]])}
META = {"step": "21", "about": '{"way": 5}'}


@pytest.fixture(scope="module")
def whole() -> Iterator[bytes]:
    """The bytes of a small file of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        write_tensors(path, TENSORS, META)
        yield path.read_bytes()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert snapshot(tmp_path) == {"a.txt": b"old"}


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename is atomic on one file system only
    assert snapshot(tmp_path) == {"deep/a.txt": b"new"}


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    mark = write_tensors(path, {**TENSORS, "view": torch.eye(3).T[:, 1:]}, META)
    back = read_tensors(path, expected=mark)
    assert torch.equal(back["view"], torch.eye(3)[:, 1:])
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in TENSORS.items())
    assert read_metadata(path).items() >= META.items()
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_every_flipped_bit_is_found(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "victim.safetensors"
    for position in range(len(whole)):
        for bit in range(8):
            altered = bytearray(whole)
            altered[position] ^= 1 << bit
            path.write_bytes(altered)
            with pytest.raises(DamagedFileError, match="victim") as caught:
                read_tensors(path)
            assert caught.value.where == str(path) and caught.value.fix


@given(data=st.data())
def test_an_overwritten_byte_is_found_or_harmless(data: st.DataObject, whole: bytes) -> None:
    """White space may become other white space; no value may ever differ."""
    altered = bytearray(whole)
    altered[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        path.write_bytes(altered)
        try:
            back = read_tensors(path)
        except DamagedFileError:
            return
        assert digest(back) == digest(TENSORS)
        assert read_metadata(path).items() >= META.items()


def test_every_truncation_is_found(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "victim.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match="victim"):
            read_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFileError, match="victim"):
        read_tensors(path)


def test_another_sound_file_is_not_the_expected_one(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    mark = write_tensors(path, TENSORS)
    write_tensors(path, {"a": torch.zeros(3)})
    with pytest.raises(DamagedFileError, match="checksum"):
        read_tensors(path, expected=mark)


def test_a_file_without_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    with pytest.raises(DamagedFileError, match="no checksum"):
        read_tensors(path)


def test_a_missing_file_is_the_users_error(tmp_path: Path) -> None:
    for read in (read_tensors, read_metadata, read_json):
        with pytest.raises(InputError, match="not found"):
            read(tmp_path / "none")


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    """Its bytes too, whatever the order of tensors and metadata, in any process."""
    metadata = {f"k{i}": '\u00e4\n"x\\' * i for i in range(12)}
    tensors = {name: torch.arange(6.0) for name in "abc"}
    write_tensors(tmp_path / "a", tensors, metadata)
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_metadata(tmp_path / "a").items() >= metadata.items()
    assert list(read_tensors(tmp_path / "b")) == ["a", "b", "c"]


def test_the_digest_sees_names_shapes_types_values_and_metadata() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [
        digest({"b": torch.zeros(2, 3)}),
        digest({"a": torch.zeros(3, 2)}),
        digest({"a": torch.zeros(2, 3, dtype=torch.int32)}),
        digest({"a": torch.zeros(2, 3).index_fill(0, torch.tensor([1]), 1e-30)}),
        digest(base, {"k": "v"}),
        digest(base, {"k": "w"}),
    ]
    assert len({digest(base), *others}) == len(others) + 1
    assert digest({"x": torch.ones(1), "a": torch.zeros(1)}) == digest(
        {"a": torch.zeros(1), "x": torch.ones(1)}
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_comes_back(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.json"
        write_json(path, value)
        assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"PK\x03\x04"])
def test_damaged_json_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"zoo\.json is not valid JSON") as caught:
        read_json(path)
    assert caught.value.where == str(path)


def test_a_directory_becomes_ours_and_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        path = own_directory(tmp_path / name, "zoo")
        assert (path / MARKER).read_text() == "zoo\n"
        (path / "shard").write_text("x")
        before = snapshot(path)
        assert own_directory(str(path), "zoo") == path
        assert snapshot(path) == before


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    own_directory(tmp_path, "zoo")
    with pytest.raises(InputError, match="holds a zoo"):
        own_directory(tmp_path, "generator")
    assert (tmp_path / MARKER).read_text() == "zoo\n"


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", ".git/config"])
def test_a_foreign_directory_is_left_untouched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match="not made by ltdi"):
        own_directory(tmp_path, "zoo")
    assert snapshot(tmp_path) == {name: b"precious"}


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(InputError, match="is a file"):
        own_directory(tmp_path / "x", "zoo")
    assert snapshot(tmp_path) == {"x": b"precious"}


def test_a_marker_that_a_kill_left_half_written_does_not_lock_us_out(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        pytest.MonkeyPatch.context() as patch,
        replacing(tmp_path / MARKER) as temporary,
    ):
        temporary.write_text("zo")
        patch.setattr(Path, "unlink", lambda *a, **k: None)  # as a SIGKILL: no clean-up
        raise RuntimeError
    assert len(list(tmp_path.iterdir())) == 1
    assert (own_directory(tmp_path, "zoo") / MARKER).read_text() == "zoo\n"


def test_an_output_file_is_ours_or_new(tmp_path: Path) -> None:
    weights, result = tmp_path / "a" / "w.safetensors", tmp_path / "b" / "r.json"
    for path, kind in ((weights, "weights"), (result, "result")):
        assert claim_file(path, kind) == path
        assert path.parent.is_dir() and not path.exists()
    write_tensors(weights, TENSORS, {"ltdi": "weights"})
    write_json(result, {"track": "fewshot", "rows": []})
    assert claim_file(weights, "weights") == weights
    assert claim_file(str(result), "result") == result
    for path, kind in ((weights, "result"), (result, "weights")):
        with pytest.raises(InputError, match=f"not a {kind} file of ours"):
            claim_file(path, kind)


@pytest.mark.parametrize("kind", ["weights", "result"])
@pytest.mark.parametrize(
    "content", [b"precious", b"", b"\x89PNG\r\n\xff", json.dumps({"rows": 1}).encode(), b"[1]"]
)
def test_a_foreign_output_file_is_left_untouched(kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="left as it is"):
        claim_file(tmp_path / "x", kind)
    assert snapshot(tmp_path) == {"x": content}


def test_an_output_file_cannot_be_a_directory_or_below_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        claim_file(tmp_path, "result")
    (tmp_path / "x").write_text("precious")
    with pytest.raises(InputError, match="cannot write"):
        claim_file(tmp_path / "x" / "r.json", "result")


def test_an_unwritable_place_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # who may write everywhere; what the system tells others
        monkeypatch.setattr(os, "access", lambda *_: False)
    try:
        with pytest.raises(InputError, match="cannot write"):
            claim_file(tmp_path / "r.json", "result")
    finally:
        tmp_path.chmod(0o700)
