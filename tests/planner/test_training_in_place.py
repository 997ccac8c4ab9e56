"""Results in the storages of operands that end there: what is merged, what is not, and that kernels bear it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tensorstow.planner.instance import make_instance
from tensorstow.planner.training import KEPT, lower_joint, placed
from tensorstow.planner.training.in_place import BY_ELEMENTS, BY_ROWS, results_in_place
from tensorstow.planner.training.lowered import StepLowered
from tensorstow.runtime.training.joint import capture_joint

from ..runtime.training_steps import box

ROWS, WIDTH, CLASSES = 64, 32, 1000
LOGITS_NBYTES = 4 * ROWS * CLASSES
aten = torch.ops.aten


class Classifier(nn.Module):
    """Residual layers, and logits that are wider than all else. `dim`: where the classes are."""

    def __init__(self, dim: int = -1, half: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.dim, self.half_ = dim, half

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[rows, WIDTH] and [rows] to the loss."""
        for layer in self.layers:
            x = x + functional.gelu(layer(x))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half_):
            logits = self.head(x)
        if self.dim == 1:
            return functional.cross_entropy(logits.t().unsqueeze(0), y.unsqueeze(0))
        return functional.cross_entropy(logits, y)


def both(**options: Any) -> tuple[StepLowered, StepLowered]:
    """The step as autograd has it, and with results in place."""
    torch.manual_seed(0)
    batch = torch.randn(ROWS, WIDTH), torch.randint(CLASSES, (ROWS,))
    joint = capture_joint(Classifier(**options), batch)
    plain = lower_joint(joint, name="classifier")
    return plain, results_in_place(plain, joint)


def check_contents(plain: StepLowered, merged: StepLowered) -> None:
    """Every operator of `merged` finds in its operands' storages what it finds in `plain`, where nothing overwrites."""
    holds = {s.id: s.id for s in merged.graph.storages}
    turned = False
    for old, new in zip(plain.graph.operators, merged.graph.operators, strict=True):
        assert old == new
        turned = turned or new.id == plain.turn
        for t in old.inputs:
            was, now = plain.graph.tensor[t].storage, merged.graph.tensor[t].storage
            assert now is None or holds[now] == was, f"{new.id} reads '{t}', which was overwritten"
        for t in old.outputs:
            was, now = plain.graph.tensor[t].storage, merged.graph.tensor[t].storage
            if now is not None and was is not None:
                assert now == was or turned, "before the turn all may be called again"
                assert merged.graph.storage[now].nbytes == plain.graph.storage[was].nbytes
                holds[now] = was
    kept = {t: s.storage for t, s in merged.graph.tensor.items()}
    for s in plain.fixed:
        assert s in merged.graph.storage
        assert all(kept[t.id] == s for t in plain.graph.tensors if t.storage == s)


def largest(step: StepLowered) -> int:
    graph = placed(step, KEPT, key="").graph
    return max(make_instance(graph, box(1 << 40), mode="training").base_nbytes)


def test_the_gradient_of_the_logits_lies_where_that_of_their_logarithms_lay() -> None:
    plain, merged = both()
    check_contents(plain, merged)
    by_type = {op.op_type: op for op in merged.graph.operators}
    above, below = by_type["aten.nll_loss_backward.default"], by_type["aten._log_softmax_backward_data.default"]
    assert merged.graph.writes(below) == merged.graph.writes(above)
    assert largest(plain) == 3 * LOGITS_NBYTES
    assert largest(merged) == 2 * LOGITS_NBYTES, "operand, result over the other operand"
    gelu = [op for op in merged.graph.operators if op.op_type == "aten.gelu_backward.default"]
    assert len(gelu) == 3
    assert sum(set(merged.graph.writes(op)) <= set(merged.graph.reads(op)) for op in gelu) == 3


@pytest.mark.parametrize("options", [{"dim": 1}, {"half": True}], ids=["classes in the middle", "two types"])
def test_what_is_not_sure_stays_apart(options: dict[str, Any]) -> None:
    plain, merged = both(**options)
    check_contents(plain, merged)
    for op in merged.graph.operators:
        if op.op_type == "aten._log_softmax_backward_data.default" and "dim" in options:
            assert set(merged.graph.writes(op)).isdisjoint(merged.graph.reads(op))
        types = {merged.graph.tensor[t].dtype for t in (*op.inputs, *op.outputs)}
        if len(types) > 1 and op.op_type.startswith("aten."):
            assert set(merged.graph.writes(op)).isdisjoint(merged.graph.reads(op)), op.id


class Twice(nn.Module):
    """A gradient that two operators read."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(ROWS, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[ROWS, WIDTH] to the loss."""
        y = torch.tanh(x * self.w)
        return (torch.sigmoid(y) * torch.tanh(y)).sum()


def test_what_is_read_later_is_not_written_over() -> None:
    joint = capture_joint(Twice(), (torch.randn(ROWS, WIDTH),))
    plain = lower_joint(joint, name="twice")
    merged = results_in_place(plain, joint)
    check_contents(plain, merged)
    assert len(merged.graph.storages) < len(plain.graph.storages)


ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    aten.add.Tensor: ("x", "y"),
    aten.sub.Tensor: ("x", "y"),
    aten.mul.Tensor: ("x", "y"),
    aten.div.Tensor: ("x", "y"),
    aten.neg.default: ("x",),
    aten.gelu_backward.default: ("x", "y"),
    aten.silu_backward.default: ("x", "y"),
    aten.sigmoid_backward.default: ("x", "y"),
    aten.tanh_backward.default: ("x", "y"),
    aten.threshold_backward.default: ("x", "y", 0.1),
    aten.leaky_relu_backward.default: ("x", "y", 0.1, False),
    aten.elu_backward.default: ("x", 1.0, 1.0, 1.0, False, "y"),
    aten._log_softmax_backward_data.default: ("x", "y", 1, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.name())
def test_kernels_write_over_their_operands_with_the_same_bits(function: Any, dtype: torch.dtype) -> None:
    """Odd sizes, above what one thread takes, so that vectors have rests and rows are shared out."""
    torch.manual_seed(0)
    packet = getattr(aten, function.name().split("::")[1].split(".")[0])
    out = next(getattr(packet, o) for o in packet.overloads() if o in ("out", "grad_input"))
    name = next(a.name for a in out._schema.arguments if a.is_out)
    for over in ("x", "y"):
        if over not in ARGUMENTS[function] or (over == "y" and function in BY_ROWS):
            continue
        values = {"x": torch.randn(301, 1237).to(dtype), "y": torch.randn(301, 1237).abs().to(dtype)}

        def given(values: dict[str, torch.Tensor] = values) -> list[Any]:
            found = [values.get(a, a) if isinstance(a, str) else a for a in ARGUMENTS[function]]
            return [dtype if a is None else a for a in found]

        wanted = function(*given())
        got = out(*given(), **{name: values[over]})
        assert got.data_ptr() == values[over].data_ptr()
        assert torch.equal(got, wanted)


def test_every_kernel_that_may_is_tried() -> None:
    assert set(ARGUMENTS) == BY_ELEMENTS | BY_ROWS
