"""Tests of planner/pytorch: tensors.py, safetensors_header.py, weights.py, runs.py, matching.py and binding.py."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.program import BlobSource, FilePiece, Lookup, ModuleProgram, Parameter
from tensorstow.planner.pytorch.binding import bind, choose_reading, kept_names, repacked_nbytes
from tensorstow.planner.pytorch.matching import match
from tensorstow.planner.pytorch.runs import NotRunsError, Runs
from tensorstow.planner.pytorch.tensors import FileTensor, WeightFiles
from tensorstow.planner.pytorch.weights import open_weights
from tensorstow.runtime import memory
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.store import WeightStore
from tensorstow.runtime.store_files import FileStore

Entries = dict[str, dict[str, Any]]


def write(path: Path, entries: Any, data: bytes, *, pad: int = 0) -> Path:
    """A safetensors file by hand; `pad` spaces end the header."""
    header = (entries if isinstance(entries, bytes) else json.dumps(entries).encode()) + b" " * pad
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def content(tensor: FileTensor) -> bytes:
    return b"".join(Path(p.path).read_bytes()[p.file_offset : p.file_offset + p.nbytes] for p in tensor.pieces)


def memory_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def save_aligned(state: dict[str, torch.Tensor], path: Path, *, to: int = 64) -> None:
    """As safetensors writes it, each tensor's bytes at a distance of `to` from the next multiple of 64."""
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    pad = (to - 8 - len(header)) % 64
    write(path, header, raw[8 + length :], pad=pad)


# Files


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


def value_of(runs: Runs, data: torch.Tensor) -> torch.Tensor:
    found = [data[p.file_offset : p.file_offset + p.nbytes] for p in runs.pieces]
    return torch.cat(found).reshape(runs.shape)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3))
def test_stacked_joined_and_cut_bytes_are_where_torch_puts_them(
    shape: list[int], count: int, dim: int, along: int
) -> None:
    dim, along = dim % len(shape), along % (len(shape) + 1)
    size = torch.Size(shape).numel()
    data = torch.randperm(2 * count * size).to(torch.uint8)
    plain = [data[i * 2 * size : i * 2 * size + size].reshape(shape) for i in range(count)]
    runs: Any = [Runs("uint8", shape, [FilePiece("f", i * 2 * size, size)]) for i in range(count)]
    pairs: list[tuple[torch.Tensor, Any]] = [
        (torch.stack(plain, dim=along), torch.stack(runs, dim=along)),
        (torch.cat(plain, dim=dim), torch.cat(runs, dim=dim)),
        (torch.cat([torch.stack(plain), torch.stack(plain)], dim=-1), torch.cat([torch.stack(runs)] * 2, dim=-1)),
        (torch.chunk(torch.stack(plain), 2, dim=along)[-1], torch.chunk(torch.stack(runs), 2, dim=along)[-1]),
    ]
    for expected, found in pairs:
        assert found.shape == tuple(expected.shape)
        assert torch.equal(value_of(found, data), expected)


def test_what_changes_values_is_not_followed() -> None:
    runs: Any = Runs("uint8", (2, 2), [FilePiece("f", 0, 4)])
    other: Any = Runs("uint8", (2, 3), [FilePiece("f", 4, 6)])
    changes = (lambda: torch.transpose(runs, 0, 1), lambda: runs.float(), lambda: torch.cat([runs, other]))
    for change in changes:
        with pytest.raises(NotRunsError):
            change()
    assert Runs("uint8", (8,), [FilePiece("f", 0, 4), FilePiece("f", 4, 4)]).pieces == (FilePiece("f", 0, 8),)


# Matching


class Net(nn.Module):
    """A tied pair, a layer, a buffer that is saved and one that is not."""

    table: torch.Tensor
    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = nn.Linear(32, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(60.0))
        self.register_buffer("mask", torch.ones(70), persistent=False)


def stored(folder: Path, state: dict[str, torch.Tensor], *, to: int = 64) -> WeightFiles:
    save_aligned(state, folder / "model.safetensors", to=to)
    return open_weights(folder)


def state_of(net: nn.Module, *without: str) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in net.state_dict().items() if n not in without}


def test_names_find_their_tensors(tmp_path: Path) -> None:
    net = Net()
    matched = match(net, stored(tmp_path, {**state_of(net, "head.weight", "table"), "other": torch.ones(2)}))
    assert matched.extra == ("other",)
    assert matched.tensors["head.weight"] is matched.tensors["embed.weight"]
    assert "table" not in matched.tensors  # keeps its value
    assert "head.weight" in match(net, stored(tmp_path, state_of(net, "embed.weight"))).tensors
    assert match(net, stored(tmp_path, state_of(net))).extra == ()  # both names of the pair, the same bytes


def test_what_does_not_match(tmp_path: Path) -> None:
    net = Net()
    for state, words in (
        (state_of(net, "embed.weight", "head.weight"), r"holds 3 tensors, but not 'embed.weight' of the module"),
        ({**state_of(net), "layer.bias": torch.ones(25)}, r"'layer.bias' has shape \[32\] in the module, \[25\] in"),
        (
            {**state_of(net), "layer.weight": torch.ones(32, 32, dtype=torch.bfloat16)},
            r"'layer.weight' is float32 in the module, bfloat16 in .*\.to\(torch.bfloat16\)",
        ),
        ({**state_of(net), "head.weight": torch.ones(50, 32)}, "'embed.weight' and 'head.weight' are one parameter"),
    ):
        with pytest.raises(InputError, match=words):
            match(net, stored(tmp_path, state))


