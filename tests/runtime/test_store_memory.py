"""Tests of runtime/module/store_memory.py: parameters that move from memory into a nameless file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.graph import Graph, Storage, StorageKind, Tensor
from tensorstow.ir.program import BlobSource, ModuleProgram, Parameter
from tensorstow.runtime import directio, memory
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.module.store_memory import MemoryStore, store_module


def lowered(module: nn.Module, kept: tuple[str, ...] = ()) -> tuple[Graph, ModuleProgram]:
    """Graph and program that place all parameters but `kept`, a storage for each."""
    names: dict[int, list[str]] = {}
    found: dict[int, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in kept:
            names.setdefault(id(tensor), []).append(name)
            found[id(tensor)] = tensor
    storages, tensors, blobs, parameters = [], [], [], []
    for key, tensor in found.items():
        name, dtype = names[key][0], str(tensor.dtype).removeprefix("torch.")
        nbytes = tensor.numel() * tensor.element_size()
        strides = None if tensor.is_contiguous() else tuple(tensor.stride())
        storages.append(Storage(name, nbytes, StorageKind.WEIGHT, blob=name))
        tensors.append(Tensor(name, dtype, tuple(tensor.shape), name, nbytes))
        blobs.append(BlobSource(name, nbytes, dtype, tuple(tensor.shape)))
        parameters.append(Parameter(tuple(names[key]), name, strides))
    graph = Graph("m", tuple(storages), tuple(tensors), (), (), ())
    return graph, ModuleProgram("test", None, False, tuple(blobs), tuple(parameters), {})


class Net(nn.Module):
    """A tied pair, a transposed matrix, half precision, a buffer, a single element, nothing."""

    table: torch.Tensor

    def __init__(self, width: int = 300) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(width, 70).t())
        self.brief = nn.Parameter(torch.randn(7, 5).to(torch.bfloat16))
        self.register_buffer("table", torch.arange(2000))
        self.scale = nn.Parameter(torch.tensor(3.5))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.flags = nn.Parameter(torch.rand(9) > 0.5, requires_grad=False)


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def stored_bytes(store: MemoryStore, blob: str) -> bytes:
    nbytes = store.entries[blob].nbytes
    arena = Arena(nbytes + 1)
    store.read(blob, 0, arena.view(0, nbytes))
    found = bytes(arena.view(0, nbytes))
    arena.close()
    return found


def memory_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in the order of memory."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def test_bytes_go_to_the_file_and_come_back(tmp_path: Path) -> None:
    module = Net()
    before, objects = copied(module), {n: id(p) for n, p in module.named_parameters()}
    expected = {n: memory_bytes(t) for n, t in module.state_dict().items()}
    graph, program = lowered(module)
    store = store_module(program, graph, module, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    for blob in program.blobs:
        assert stored_bytes(store, blob.blob) == expected[blob.blob], blob.blob
    assert all(e.offset % 4096 == 0 for e in store.entries.values())
    for name, tensor in module.state_dict().items():
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
        assert tensor.untyped_storage().nbytes() <= 8
    store.restore()
    assert same(copied(module), before)
    assert module.head.weight is module.embed.weight
    assert module.turned.stride() == (1, 70)
    assert {n: id(p) for n, p in module.named_parameters()} == objects
    store.close()


def test_what_is_kept_is_not_touched(tmp_path: Path) -> None:
    module = Net()
    before = copied(module)
    graph, program = lowered(module, kept=("brief", "table"))
    with store_module(program, graph, module, folder=tmp_path):
        assert torch.equal(module.brief, before["brief"])
        assert torch.equal(module.table, before["table"])


def test_memory_is_given_back_one_by_one(tmp_path: Path) -> None:
    if not memory.reset_peak():
        pytest.skip("this system does not allow it")
    module = nn.Sequential(*(nn.Linear(2048, 1024, bias=False) for _ in range(8)))  # 8 MiB each
    graph, program = lowered(module)
    memory.reset_peak()
    before = memory.current_rss_nbytes()
    with store_module(program, graph, module, folder=tmp_path):
        assert memory.peak_rss_nbytes() - before < 12 << 20
        assert before - memory.current_rss_nbytes() > 50 << 20


def test_a_full_disk_leaves_the_module_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(*(nn.Linear(600, 700) for _ in range(8)))
    before, (graph, program) = copied(module), lowered(module)
    with monkeypatch.context() as patch:
        patch.setattr(directio, "free_nbytes", lambda _: 1000)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        with pytest.raises(ExecutionError, match=r"needs \d+ bytes of disk, 1000 bytes are free"):
            store_module(program, graph, module, folder=tmp_path)
    assert same(copied(module), before)
    calls, write = 0, os.pwritev

    def fails(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    monkeypatch.setattr(os, "pwritev", fails)
    with pytest.raises(ExecutionError, match="No space left"):
        store_module(program, graph, module, folder=tmp_path)
    assert calls > 3
    assert same(copied(module), before)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = nn.Sequential(*(nn.Linear(600, 700) for _ in range(8)))
    before, (graph, program) = copied(module), lowered(module)

    def interrupt(done: int, _: int) -> None:
        if done > 8 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_module(program, graph, module, folder=tmp_path, progress=interrupt)
    assert same(copied(module), before)


def test_a_module_that_is_not_the_planned_one(tmp_path: Path) -> None:
    graph, program = lowered(Net())
    other = Net(width=301)
    before = copied(other)
    with pytest.raises(InputError, match=r"'turned' has shape \[70, 301\] of .* for \[70, 300\]"):
        store_module(program, graph, other, folder=tmp_path)
    assert same(copied(other), before)
    halved = Net()
    halved.brief = nn.Parameter(halved.brief.float())
    with pytest.raises(InputError, match=r"of float32, the plan is for .* of bfloat16"):
        store_module(program, graph, halved, folder=tmp_path)
    straight = Net()
    straight.turned = nn.Parameter(straight.turned.contiguous())
    with pytest.raises(InputError, match=r"strides \[300, 1\], the plan is for \[1, 70\]"):
        store_module(program, graph, straight, folder=tmp_path)
    untied = Net()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(InputError, match=r"\['embed.weight', 'head.weight'\] were tied when the plan was made"):
        store_module(program, graph, untied, folder=tmp_path)
    with pytest.raises(InputError, match=r"no parameter or buffer 'turned'"):
        store_module(program, graph, nn.Linear(2, 2), folder=tmp_path)
    with pytest.raises(InputError, match="on device 'meta'"):
        store_module(program, graph, Net().to("meta"), folder=tmp_path)
    partial = ModuleProgram("test", None, False, program.blobs, program.parameters[1:], {})
    with pytest.raises(PlanMismatchError, match=r"blob 'turned' has 84000 bytes, .* end at byte 0"):
        store_module(partial, graph, Net(), folder=tmp_path)


def test_what_is_not_the_bytes_that_it_lies_on(tmp_path: Path) -> None:
    module = nn.ParameterDict({"z": nn.Parameter(torch.randn(40, 40, dtype=torch.complex64))})
    graph, program = lowered(module)
    module["z"] = nn.Parameter(torch.randn(40, 40, dtype=torch.complex64).conj())
    before = copied(module)
    with pytest.raises(InputError, match=r"'z' is the conjugate of what is in its memory.*resolve_conj"):
        store_module(program, graph, module, folder=tmp_path)
    assert same(copied(module), before)


def test_what_is_tied_since(tmp_path: Path) -> None:
    separate = nn.Sequential(*(nn.Linear(600, 600, bias=False) for _ in range(3)))
    graph, program = lowered(separate)
    tied = nn.Sequential(*(nn.Linear(600, 600, bias=False) for _ in range(3)))
    tied[2].weight = tied[0].weight
    before = copied(tied)
    with pytest.raises(InputError, match=r"'0.weight' and '2.weight' are tied, .* they were not"):
        store_module(program, graph, tied, folder=tmp_path)
    assert same(copied(tied), before)


class Overlapping(nn.Module):
    """A matrix that another parameter shows transposed, and a row and a column of it that nobody places."""

    row: torch.Tensor
    column: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(600, 700)
        self.encode = nn.Linear(300, 400, bias=False)
        self.decode = nn.Parameter(self.encode.weight.data.t())
        self.register_buffer("row", self.encode.weight.data[2])
        self.register_buffer("column", self.encode.weight.data[:, 3])
        self.after = nn.Sequential(nn.Linear(1500, 1600), nn.Linear(1500, 1600))


def overlaps(module: Overlapping) -> bool:
    """Whether what is written to the matrix is seen in all that shows it."""
    with torch.no_grad():
        module.encode.weight[2, 3] += 1
        value = module.encode.weight[2, 3]
        return bool(module.decode[3, 2] == value and module.row[3] == value and module.column[2] == value)


KEPT = ("row", "column")


def test_what_overlaps_in_memory_does_so_again(tmp_path: Path) -> None:
    module = Overlapping()
    before, (graph, program) = copied(module), lowered(module, KEPT)
    strides = {n: t.stride() for n, t in module.state_dict().items()}
    assert overlaps(module)
    before = copied(module)
    store = store_module(program, graph, module, folder=tmp_path)
    assert torch.equal(module.row, before["row"])
    assert torch.equal(module.column, before["column"])
    assert module.row.untyped_storage().nbytes() == 4 * 300  # nothing of the matrix stays
    assert module.column.stride() == (300,)
    store.restore()
    assert same(copied(module), before)
    assert {n: t.stride() for n, t in module.state_dict().items()} == strides
    assert overlaps(module)
    store.close()


def test_what_a_pass_writes_to_a_part_of_a_weight_is_there_afterwards(tmp_path: Path) -> None:
    module = Overlapping()
    graph, program = lowered(module, KEPT)
    with store_module(program, graph, module, folder=tmp_path) as store:
        module.row.fill_(7.0)
        store.restore()
    assert torch.equal(module.encode.weight[2], torch.full((300,), 7.0))
    assert overlaps(module)


def test_what_overlaps_does_so_after_an_interrupt(tmp_path: Path) -> None:
    for limit in range(0, 24 << 20, 4 << 20):
        module = Overlapping()
        before, (graph, program) = copied(module), lowered(module, KEPT)

        def interrupt(done: int, _: int, limit: int = limit) -> None:
            if done > limit:
                raise KeyboardInterrupt

        try:
            store_module(program, graph, module, folder=tmp_path, progress=interrupt).restore()
        except KeyboardInterrupt:
            assert same(copied(module), before)
            assert overlaps(module)
