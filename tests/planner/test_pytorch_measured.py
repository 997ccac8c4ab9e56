from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tensorstow.ir.machine import Unit
from tensorstow.ir.signature import read_signature
from tensorstow.planner.costs import duration_ns
from tensorstow.planner.pytorch import OpLowered, lower_module
from tensorstow.planner.pytorch.measured import requests, signatures, with_measured
from tensorstow.runtime.torch_rates import measure

UNIT = Unit("cpu", "dram", (("float32", 1e9),), 1e9, launch_s=1e-6)


class Net(nn.Module):
    """Two equal layers, a product with a view of a weight, a chunked weight, an index and a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.w = nn.Parameter(torch.ones(8, 4))
        self.pair = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(self.a(x)))
        y = x @ self.w.t().transpose(0, 1)
        left, right = self.pair.chunk(2)
        y = torch.cat([y * left, y * right], dim=-1)
        return y.to(torch.float64)[torch.tensor([0, 0])].add_(1.5)


@pytest.fixture(scope="module")
def lowered() -> OpLowered:
    with torch.device("meta"):
        module = Net().eval()
        return lower_module(module, (torch.ones(3, 8),), {}, name="net")


def test_a_signature_tells_all_but_the_values(lowered: OpLowered) -> None:
    calls = [read_signature(s) for s in signatures(lowered).values()]
    by_op = {c.op: c for c in calls}
    x, weight, bias = by_op["aten.linear.default"].tensors
    assert (x.shape, x.weight) == ((3, 8), False)
    assert (weight.shape, weight.strides, weight.weight, bias.weight) == ((8, 8), (8, 1), True, True)
    assert [t.weight for t in by_op["aten.matmul.default"].tensors] == [False, True]  # a view of a view of a weight
    assert [t.weight for c in calls if c.op == "aten.mul.Tensor" for t in c.tensors] == [False, True] * 2
    assert [t.weight for t in by_op["aten.cat.default"].tensors] == [False, False]
    assert by_op["aten.add_.Tensor"].args[1] == 1.5


def test_equal_calls_are_measured_once_and_views_too(lowered: OpLowered) -> None:
    asked = requests(lowered, UNIT)
    ops = {read_signature(r.signature).op: r for r in asked}
    assert len({r.signature for r in asked}) == len(asked)
    assert ops["aten.linear.default"].calls == 2
    assert ops["aten.linear.default"].nbytes >= 4 * 8 * 8
    assert ops["aten.transpose.int"].nbytes == 0
    assert not any(op.startswith("aten._assert") for op in ops)
    of = next(o for o in lowered.graph.operators if o.op_type == "aten.linear.default")
    assert ops["aten.linear.default"].formula_ns == duration_ns(of, UNIT)


def test_measured_times_python_and_views_add_up(lowered: OpLowered) -> None:
    calls = signatures(lowered)
    times = {s: 1000 + k for k, s in enumerate(dict.fromkeys(calls.values()))}
    measured = with_measured(lowered, UNIT, times, python_ns=12_345)
    known = sum(times[s] for s in calls.values())
    unknown = [o for o in lowered.graph.operators if o.id not in calls]
    assert sum(o.measured_ns or 0 for o in measured.graph.operators) >= known + 12_345
    if not unknown:
        assert sum(o.measured_ns or 0 for o in measured.graph.operators) == known + 12_345


def test_what_was_not_measured_is_corrected_as_its_class_is(lowered: OpLowered) -> None:
    calls = signatures(lowered)
    ops = lowered.graph.operators
    products = [o for o in ops if o.op_type in ("aten.linear.default", "aten.matmul.default")]
    assert len({o.cost_class for o in products}) >= 1
    linear = products[0]
    times = {calls[linear.id]: 3 * duration_ns(linear, UNIT)}
    measured = with_measured(lowered, UNIT, times).graph
    for op in ops:  # one class was measured: it stands for itself and, for want of better, for the others
        assert measured.operator[op.id].measured_ns == pytest.approx(3 * duration_ns(op, UNIT), abs=1)


def test_without_times_the_formulas_stay(lowered: OpLowered) -> None:
    measured = with_measured(lowered, UNIT, {}).graph
    assert [o.measured_ns for o in measured.operators] == [duration_ns(o, UNIT) for o in lowered.graph.operators]


def test_all_that_a_module_calls_can_be_measured(
    lowered: OpLowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    found = measure(requests(lowered, UNIT), threads=1, budget_s=20)
    assert not found.skipped
    assert set(found.times) == set(signatures(lowered).values())
