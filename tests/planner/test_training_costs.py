"""Costs of backward operators: arithmetic against closed forms, workspaces against torch's own allocations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import fx, nn
from torch._C._profiler import _EventType  # pyright: ignore[reportPrivateUsage]
from torch._ops import OpOverload
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map_only

from tensorstow.planner.training.costs import call_cost
from tensorstow.runtime.training.joint import capture_joint


class Attending(nn.Module):
    """Projections around attention whose operands are large enough for their workspaces to show."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = nn.Linear(64, 192, bias=False)
        self.norm = nn.LayerNorm(64)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x.shape
        q, k, v = (t.view(rows, length, 4, 16).transpose(1, 2) for t in self.joined(self.norm(x)).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.drop(y.transpose(1, 2).reshape(x.shape)).square().mean()


class Convolving(nn.Module):
    """A convolution, a batch norm, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.second(functional.relu(self.norm(self.first(x))))).square().mean()


CASES = [(Attending, (4, 256, 64)), (Convolving, (4, 16, 48, 48))]


def nodes(module: type[nn.Module], shape: tuple[int, ...]) -> Iterator[fx.Node]:
    joint = capture_joint(module(), (torch.randn(shape),))
    for node in joint.module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            yield node


def allocated(node: fx.Node) -> int:
    """Bytes that a call allocates at most at one time for what it does not return, by the profiler's events."""

    def made(value: torch.Tensor) -> torch.Tensor:
        if value.dtype is torch.bool:
            return torch.ones(value.shape, dtype=torch.bool)
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        return torch.rand(span).to(value.dtype).as_strided(value.shape, value.stride())

    def given(argument: Any) -> Any:
        return fx.map_arg(argument, lambda n: tree_map_only(torch.Tensor, made, n.meta["val"]))

    target: Any = node.target
    args, kwargs = given(node.args), given(node.kwargs)
    target(*args, **kwargs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = target(*args, **kwargs)
    parts = result if isinstance(result, (tuple, list)) else (result,)
    own = {t.untyped_storage().data_ptr() for t in parts if isinstance(t, torch.Tensor)}
    events = sorted(_allocations(cast("Any", found).profiler.kineto_results.experimental_event_tree()))
    results = {address: i for i, (_, address, nbytes) in enumerate(events) if nbytes > 0 and address in own}
    live = peak = 0
    for i, (_, _, nbytes) in enumerate(events):
        if i not in results.values():  # a result has a place of its own, which nothing else takes before
            live += nbytes
            peak = max(peak, live)
    return peak


def _allocations(events: Any) -> Iterator[tuple[int, int, int]]:
    """(time, address, bytes), where what is given back has bytes below 0."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _allocations(event.children)


@pytest.mark.parametrize(("module", "shape"), CASES)
def test_workspaces_are_what_torch_allocates(module: type[nn.Module], shape: tuple[int, ...]) -> None:
    checked = 0
    for node in nodes(module, shape):
        predicted, found = call_cost(node).workspace_nbytes, allocated(node)
        if max(predicted, found) > 64 << 10:
            assert 0.95 * found <= predicted <= 1.25 * found, (node.name, predicted, found)
            checked += 1
    assert checked >= 3


def test_a_backward_computes_twice_what_its_forward_does() -> None:
    flops: dict[str, int] = {}
    for node in nodes(Convolving, (4, 16, 48, 48)):
        cost = call_cost(node)
        flops[node.name] = cost.flops
        if "convolution" in node.name:
            assert cost.cost_class == "conv_nchw"
    # The source of the first convolution needs no gradient.
    assert flops["convolution_backward_2"] == flops["convolution"] == 2 * 4 * 48 * 48 * 32 * 16 * 9
    assert flops["convolution_backward_1"] == 2 * flops["convolution_1"]
    assert flops["convolution_backward"] == 2 * flops["convolution_2"] == 2 * 2 * 4 * 48 * 48 * 32 * 16 * 4


def test_attention_backward_is_five_products() -> None:
    found = {n.name: call_cost(n).flops for n in nodes(Attending, (4, 256, 64)) if "attention" in n.name}
    forward, backward = (found[n] for n in sorted(found, key=len))
    pairs = 256 * 257 // 2
    assert forward == 2 * 4 * 4 * pairs * 16 * 2
    assert backward * 2 == forward * 5


def test_every_operator_of_these_networks_has_a_formula() -> None:
    for module, shape in CASES:
        others = {str(n.target) for n in nodes(module, shape) if call_cost(n).cost_class == "other"}
        views = ("view", "transpose", "detach", "expand", "split", "slice", "t.default", "unsqueeze", "alias")
        assert not {o for o in others if not any(v in o for v in views)}
