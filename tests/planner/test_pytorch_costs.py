"""Formulas of ATen operators against numbers worked out by hand."""

# Small lambdas over tensors stand for operators here; their parameters have no annotations.
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tensorstow.ir.graph import Operator
from tensorstow.planner.pytorch import lower_module

from ..modules import Attention, Mlp


class Function(nn.Module):
    """A function of its arguments as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def operators(module: nn.Module, *args: Any) -> tuple[Operator, ...]:
    return lower_module(module.eval(), args, {}, name="model").graph.operators


def test_an_mlp() -> None:
    ops = operators(Mlp(64, 256), torch.zeros(3, 5, 64))
    products = [o for o in ops if o.op_type == "aten.linear.default"]
    assert [o.flops for o in products] == [2 * 15 * 64 * 256] * 3
    assert [o.moved_nbytes for o in products] == [4 * (15 * 64 + 64 * 256 + 15 * 256)] * 3
    assert sum(o.flops for o in ops) == 3 * 2 * 15 * 64 * 256 + (10 + 1) * 15 * 256
    assert {o.cost_class for o in products} == {"matmul_t"}
    assert operators(Mlp(), torch.zeros(1, 64))[0].cost_class == "matvec"


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    batch, length, heads, size = 2, 7, 4, 16
    (found,) = [o for o in operators(Attention(causal=causal), torch.zeros(batch, length, 64)) if "scaled" in o.op_type]
    pairs = length * (length + 1) // 2 if causal else length * length
    assert found.flops == 4 * batch * heads * pairs * size
    assert found.cost_class == "attention"
    everything = 4 * batch * heads * length * size
    # the three thirds of one product's rows are read, and as much as one of them is written
    assert found.moved_nbytes == 4 * everything


def f32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


ROWS = torch.zeros(6, dtype=torch.int64)
CASES: list[tuple[str, Callable[..., Any], tuple[Any, ...], str, int, int]] = [
    ("matmul", torch.matmul, (f32(2, 3, 5), f32(5, 7)), "matmul", 2 * 6 * 5 * 7, 4 * (30 + 35 + 42)),
    ("batched", torch.matmul, (f32(2, 3, 5), f32(2, 5, 7)), "matmul_batched", 2 * 2 * 3 * 5 * 7, 4 * (30 + 70 + 42)),
    ("bmm", torch.bmm, (f32(2, 3, 5), f32(2, 5, 7)), "matmul_batched", 2 * 2 * 3 * 5 * 7, 4 * (30 + 70 + 42)),
    ("mm", torch.mm, (f32(3, 5), f32(5, 7)), "matmul", 2 * 3 * 5 * 7, 4 * (15 + 35 + 21)),
    ("mm_t", lambda a, b: torch.mm(a, b.t()), (f32(3, 5), f32(7, 5)), "matmul_t", 2 * 3 * 5 * 7, 4 * (15 + 35 + 21)),
    ("addmm", torch.addmm, (f32(7), f32(3, 5), f32(5, 7)), "matmul", 2 * 3 * 5 * 7, 4 * (7 + 15 + 35 + 21)),
    (
        "baddbmm",
        torch.baddbmm,
        (f32(2, 3, 7), f32(2, 3, 5), f32(2, 5, 7)),
        "matmul_batched",
        420,
        4 * (42 + 30 + 70 + 42),
    ),
    ("mv", torch.mv, (f32(3, 5), f32(5)), "matvec", 2 * 3 * 5, 4 * (15 + 5 + 3)),
    ("linear", functional.linear, (f32(1, 5), f32(7, 5), f32(7)), "matvec", 2 * 5 * 7, 4 * (5 + 35 + 7 + 7)),
    (
        "einsum",
        lambda a, b: torch.einsum("bij,bkj->bik", a, b),
        (f32(2, 3, 5), f32(2, 7, 5)),
        "matmul_batched",
        420,
        568,
    ),
    (
        "einsum of three",
        lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c),
        (f32(2, 3), f32(3, 5), f32(5, 7)),
        "matmul_batched",
        2 * 2 * 3 * 5 + 2 * 2 * 5 * 7,
        4 * (6 + 15 + 35 + 14),
    ),
    (
        "conv2d",
        lambda x, w: functional.conv2d(x, w, padding=1),
        (f32(2, 3, 8, 8), f32(5, 3, 3, 3)),
        "conv_nchw",
        2 * 2 * 5 * 64 * 27,
        4 * (2 * 3 * 64 + 135 + 2 * 5 * 64),
    ),
    (
        "conv1d of groups",
        lambda x, w: functional.conv1d(x, w, groups=4),
        (f32(1, 4, 10), f32(4, 1, 3)),
        "conv_nchw_depthwise",
        2 * 4 * 8 * 3,
        4 * (40 + 12 + 32),
    ),
    (
        "transposed",
        functional.conv_transpose1d,
        (f32(1, 4, 10), f32(4, 6, 3)),
        "conv_nchw",
        2 * 40 * 18,
        4 * (40 + 72 + 72),
    ),
    ("embedding", functional.embedding, (ROWS, f32(1000, 8)), "gather", 0, 2 * 6 * 8 * 4 + 6 * 8),
    ("index", lambda x, i: x[i], (f32(1000, 8), ROWS), "gather", 0, 2 * 6 * 8 * 4 + 6 * 8),
    ("softmax", lambda x: x.softmax(-1), (f32(3, 5),), "softmax", 5 * 15, 4 * 30),
    ("softmax of rows", lambda x: x.softmax(0), (f32(3, 5),), "softmax_outer", 5 * 15, 4 * 30),
    ("layer norm", lambda x, w: functional.layer_norm(x, (5,), w), (f32(3, 5), f32(5)), "normalise", 8 * 15, 4 * 35),
    ("gelu", functional.gelu, (f32(3, 5),), "transcendental", 150, 4 * 30),
    ("power", lambda x: x**2, (f32(3, 5),), "elementwise", 15, 4 * 30),
    ("root", lambda x: x**0.3, (f32(3, 5),), "transcendental", 150, 4 * 30),
    ("expanded", lambda x, y: x.expand(3, 5) + y, (f32(1, 5), f32(3, 5)), "elementwise", 15, 4 * (5 + 15 + 15)),
    ("copy", lambda x: torch.cat([x, x]), (f32(3, 5),), "copy", 0, 2 * 4 * 30),
    ("transposition", lambda x: x.t().contiguous(), (f32(3, 5),), "transpose", 0, 2 * 4 * 15),
    ("sum", lambda x: x.sum(0), (f32(3, 5),), "reduce", 15, 4 * 20),
    ("pool", lambda x: functional.avg_pool2d(x, 2), (f32(1, 2, 4, 4),), "pool_nchw", 8 * 4, 4 * (32 + 8)),
    (
        "put in place",
        lambda x, i, v: x.clone().index_copy_(0, i, v),
        (f32(100, 8), ROWS, f32(6, 8)),
        "scatter",
        0,
        2 * (6 * 8 + 6 * 8 * 4),
    ),
]


@pytest.mark.parametrize(("name", "function", "args", "cost_class", "flops", "moved"), CASES, ids=[c[0] for c in CASES])
def test_one_operator(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], cost_class: str, flops: int, moved: int
) -> None:
    found = operators(Function(function), *args)[-1]
    assert (found.cost_class, found.flops, found.moved_nbytes) == (cost_class, flops, moved), name


def test_recurrent_layers_multiply_every_matrix_at_every_step() -> None:
    lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True)
    matrices = sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    (found,) = [o for o in operators(lstm, f32(5, 3, 8)) if o.cost_class == "recurrent"]
    assert found.flops == 2 * 5 * 3 * matrices


def test_workspace() -> None:
    image, weight = f32(1, 64, 28, 28), f32(32, 64, 3, 3)
    (found,) = operators(Function(lambda x, w: functional.conv2d(x, w, padding=1)), image, weight)
    assert found.workspace_nbytes == 4 * (32 * 28 * 28 + weight.numel())
    query, value = f32(2, 4, 300, 16), f32(2, 4, 300, 8)  # of unequal sizes: no kernel with blocks
    (found,) = operators(Function(functional.scaled_dot_product_attention), query, query, value)
    assert found.workspace_nbytes == 4 * (2 * 2 * 4 * 300 * 300 + 2 * query.numel() - value.numel())


def test_rows_of_experts_read_no_more_than_they_need() -> None:
    class Grouped(nn.Module):
        def forward(self, x: torch.Tensor, experts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            return torch._grouped_mm(x, experts, ends)  # pyright: ignore

    x, experts = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(8, 64, 32, dtype=torch.bfloat16)
    (found,) = operators(Grouped(), x, experts, torch.zeros(8, dtype=torch.int32))
    assert found.flops == 2 * 2 * 64 * 32
    assert found.moved_nbytes == 2 * (2 * 64 + 2 * 64 * 32 + 2 * 32)
