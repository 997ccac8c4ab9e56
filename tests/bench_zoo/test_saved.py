"""The rules of training against PyTorch itself: what autograd saves, operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bench.zoo import Builder, training_graph

if TYPE_CHECKING:
    import torch

Forms = Counter[tuple[str, tuple[int, ...]]]

IMAGE = (2, 3, 8, 8)
ROWS = (4, 6)
BATCH = (6, 4, 8)
HEADS = (2, 3, 4, 8)

CASES: dict[str, tuple[tuple[int, ...], int, Callable[[Builder, list[str]], str], str]] = {
    "Relu": (ROWS, 1, lambda b, x: b.same("Relu", x), "relu(x)"),
    "Gelu": (ROWS, 1, lambda b, x: b.same("Gelu", x), "gelu(x)"),
    "Silu": (ROWS, 1, lambda b, x: b.same("Silu", x), "silu(x)"),
    "Softmax": (ROWS, 1, lambda b, x: b.softmax(x[0]), "softmax(x, -1)"),
    "Add": (ROWS, 2, lambda b, x: b.same("Add", x), "x + y"),
    "Mul": (ROWS, 2, lambda b, x: b.same("Mul", x), "x * y"),
    "Gemm": (ROWS, 1, lambda b, x: b.linear(x[0], 5, "op"), "linear(x, new(5, 6), new(5))"),
    "Conv": (IMAGE, 1, lambda b, x: b.conv(x[0], 5, 3, "op"), "conv2d(x, new(5, 3, 3, 3), new(5), padding=1)"),
    "MaxPool": (IMAGE, 1, lambda b, x: b.pool(x[0], 2, stride=2), "max_pool2d(x, 2)"),
    "Concat": (IMAGE, 2, lambda b, x: b.concat(*x), "torch.cat((x, y), 1)"),
    "LayerNormalization": (ROWS, 1, lambda b, x: b.layer_norm(x[0], "op"), "layer_norm(x, (6,), new(6), new(6))"),
    "BatchNormalization": (
        IMAGE,
        1,
        lambda b, x: b.batch_norm(x[0], "op"),
        "batch_norm(x, torch.zeros(3), torch.ones(3), new(3), new(3), training=True)",
    ),
    "MatMul": (BATCH, 2, lambda b, x: b.matmul(*x, transposed=True), "x @ y.transpose(-1, -2)"),
    "Attention": (HEADS, 3, lambda b, x: b.attention(x[0], x[1], x[2]), "scaled_dot_product_attention(x, y, z)"),
}

# What autograd saves and no backward kernel reads: the input of a pooling (its shape), the shift of a layer norm (its
# presence), the running statistics of a batch norm (used only where it is frozen).
UNREAD: dict[str, Forms] = {
    "MaxPool": Counter({("float32", IMAGE): 1}),
    "LayerNormalization": Counter({("float32", (6,)): 1}),
    "BatchNormalization": Counter({("float32", (3,)): 2}),
}


def saved_by_torch(expression: str, shape: tuple[int, ...], count: int) -> Forms:
    """Types and sorted shapes of the distinct tensors that autograd saves for an expression over x, y and z."""
    import torch
    from torch.nn import functional

    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def new(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes).requires_grad_()

    names: dict[str, Any] = {**vars(functional), "torch": torch, "new": new}
    names |= dict(zip("xyz", (new(*shape) for _ in range(count)), strict=False))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = eval(expression, names)
    del result
    distinct = {t.data_ptr(): t for t in kept if t.dtype.is_floating_point or t.numel() > 1}  # no random state
    return Counter((str(t.dtype).removeprefix("torch."), tuple(sorted(t.shape))) for t in distinct.values())


def read_by_ours(shape: tuple[int, ...], count: int, build: Callable[[Builder, list[str]], str]) -> Forms:
    """The same of what the derived backward operators read beside gradients."""
    b = Builder("one")
    given = [b.same("Relu", (b.weight(f"p{i}", *shape),)) for i in range(count)]
    made = build(b, given)
    graph = b.build(made)
    step = training_graph(graph)
    (op,) = (o for o in graph.operators if made in o.outputs)
    kernels = (o for o in step.operators if o.id.rpartition(".")[0] == op.id and o.op_type == f"{op.op_type}Backward")
    read = {x for o in kernels for x in o.inputs} - {f"d:{made}"}
    return Counter((step.tensor[x].dtype, tuple(sorted(step.tensor[x].shape or ()))) for x in read)


@pytest.mark.parametrize("op_type", CASES)
def test_backward_reads_what_torch_saves(op_type: str) -> None:
    shape, count, build, expression = CASES[op_type]
    unread = Counter({(dtype, tuple(sorted(form))): n for (dtype, form), n in UNREAD.get(op_type, Counter()).items()})
    saved = saved_by_torch(expression, shape, count)
    assert not unread - saved, "no longer saved by torch: drop it from the list"
    ours = read_by_ours(shape, count, build)
    rows = saved - unread
    if op_type == "LayerNormalization":  # torch keeps an axis of length one in the statistics
        rows = Counter({(d, tuple(n for n in form if n != 1)): count for (d, form), count in rows.items()})
    assert ours == rows
