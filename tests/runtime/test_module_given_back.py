"""Modules in memory and what else holds their weights: given back whole when `apply` fails, right wherever they are."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.runtime import arena
from tensorstow.runtime.module import executor as module_executor

from .small_module import Small, tokens

pytestmark = pytest.mark.usefixtures("no_measuring", "one_thread")

BUDGET = "900KiB"


def mlp(layers: int = 6, width: int = 256) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.GELU())]).eval()


def plan_of(module: nn.Module, *inputs: torch.Tensor, dram: str = BUDGET) -> ts.PlanFile:
    return ts.plan(module, inputs, machine=ts.Machine.detect(dram=dram), time_limit_s=2.0)


def attributes(module: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(part)) for name, part in module.named_modules()}


def open_files() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "available_nbytes", lambda: 4096)


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)


def stopped_before_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_executor.Weights, "bind", interrupted)


def stopped_in_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstow.runtime.module.install._wrap", interrupted)


def stopped_behind_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstow.moe_runs.install_experts", interrupted)


def stopped_in_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_executor.ModuleExecutor, "load", interrupted)


FAILURES: list[Callable[[pytest.MonkeyPatch], None]] = [
    no_memory,
    no_threads,
    stopped_before_the_module,
    stopped_in_the_module,
    stopped_behind_the_module,
    stopped_in_the_load,
]


@pytest.fixture(scope="module")
def planned(no_measuring_module: None) -> tuple[ts.PlanFile, torch.Tensor]:
    inputs = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    return plan_of(mlp(), inputs), inputs


@pytest.fixture(scope="module")
def no_measuring_module() -> Iterator[None]:
    from tensorstow import workflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "measure_fixed", lambda file: 100 << 20)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        yield


@pytest.mark.parametrize("failure", FAILURES, ids=lambda f: f.__name__)
def test_a_failure_leaves_the_module_as_it_was(
    planned: tuple[ts.PlanFile, torch.Tensor], failure: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plan, inputs = planned
    module, fresh = mlp(), mlp().state_dict()
    objects, had = {n: id(p) for n, p in module.named_parameters()}, attributes(module)
    with torch.no_grad():
        expected = module(inputs)
    descriptors = open_files()
    with pytest.MonkeyPatch.context() as patch:
        failure(patch)
        with pytest.raises((KeyboardInterrupt, ts.ExecutionError)):
            ts.apply(plan, module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    assert {n: id(p) for n, p in module.named_parameters()} == objects
    assert attributes(module) == had
    assert torch.get_num_threads() == 1
    assert open_files() == descriptors
    with torch.no_grad():
        assert torch.equal(module(inputs), expected)
    applied: Any = ts.apply(plan, module)
    assert torch.equal(applied(inputs), expected)
    applied.tensorstow.close()


def test_a_module_is_given_back_when_that_is_asked(planned: tuple[ts.PlanFile, torch.Tensor]) -> None:
    plan, inputs = planned
    module, fresh = mlp(), mlp().state_dict()
    had = attributes(module)
    applied: Any = ts.apply(plan, module)
    expected = applied(inputs)
    applied.tensorstow.give_back()
    assert attributes(module) == had
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    with torch.no_grad():
        assert torch.equal(module(inputs), expected)


def test_a_weight_has_one_plan(planned: tuple[ts.PlanFile, torch.Tensor]) -> None:
    plan, inputs = planned
    module: Any = ts.apply(plan, mlp())
    expected, other = module(inputs), mlp()
    other[2].weight = module[2].weight
    before = {n: p.detach().clone() for n, p in other.named_parameters() if n != "2.weight"}
    for again in (module, other):
        with pytest.raises(ts.InputError, match=r"weight' is run by a plan already.*give_back"):
            ts.apply(plan, again)
    assert torch.equal(module(inputs), expected)
    assert all(torch.equal(other.get_parameter(n), value) for n, value in before.items())
    module.tensorstow.close()


class Tied(nn.Module):
    """A body whose table is the matrix of the head, which is no part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Small(64)
        self.lm_head = nn.Linear(64, 100, bias=False)
        self.lm_head.weight = self.model.table.weight

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(given) @ self.model.table.weight)


