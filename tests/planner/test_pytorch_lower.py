"""From modules to operators over tensors: what shares memory, what is written, what is held, what is left untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, StorageKind
from tensorstow.planner.pytorch import OpLowered, live_nbytes, lower_module
from tensorstow.planner.validate import faults, predecessors

from ..graphs import machine
from ..modules import Attention, Borrowing, Cache, Cached, Decoder, InPlace, Mlp, ResNet


def lower(module: nn.Module, *args: Any, **kwargs: Any) -> OpLowered:
    """Lowered and found to be sound."""
    lowered = lower_module(module.eval(), args, kwargs, name="model")
    assert not list(faults(lowered.graph, machine(1 << 30)))
    assert list(lowered.calls) == [o.id for o in lowered.graph.operators]
    return lowered


def storage(graph: Graph, tensor: str) -> str | None:
    return graph.tensor[tensor].storage


def test_parameters_once_views_for_nothing_and_outputs() -> None:
    lowered = lower(Decoder(), torch.zeros(2, 7, dtype=torch.int64))
    graph = lowered.graph
    weights = {s.id: s.nbytes for s in graph.storages if s.kind is StorageKind.WEIGHT}
    assert weights == {n: p.numel() * 4 for n, p in Decoder().named_parameters()}
    assert lowered.weights["table.weight"].names == ("table.weight", "head.weight")
    renaming = ("view", "transpose", "chunk", "alias", "detach", "expand", "slice")
    assert not [o for o in graph.operators if o.op_type.split(".")[1] in renaming]
    (logits,) = graph.outputs
    assert graph.tensor[logits].shape == (2, 7, 512)
    assert graph.storage[storage(graph, logits) or ""].kind is StorageKind.OUTPUT
    assert {lowered.calls[o.id].module for o in graph.operators if "mlps.1.down.weight" in o.inputs} == {"mlps.1.down"}


def test_views_lie_in_their_base_at_the_range_they_cover() -> None:
    lowered = lower(Attention(), torch.zeros(2, 7, 64))
    graph = lowered.graph
    attention = next(o for o in graph.operators if o.cost_class == "attention")
    query, key, value = (graph.tensor[t] for t in attention.inputs)
    assert {query.storage, key.storage, value.storage} == {"linear"}
    assert [t.offset for t in (query, key, value)] == [0, 64 * 4, 128 * 4]
    assert query.shape == (2, 4, 7, 16)
    assert query.nbytes == (13 * 192 + 64) * 4  # to the last row's own third


def test_writes_in_place_are_versions_that_later_readers_wait_for() -> None:
    lowered = lower(InPlace(), torch.zeros(5, 64))
    graph = lowered.graph
    by_type = {o.op_type.split(".")[1] + "/" + str(i): o for i, o in enumerate(graph.operators)}
    made = {o.op_type: [storage(graph, t) for t in o.outputs] for o in by_type.values()}
    assert made["aten.mul_.Tensor"] == ["linear"]
    assert made["aten.mul.Tensor"] != ["linear"]
    names = [o.op_type for o in graph.operators]
    last = names.index("aten.mul.Tensor")
    assert names.index("aten.mul_.Tensor") in predecessors(graph)[last]
    assert lowered.weights["counts"].written
    assert not lowered.weights["linear.weight"].written
    assert graph.storage["counts"].kind is StorageKind.CONSTANT


def test_the_module_and_its_tensors_are_left_as_they_were() -> None:
    class Odd(nn.Module):
        """Keeps weights in a list and in a dict, notes what it sees, and has hooks that set attributes."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.utils.weight_norm(nn.Linear(64, 64))
            self.lstm = nn.LSTM(64, 64)
            self.norm = nn.BatchNorm1d(64)
            self.all = [*self.linear.parameters()]
            self.named = {"bias": self.linear.bias}
            self.log: list[object] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.log.append(x.shape)
            self.seen = x
            y, _ = self.lstm(self.linear(x) + self.named["bias"])
            return self.norm(nn.functional.dropout(y))

    for device in ("cpu", "meta"):
        module = Odd().to(device).train()
        held = [(n, id(v), v._version) for n, v in (*module.named_parameters(), *module.named_buffers())]  # pyright: ignore[reportPrivateUsage]
        attributes = [{k: id(v) for k, v in vars(m).items()} for m in module.modules()]
        flat = [id(w) for w in module.lstm._flat_weights]  # pyright: ignore[reportPrivateUsage]
        x = torch.ones(5, 64)
        torch.manual_seed(3)
        lowered = lower_module(module, (x,), {}, name="odd")
        drawn, _ = torch.rand(1), torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(1))
        now = [(n, id(v), v._version) for n, v in (*module.named_parameters(), *module.named_buffers())]  # pyright: ignore[reportPrivateUsage]
        assert held == now
        assert attributes == [{k: id(v) for k, v in vars(m).items()} for m in module.modules()]
        assert flat == [id(w) for w in module.lstm._flat_weights]  # pyright: ignore[reportPrivateUsage]
        assert module.training
        assert module.log == []
        assert torch.equal(x, torch.ones(5, 64))
        assert {s.id for s in lowered.graph.storages if s.kind is StorageKind.WEIGHT} == set(
            dict(module.named_parameters())
        )
        assert lowered.weights["norm.running_mean"].written


