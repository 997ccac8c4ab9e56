"""Tests of planner/pytorch: tensors.py, safetensors_header.py and weights.py."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tensorstow.ir.errors import InputError
from tensorstow.planner.pytorch.weights import open_weights
from tensorstow.runtime import memory

from .checkpoints import content, entry, memory_of, write

Entries = dict[str, dict[str, Any]]


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "float16", "float64", "int64", "uint8", "bool", "int16", "float8_e4m3fn", "complex64"],
)
def test_what_safetensors_writes_is_read(tmp_path: Path, dtype: str) -> None:
    kind: torch.dtype = getattr(torch, dtype)
    state = {
        "b.w": (torch.randn(5, 7) * 9).to(kind),
        "a": torch.ones(3).to(kind),
        "scalar": torch.tensor(1).to(kind),
        "none": torch.empty(0, 4, dtype=kind),
    }
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    files = open_weights(tmp_path / "m.safetensors")
    assert files.tensor.keys() == state.keys()
    for name, tensor in state.items():
        found = files.tensor[name]
        assert (found.shape, found.dtype) == (tuple(tensor.shape), dtype)
        assert content(found) == memory_of(tensor)
    status = (tmp_path / "m.safetensors").stat()
    assert (files.files[0].nbytes, files.files[0].mtime_ns) == (status.st_size, status.st_mtime_ns)


GOOD: Entries = {"a": entry("F32", [2], 0, 8), "b": entry("U8", [3], 8, 11)}
A, B = GOOD["a"], GOOD["b"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"a": A, "b": entry("U8", [3], 7, 10)}, "'b' .* begins at byte .* ends at .*: they overlap"),
        ({"a": A, "b": entry("U8", [2], 9, 11)}, "'b' .*: they leave a gap"),
        ({"a": A}, r"has \d+ bytes, its tensors end at \d+"),
        ({"a": A, "b": entry("U8", [30], 8, 38)}, r"'b' .* ends at byte \d+, the file at \d+; get the whole file"),
        ({"a": entry("F32", [3], 0, 8), "b": B}, r"'a' .*: its shape \[3\] of F32 takes 12 bytes, .* span 8"),
        ({"a": entry("F31", [2], 0, 8), "b": B}, "'a' .* has the unknown type 'F31'; known are BOOL"),
        ({"a": entry("F32", [2], 8, 0), "b": B}, r"'a' .* has data_offsets \[8, 0\], which is no range"),
        ({"a": entry("F32", [-2], 0, 8), "b": B}, r"'a' .* has the shape \[-2\], which is no list of numbers"),
        ({"a": {"dtype": "F32", "shape": [2]}, "b": B}, "'a' .* has the data_offsets None"),
        ({"a": [1], "b": B}, "'a' .* is described by no JSON object"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b'{"a": ', "is not JSON"),
        (b"{" * 60_000, "is not JSON"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}", "is not JSON|no list of numbers"),
        (b"[1, 2]", "no header begins at byte 8"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, entries: Any, words: str) -> None:
    path = write(tmp_path / "m.safetensors", entries, bytes(11))
    with pytest.raises(InputError, match=words) as raised:
        open_weights(path)
    assert str(path) in str(raised.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", GOOD, bytes(11))
    whole = path.read_bytes()
    for keep in range(len(whole)):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"get the whole file|is not a safetensors file"):
            open_weights(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + whole[8:])
    with pytest.raises(InputError, match=f"claims a header of {1 << 40} bytes; the format allows 100000000"):
        open_weights(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        open_weights(tmp_path / "absent.safetensors")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "dtype"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=80) | JSON.map(lambda v: json.dumps(v).encode()), st.integers(0, 1 << 64), st.booleans())
@example(b"{}", 2, True)
def test_any_bytes_are_a_checkpoint_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, length: int, right: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    claimed = len(header) if right else min(length, (1 << 64) - 1)
    path.write_bytes(claimed.to_bytes(8, "little") + header + bytes(8))
    try:
        files = open_weights(path)
    except InputError:
        return
    assert all(t.file_offset + t.nbytes <= path.stat().st_size for t in files.tensors)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_flipped_byte_is_a_checkpoint_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "flip.safetensors", GOOD, bytes(11))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        open_weights(path)
    except InputError:
        return


def test_a_huge_file_is_opened_without_reading_it(tmp_path: Path) -> None:
    nbytes = 8 << 30
    entries = {
        f"layer.{i}": entry("F32", [nbytes // 64 // 4], i * nbytes // 64, (i + 1) * nbytes // 64) for i in range(64)
    }
    path = write(tmp_path / "m.safetensors", entries, b"")
    os.truncate(path, path.stat().st_size + nbytes)
    if not memory.reset_peak():
        pytest.skip("this system does not allow it")
    before = memory.current_rss_nbytes()
    assert open_weights(path).nbytes == nbytes
    assert memory.peak_rss_nbytes() - before < 4 << 20


# Shards


def sharded(folder: Path) -> dict[str, Any]:
    """Two shards and their index."""
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, folder / "s1.safetensors")
    save_file({"c": torch.ones(4)}, folder / "s2.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "s1.safetensors", "b": "s1.safetensors", "c": "s2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    sharded(tmp_path)
    files = open_weights(tmp_path)
    assert set(files.tensor) == {"a", "b", "c"}
    assert [Path(f.path).name for f in files.files] == ["s1.safetensors", "s2.safetensors"]
    assert files.tensor["c"].path == str(tmp_path / "s2.safetensors")
    assert open_weights(tmp_path / "model.safetensors.index.json").tensors == files.tensors


def test_shards_that_do_not_fit_their_index(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    for weight_map, words in (
        ({**index["weight_map"], "d": "s2.safetensors"}, "'d' is in 's2.safetensors', which does not hold it"),
        ({**index["weight_map"], "a": "s2.safetensors"}, "'a' is in 's2.safetensors', which does not hold it"),
        ({**index["weight_map"], "d": "s3.safetensors"}, "'d' is in 's3.safetensors', which is not there"),
        ({"a": "../s1.safetensors"}, r"places 'a' in '../s1.safetensors', which is no file beside it"),
        ({"a": "/etc/passwd"}, "which is no file beside it"),
        ({"a": 7}, "places 'a' in '7'"),
        ({"a": "s1.txt"}, "'a' is in 's1.txt', which is not there"),
        ({}, "has no weight_map"),
    ):
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=words):
            open_weights(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        open_weights(tmp_path)
    save_file({"a": torch.ones(3), "c": torch.ones(4)}, tmp_path / "s2.safetensors")
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"tensor 'a' is in '.*s1.safetensors' and in '.*s2.safetensors'"):
        open_weights(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no weights: neither model.safetensors .*; it holds config.json"):
        open_weights(tmp_path)
    save_file({"a": torch.ones(3)}, tmp_path / "consolidated.safetensors")
    assert set(open_weights(tmp_path).tensor) == {"a"}
    with pytest.raises(InputError, match="is no checkpoint"):
        open_weights(tmp_path / "config.json")


# Pickles


def test_a_pickle_is_refused_unless_allowed(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    state = {"w": base, "part": base[1:3], "half": torch.ones(5, dtype=torch.bfloat16)}
    path = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": {**state, "step": 3}, "epoch": 1}, path)
    for where in (path, tmp_path):
        with pytest.raises(InputError, match=r"is a pickle, which can execute code .* allow_pickle=True"):
            open_weights(where)
    files = open_weights(tmp_path, allow_pickle=True)
    assert set(files.tensor) == {"w", "part", "half"}
    for name in files.tensor:
        assert content(files.tensor[name]) == memory_of(state[name])


class Evil:
    """Would be executed by a plain unpickler."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_pickles_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pt"
    torch.save({"w": Evil()}, path)
    with pytest.raises(InputError, match="is no state_dict that can be unpickled safely"):
        open_weights(path, allow_pickle=True)
    assert not (tmp_path / "executed").exists()
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before PyTorch 1.6, or truncated"):
        open_weights(path, allow_pickle=True)
    torch.save(torch.ones(3), path)
    with pytest.raises(InputError, match="holds Tensor, not a state_dict"):
        open_weights(path, allow_pickle=True)
    torch.save({"w": torch.ones(3, 2).t()}, path)
    with pytest.raises(InputError, match=r"'w' .* has strides \[1, 2\] .* \.contiguous\(\)"):
        open_weights(path, allow_pickle=True)
    pair = torch.randn(4, dtype=torch.complex64)
    for value, words in (
        (pair.conj(), r"'w' .* is the conjugate of what is in the file; .* \.resolve_conj"),
        (pair.conj().imag, r"'w' .* is the negative of what is in the file"),
        (torch.eye(3).to_sparse(), r"'w' .* is sparse_coo"),
    ):
        torch.save({"w": value}, path)
        with pytest.raises(InputError, match=words):
            open_weights(path, allow_pickle=True)
    torch.save({"w": torch.ones(3000)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in archive.infolist():
            packed.writestr(member.filename, archive.read(member))
    with pytest.raises(InputError, match="was compressed"):
        open_weights(tmp_path / "z.pt", allow_pickle=True)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="truncated"):
        open_weights(path, allow_pickle=True)


# Runs of bytes
