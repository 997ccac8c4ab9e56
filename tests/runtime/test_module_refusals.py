"""Tests of runtime/module/: what is refused, what is told of weights that are elsewhere, and what is left behind."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.graph import StorageKind
from tensorstow.ir.machine import TierKind
from tensorstow.ir.plan import Residency
from tensorstow.ir.program import Lookup
from tensorstow.runtime.module import ModuleExecutor

from .recorded import Recorded, record
from .small_module import Small, small, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def recorded(folder: Path, **options: Any) -> Recorded:
    torch.manual_seed(0)
    module = Small().eval()
    return record(module, lambda: module(tokens(1, 2, 5)), folder, **options)


def test_a_lazy_parameter_tells_what_it_is(tmp_path: Path) -> None:
    module, _, executor = small(tmp_path, 0.0)
    with executor:
        gates: Any = module.layers[0].gates
        assert isinstance(gates, nn.Parameter)
        assert (gates.shape, gates.dtype, gates.device) == ((128, 32), torch.float32, torch.device("cpu"))
        assert (gates.stride(), gates.numel(), gates.dim(), len(gates)) == ((32, 1), 4096, 2, 128)
        assert (gates.requires_grad, gates.is_contiguous(), gates.is_shared()) == (True, True, False)
        assert gates.to("cpu") is gates
        assert gates.float() is gates
        assert gates.to(torch.float32, copy=False) is gates
        assert gates.data.shape == gates.shape
        assert module.head.weight is module.table.weight
        assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in Small().parameters())
        assert "128, 32" in str(gates.shape)
        assert "nan" not in repr(gates)
        assert inspect.signature(module.forward) == inspect.signature(Small().forward)


def test_the_state_is_right_wherever_it_is_looked_at(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = Small().state_dict()
    module, _, executor = small(tmp_path, 0.0)
    with executor:
        state = module.state_dict()
        assert list(state) == list(expected)
        saved = io.BytesIO()
        torch.save(state, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=True)
        for name, value in expected.items():
            assert torch.equal(state[name], value)
            assert torch.equal(loaded[name], value)
            assert (state[name].numpy() == value.numpy()).all()
            assert state[name].tolist() == value.tolist()
            assert torch.equal(copy.deepcopy(state[name]), value)
            assert torch.equal(state[name].double(), value.double())
        other = Small()
        other.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), Small.parameters(other), strict=True))
        assert torch.equal(other.head.weight, expected["head.weight"])


def save(module: nn.Module) -> None:
    torch.save(module, io.BytesIO())


def test_copies_pickles_and_changes_are_refused(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.0)
    with executor:
        for attempt in (copy.deepcopy, copy.copy, pickle.dumps, save):
            for whole in (module, module.layers[0], nn.Sequential(module)):
                if attempt is copy.copy and isinstance(whole, nn.Sequential):
                    continue  # a shallow copy shares its parts
                with pytest.raises(InputError, match="neither copied nor pickled"):
                    attempt(whole)
        with pytest.raises(InputError, match="load before planning"):
            module.load_state_dict(Small().state_dict())
        gates: Any = module.layers[0].gates
        other = torch.zeros(128, 32)
        writes: list[Callable[[], object]] = [
            lambda: gates.zero_(),
            lambda: nn.init.normal_(gates),
            lambda: gates.copy_(other),
            lambda: gates.__setitem__(0, 1.0),
            lambda: gates.__iadd__(1),
            lambda: gates.view(-1).mul_(2),
            lambda: torch.add(other, other, out=gates),
            lambda: setattr(gates, "data", other),
            lambda: torch._foreach_add_([gates], 1.0),  # pyright: ignore
            lambda: torch.relu_(gates),
            lambda: torch.ops.aten.relu_(gates),
        ]
        for write in writes:
            with pytest.raises(InputError, match="cannot be changed"):
                write()
        gates.requires_grad_(False)
        gates.grad = None
        for ask in (gates.data_ptr, gates.untyped_storage, lambda: gates.view(-1).data_ptr()):
            with pytest.raises(InputError, match=r"no memory of its own.*clone"):
                ask()
        for inputs, expected in cases:
            assert torch.equal(module(inputs), expected)


def test_a_write_that_hides_is_found(tmp_path: Path) -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(64, 64))
            self.last = nn.Linear(64, 64)
            self.sly = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.sly:
                nn.functional.relu(self.w, inplace=True)
            return self.last(x @ self.w)

    module = Sly().eval()
    x = torch.randn(2, 64)
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(1.0):
        for module.sly in (False, True, False):
            if module.sly:
                with pytest.raises(InputError, match=r"'w' cannot be changed"):
                    module(x)
            else:
                assert torch.equal(module(x), expected)


def test_conversions_that_change_nothing_are_allowed(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.0, kept_nbytes=256)
    with executor:
        assert module.to("cpu").float().to(torch.float32).cpu().eval() is module
        for change in (module.half, module.double, module.bfloat16, lambda: module.layers[1].half()):
            with pytest.raises(InputError, match=r"placed by a plan with dtype torch\.float32, it cannot become"):
                change()
        with pytest.raises(InputError, match="device"):
            module.to("meta")
        with pytest.raises(InputError, match="values cannot be changed or shared"):
            module.share_memory()
        module.requires_grad_(False)
        for inputs, expected in cases:
            assert torch.equal(module(inputs), expected)


def test_a_closed_executor_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.0, looked_up=["table"])
    inputs, expected = cases[0]
    assert torch.equal(module(inputs), expected)
    executor.close()
    executor.close()
    assert executor.closed
    uses: list[Callable[[], object]] = [
        lambda: module(inputs),
        lambda: executor.run(inputs),
        executor.load,
        executor.io_only,
        lambda: executor.compute_only(inputs),
        lambda: module.head(torch.zeros(1, 32)),
        lambda: torch.sum(module.layers[0].gates),
        lambda: module.state_dict()["head.weight"].numpy(),
        lambda: module.table(inputs),
    ]
    for use in uses:
        with pytest.raises(ExecutionError, match="closed"):
            use()
    assert module.head.weight.shape == (100, 32)
    assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())


def test_a_forgotten_module_is_closed(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.0)
    module(cases[0][0])
    del module, executor
    gc.collect()
    assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())


def test_a_module_is_planned_once(tmp_path: Path) -> None:
    made = recorded(tmp_path)
    plan, at = made.plan(0.5)
    with (
        ModuleExecutor(plan, made.graph, made.program, made.store, at, made.module),
        pytest.raises(InputError, match="run by a plan already"),
    ):
        ModuleExecutor(plan, made.graph, made.program, made.store, at, made.module)


def test_what_does_not_fit_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    made = recorded(tmp_path, looked_up=["table"])
    plan, at = made.plan(0.3)
    graph, program, module = made.graph, made.program, made.module
    before = {name: id(value) for name, value in module.named_parameters()}

    def refused(message: str, kind: type[Exception] = PlanMismatchError, **changes: Any) -> None:
        given: dict[str, Any] = {"plan": plan, "graph": graph, "program": program}
        given |= {"store": made.store, "machine": at, "module": module}
        with pytest.raises(kind, match=message):
            ModuleExecutor(**{**given, **changes})
        assert {name: id(value) for name, value in module.named_parameters()} == before
        assert "forward" not in module.__dict__
        assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())

    refused(r"planned with shape \[100, 32\], the module has \[100, 40\]", module=Small(width=40))
    tied = Small()
    tied.layers[0].gates = tied.layers[1].gates
    refused(r"'layers.0.gates' and 'layers.1.gates' are one tensor now, and were two", module=tied)
    refused(r"planned with dtype float32, the module has float16", module=Small().half())
    refused(r"calls 'layers\.2\S*', which the module does not have", module=Small(layers=2))
    fewer = replace(program, calls={op: name for op, name in program.calls.items() if "layers.2" not in name})
    refused(r"'layers\.2\.\S+'.*no such module", program=fewer, module=Small(layers=2))
    refused("TorchScript", InputError, module=torch.jit.script(nn.Linear(2, 2)))
    one = program.parameters[1]
    refused("placed twice", program=replace(program, parameters=(*program.parameters, one)))
    refused("which is no parameter of the program", program=replace(program, parameters=program.parameters[:-1]))
    lost = (replace(one, tensor="nothing"), *program.parameters[2:])
    refused("which is no weight of the graph", program=replace(program, parameters=(program.parameters[0], *lost)))
    op = next(iter(program.lookups))
    refused("looks up rows of 'head', which is a Linear", program=replace(program, calls={**program.calls, op: "head"}))
    wrong = {op: Lookup(program.lookups[op].blob, 50, 256)}
    refused(r"50 rows of 256 bytes.*\[100, 32\]", program=replace(program, lookups=wrong))
    refused("which the module does not have", program=replace(program, calls={**program.calls, "x": "elsewhere"}))
    changed = tuple(replace(s, kind=StorageKind.ACTIVATION) for s in graph.storages)
    refused("no weight of the graph", graph=replace(graph, storages=changed))
    gpu = replace(at, tiers=(replace(at.tiers[0], kind=TierKind.HBM), *at.tiers[1:]))
    refused(r"unit 'cpu' from tier 'dram' \(hbm\)", machine=gpu)
    third = replace(at, tiers=(*at.tiers, replace(at.tiers[0], name="far")))
    storage = graph.storages[1]
    middle = Residency(storage.id, "far", 0, storage.nbytes, 0, 0, 1)
    refused(
        "tier 'far' beside 'dram' and 'ssd'", machine=third, plan=replace(plan, residencies=(*plan.residencies, middle))
    )
    refused("needs bytes", plan=replace(plan, residencies=plan.residencies[1:]))
    cast(Any, module).layers[0].norm.to("meta")
    before = {name: id(value) for name, value in module.named_parameters()}
    kept = tuple(p for p in program.parameters if "norm" not in p.names[0])
    refused("it has no values; load them", InputError, program=replace(program, parameters=kept))