def test_a_cache_in_an_object_may_be_dropped_when_it_is_replaced() -> None:
    seen, x = torch.zeros(1, 1000, 64, device="meta"), torch.zeros(1, 1, 64)
    cache = Cache(seen)
    lowered = lower(Cached().to("meta"), x, cache=cache)
    assert cache.seen is seen
    graph = lowered.graph
    assert graph.inputs == ("0", "cache.seen")
    assert [graph.tensor[t].shape for t in graph.outputs] == [(1, 1, 64), (1, 1001, 64)]
    position = [o.op_type for o in graph.operators].index("aten.cat.default")
    assert lowered.last["cache.seen"] == position
    live = live_nbytes(lowered)
    assert live[position] > 2 * 1000 * 256
    assert live[-1] < 2 * 1000 * 256 < live[position] < 3 * 1000 * 256


def test_an_activation_is_held_as_long_as_python_names_it() -> None:
    class Holding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            named = x + 1
            y = named * 2
            y = y.exp().tanh()
            return y.sum()

    lowered = lower(Holding(), torch.zeros(8))
    ids = [o.id for o in lowered.graph.operators]
    assert ids == ["add", "mul", "exp", "tanh", "sum_1"]
    assert lowered.last["add"] == 4  # a local variable, until the call returns
    assert lowered.last["mul"] == 3  # rebound when tanh has returned
    assert lowered.last["exp"] == 3  # an argument of tanh


def test_calls_have_module_and_ordinal_and_regions_are_part_of_the_whole() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.inner(x)
            with torch.enable_grad():
                return self.inner(x) * y

    lowered = lower(Twice(), torch.zeros(3, 64))
    calls = [(lowered.calls[o.id].module, lowered.calls[o.id].ordinal) for o in lowered.graph.operators]
    assert calls == [("inner", 0), ("inner", 1), ("", 0)]
    graph = lowered.graph
    assert [graph.tensor[o.outputs[0]].dtype for o in graph.operators] == ["bfloat16", "float32", "float32"]
    assert set(graph.operators[2].inputs) == {t for o in graph.operators[:2] for t in o.outputs}


def test_shapes_that_depend_on_data_are_outside_the_plan() -> None:
    class Where(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (x > 0).nonzero(), x * 2

    graph = lower(Where(), torch.zeros(4, 4)).graph
    where = graph.tensor[graph.outputs[0]]
    assert (where.shape, where.storage, where.dtype) == (None, None, "opaque")


def test_a_convolutional_network() -> None:
    lowered = lower(ResNet(), torch.zeros(2, 3, 64, 64))
    assert {w.names[0] for w in lowered.weights.values() if not w.is_buffer} == set(dict(ResNet().named_parameters()))
    assert [o.cost_class for o in lowered.graph.operators].count("conv_nchw") == 4
    assert not any(w.written for w in lowered.weights.values())


def test_weights_that_are_not_row_major_or_shared_by_their_bytes() -> None:
    module = Borrowing()
    module.child.weight = nn.Parameter(torch.randn(64, 64).t(), requires_grad=False)
    module.other.weight = nn.Parameter(module.child.weight.detach(), requires_grad=False)
    lowered = lower(module, torch.zeros(3, 64))
    (weight,) = lowered.weights.values()
    assert weight.names == ("child.weight", "other.weight")
    assert weight.strides == (1, 64)
    assert weight.dense
    sliced = nn.Linear(64, 64, bias=False)
    sliced.weight = nn.Parameter(torch.randn(64, 128)[:, ::2])
    assert not lower(sliced, torch.zeros(3, 64)).weights["weight"].dense


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool((x.sum() > 0).item()) else x


class Silent(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return x.shape[0]


@pytest.mark.parametrize(
    ("make", "inputs", "said"),
    [
        (Branching, (torch.zeros(3),), "torch.export says"),
        (Mlp, (torch.zeros(2, 65),), "torch.export says: RuntimeError"),
        (Mlp, (), "missing 1 required positional argument"),
        (Silent, (torch.zeros(3),), "returns no tensor"),
        (Mlp, (torch.zeros(2, 64).to_sparse(),), "layout torch.sparse_coo"),
    ],
)
def test_what_cannot_be_lowered_says_why(
    make: Callable[[], nn.Module], inputs: tuple[torch.Tensor, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=said):
        lower_module(make(), inputs, {}, name="bad")
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err


def test_a_module_and_inputs_on_several_devices() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode  # stands in for a device that is not there

    with FakeTensorMode():
        elsewhere = torch.zeros(2, 64, device="cuda")
    with pytest.raises(InputError, match=r"'gate.weight' is on 'cpu' and input tensor 0 on 'cuda"):
        lower_module(Mlp(), (elsewhere,), {}, name="bad")