# Binding


def lowered(net: nn.Module) -> tuple[Graph, ModuleProgram]:
    """As planner/pytorch/parts.py would place everything, in two parts; the embedding is looked up."""
    found: dict[int, list[str]] = {}
    everything = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}
    for name, tensor in everything.items():
        found.setdefault(id(tensor), []).append(name)
    storages, tensors, blobs, parameters = [], [], [], []
    for names in found.values():
        tensor = everything[names[0]]
        nbytes, shape = tensor.numel() * tensor.element_size(), tuple(tensor.shape)
        storages.append(Storage(names[0], nbytes, StorageKind.WEIGHT, blob=names[0]))
        tensors.append(Tensor(names[0], "float32", shape, names[0], nbytes))
        blobs.append(BlobSource(names[0], nbytes, "float32", shape))
        parameters.append(Parameter(tuple(names), names[0]))
    operators = (
        Operator("embed", "Lookup", (), ()),
        Operator("layer", "Part", ("layer.weight", "layer.bias", "mask"), (), workspace_nbytes=10),
        Operator("head", "Part", ("embed.weight", "table"), ()),
    )
    graph = Graph("net", tuple(storages), tuple(tensors), operators, (), ())
    lookups = {"embed": Lookup("embed.weight", 50, 128)}
    calls = {o.id: o.id for o in operators}
    return graph, ModuleProgram("torch", None, False, tuple(blobs), tuple(parameters), calls, lookups)


@pytest.mark.parametrize("to", [64, 8, 48])
@pytest.mark.parametrize("reading", ["direct", "repacked"])
def test_bound_storages_hold_the_parameters_bytes(tmp_path: Path, to: int, reading: Any) -> None:
    net = Net()
    matched = match(net, stored(tmp_path, state_of(net, "head.weight"), to=to))
    graph, program = bind(*lowered(net), matched, reading)
    assert program.direct == (reading == "direct")
    store = (
        FileStore.open(program, matched.files.files)
        if program.direct
        else WeightStore.open_or_build(program, identity={"engine": "t", "files": []}, folder=tmp_path / "store")
    )
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert {p.tensor for p in program.parameters} == {"embed.weight", "layer.weight", "layer.bias", "table"}
    for parameter in program.parameters:
        tensor = graph.tensor[parameter.tensor]
        storage = graph.storage[tensor.storage or ""]
        assert storage.blob is not None
        if reading == "direct" and to == 64:
            assert (storage.alignment, storage.blob_offset % 4096, tensor.offset % 64) == (4096, 0, 0)
        else:
            assert (storage.alignment, tensor.offset) == (64, 0)
        arena = Arena(storage.nbytes)
        store.read(storage.blob, storage.blob_offset, arena.view(0, storage.nbytes))
        found = bytes(arena.view(tensor.offset, tensor.nbytes))
        arena.close()
        assert found == memory_of(state[parameter.names[0]]), parameter
    row = bytearray(128)
    store.read_rows("embed.weight", 7 * 128, memoryview(row))
    assert bytes(row) == memory_of(net.embed.weight[7])
    store.close()


def test_a_buffer_of_the_module_alone_stays_in_it(tmp_path: Path) -> None:
    net = Net()
    before, _ = lowered(net)
    graph, program = bind(*lowered(net), match(net, stored(tmp_path, state_of(net))), "direct")
    assert "mask" not in graph.storage
    assert "mask" not in graph.tensor
    assert graph.operator["layer"].inputs == ("layer.weight", "layer.bias")
    grown = [b.workspace_nbytes - a.workspace_nbytes for a, b in zip(before.operators, graph.operators, strict=True)]
    assert grown == [280, 280, 280]
    assert kept_names(net, program) == ()


def test_how_to_read_is_told_beforehand(tmp_path: Path) -> None:
    net = Net()
    _, program = lowered(net)
    assert choose_reading(program, match(net, stored(tmp_path, state_of(net), to=64)), free_nbytes=1 << 40) == "direct"
    shifted = match(net, stored(tmp_path, state_of(net), to=16))
    assert repacked_nbytes(program, shifted) == (2 + 1 + 1 + 1) * 4096
    assert choose_reading(program, shifted, free_nbytes=5 * 4096) == "repacked"
    assert choose_reading(program, shifted, free_nbytes=5 * 4096 - 1) == "direct"


def test_another_module_than_the_files_is_refused(tmp_path: Path) -> None:
    net = Net()
    matched = match(net, stored(tmp_path, state_of(net)))
    graph, program = lowered(net)
    for change, words in (
        ({"offset": 4}, r"at offset 4 of memory of \d+ bytes that others share"),
        ({"dtype": "float64"}, r"of float64 in the lowered module, .* of float32 in"),
    ):
        other = replace(graph, tensors=tuple(replace(t, **change) for t in graph.tensors))
        with pytest.raises(InputError, match=words):
            bind(other, program, matched, "direct")