class Helper:
    """No module, and holds a parameter."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


def test_weights_that_others_hold_are_right_there() -> None:
    torch.manual_seed(0)
    whole = Tied().eval()
    given, hidden = tokens(1, 2, 5), torch.randn(3, 64)
    weight = whole.model.table.weight
    helper, variable = Helper(weight), whole.model.layers[0].get_parameter("up.weight")
    optimizer = torch.optim.SGD(whole.parameters())
    with torch.no_grad():
        expected, head, total = whole(given), whole.lm_head(hidden), variable.sum()
    values = weight.detach().clone()
    ts.apply(plan_of(whole.model, given, dram="200KiB"), whole.model)
    assert torch.equal(whole(given), expected)
    assert torch.equal(whole.lm_head(hidden), head)
    assert torch.equal(hidden @ helper.weight.t(), head)
    assert torch.equal(variable.sum(), total)
    assert torch.equal(whole.state_dict()["lm_head.weight"], values)
    assert any(p is whole.model.table.weight for p in optimizer.param_groups[0]["params"])
    whole.model.tensorstow.close()  # pyright: ignore
    with pytest.raises(ts.ExecutionError, match="closed"):
        whole.lm_head(hidden)


def test_the_memory_of_weights_that_others_hold_is_free() -> None:
    module: Any = mlp(width=264)  # no other test's
    total = sum(p.nbytes for p in module.parameters())
    held, weak = list(module.parameters()), [weakref.ref(p) for p in module.parameters()]
    ts.apply(plan_of(module, torch.zeros(4, 264)), module)
    for parameter, known, found in zip(module.parameters(), held, weak, strict=True):
        assert known is parameter
        assert found() is parameter
    gc.collect()
    left = [t for t in gc.get_objects() if type(t) is nn.Parameter and t.shape == (264, 264)]
    blocks = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in left)}
    assert sum(blocks.values()) < total * 2 // 3  # the arena
    module.tensorstow.close()


def test_a_forgotten_module_is_closed(planned: tuple[ts.PlanFile, torch.Tensor]) -> None:
    plan, inputs = planned
    descriptors = open_files()
    module = ts.apply(plan, mlp())
    module(inputs)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
    assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())
    assert open_files() == descriptors


def test_an_output_of_before_is_not_differentiated_with_other_weights() -> None:
    module: Any = mlp()
    before = module(torch.zeros(4, 256)).sum()
    ts.apply(plan_of(module, torch.zeros(4, 256)), module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()
    module.tensorstow.close()


def test_the_store_ends_with_the_executor(planned: tuple[ts.PlanFile, torch.Tensor]) -> None:
    plan, inputs = planned
    descriptors = open_files()
    module: Any = ts.apply(plan, mlp())
    module(inputs)
    assert open_files() > descriptors
    module.tensorstow.close()
    module.tensorstow.close()
    assert open_files() == descriptors


def test_planned_applied_and_run_in_inference_mode() -> None:
    with torch.inference_mode():
        module, inputs = mlp(), torch.randn(4, 256)  # the parameters are made here, too
        assert next(module.parameters()).is_inference()
        expected = module(inputs)
        applied = ts.apply(plan_of(module, inputs), module)
        assert torch.equal(applied(inputs), expected)
    assert torch.equal(applied(inputs.clone()), expected)
    for _ in range(2):
        for name, value in mlp().state_dict().items():
            assert torch.equal(module.state_dict()[name], value), name
        if "tensorstow" in vars(module):
            applied.tensorstow.give_back()  # pyright: ignore
    with torch.inference_mode():
        assert torch.equal(module(inputs), expected)


class Turned(nn.Module):
    """Buffers, above the size from which on they are placed, that PyTorch keeps as the conjugate of what is stored."""

    f: torch.Tensor
    z: torch.Tensor
    n: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        z = torch.randn(400, 400, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        self.register_buffer("z", z)
        self.register_buffer("f", z.conj())
        self.register_buffer("n", z.conj().imag)
        self.last = nn.Linear(400, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(((x.to(torch.complex64) @ self.f) @ self.z).real) @ self.n


def test_a_conjugate_stays_one() -> None:
    torch.manual_seed(0)
    module: Any = Turned().eval()
    assert module.f.is_conj()
    assert module.n.is_neg()
    x = torch.randn(2, 400)
    with torch.no_grad():
        expected, values = module(x), module.f.clone()
    ts.apply(plan_of(module, x, dram="4MiB"), module)
    assert torch.equal(module(x), expected)
    assert torch.equal(module.f, values)
    module.tensorstow.close()
