"""Tests of planner/pytorch: matching.py and binding.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.program import BlobSource, Lookup, ModuleProgram, Parameter
from tensorstow.planner.pytorch.binding import bind, choose_reading, kept_names, repacked_nbytes
from tensorstow.planner.pytorch.matching import match
from tensorstow.planner.pytorch.tensors import WeightFiles
from tensorstow.planner.pytorch.weights import open_weights
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.store import WeightStore
from tensorstow.runtime.store_files import FileStore

from .checkpoints import memory_of, save_aligned


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
