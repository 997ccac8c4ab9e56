"""Arithmetic of what multiplies matrices: products, attention, convolutions, recurrent layers.

Each function returns (cost class, operations, bytes moved or None for all arguments and results, workspace bytes).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

from .views import is_row_major

if TYPE_CHECKING:
    from .costs import Call

Result = tuple[str, int, "int | None", int]

# aten/src/ATen/native/cpu/FlashAttentionKernel.cpp: queries and keys are taken in blocks of these sizes.
_KEY_BLOCK = 512
_QUERY_BLOCKS = ((768, 256), (192, 64), (0, 32))
# aten/src/ATen/native/cpu/FlashAttentionKernel.cpp computes and sums in float.
_FLOAT_NBYTES = 4


def product(call: Call) -> Result:
    """A product of two operands; others, such as a bias, are added to it.

    linear takes its matrix transposed. A single row or column reads the matrix once: class 'matvec'.
    """
    first, second = _operands(call)
    if not first or not second:
        return "matvec", 2 * max(prod(first), prod(second)), None, 0
    if call.name in ("outer", "ger", "addr"):
        return "elementwise", 2 * call.out_elements, None, 0
    inner = first[-1]
    columns = (second[-2] if call.name == "linear" else second[-1]) if len(second) > 1 else 1
    single = call.name == "linear" or len(second) <= 2
    batch = 1 if single else max(prod(first[:-2]), prod(second[:-2]))
    rows = prod(first[:-1]) if single else (first[-2] if len(first) > 1 else 1)
    flops = 2 * batch * rows * inner * columns
    workspace = _repacked(call)
    if rows == 1 or columns == 1:
        return "matvec", flops, None, workspace
    if batch > 1:
        return "matmul_batched", flops, None, workspace
    return "matmul_t" if call.name == "linear" or _transposed(call) else "matmul", flops, None, workspace


def _operands(call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addbmm": ("batch1", "batch2")}
    names |= {"addmv": ("mat", "vec"), "addr": ("vec1", "vec2")}
    given = [call.tensor(n) for n in names[call.name]] if call.name in names else [*call.inputs[:2], None, None][:2]
    first, second = (tuple(v.shape) if v is not None else () for v in given)
    if any(isinstance(n, torch.SymInt) for n in (*first, *second)):
        return (), ()
    return first, second


def _transposed(call: Call) -> bool:
    """Whether the second operand is a transposed view of a row-major matrix."""
    second = call.inputs[-1]
    return second.dim() == 2 and not is_row_major(second.shape, second.stride())


def _repacked(call: Call) -> int:
    """linear and matmul first copy a many-dimensional first operand that is not row-major."""
    first = call.inputs[0]
    if call.name in ("linear", "matmul") and first.dim() > 2 and not is_row_major(first.shape, first.stride()):
        return first.numel() * first.element_size()
    return 0


def grouped(call: Call) -> Result:
    """Rows [tokens, inner] sorted by expert, each times its expert's matrix of [experts, inner, columns]: no more
    experts are read than there are rows."""
    rows, weights = call.inputs[0], call.inputs[1]
    if rows.dim() != 2 or weights.dim() != 3:
        return "matmul", 2 * call.out_elements * rows.shape[-1], None, 0
    used = min(weights.shape[0], rows.shape[0])
    matrix_nbytes = prod(weights.shape[1:]) * weights.element_size()
    flops = 2 * rows.shape[0] * prod(weights.shape[1:])
    moved = rows.numel() * rows.element_size() + used * matrix_nbytes + call.out_nbytes
    return "matvec" if rows.shape[0] == 1 else "matmul", flops, moved, 0


def bilinear(call: Call) -> Result:
    """x1 [.., a], x2 [.., b] and weight [c, a, b]: for each row a product with a matrix per output."""
    weight = call.shape(2)
    return "matmul", 2 * call.out_elements * prod(weight[1:]), None, 0


def einsum(call: Call) -> Result:
    """Operands are contracted from left to right, as torch does without opt_einsum: for each pair a multiply-add for
    every combination of the indices of both."""
    equation = str(call.arguments.get("equation", "")).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    extent: dict[str, int] = {}
    letters: list[set[str]] = []
    for term, operand in zip(terms, call.inputs, strict=False):
        shape = tuple(operand.shape)
        head, dots, tail = term.partition("...")
        hidden = len(shape) - len(head) - len(tail)
        names = [*head, *(f".{i}" for i in range(hidden, 0, -1)), *tail] if dots else [*head]
        for name, n in zip(names, shape, strict=False):
            extent[name] = max(extent.get(name, 1), n)
        letters.append(set(names))
    result = equation.split("->")[1] if "->" in equation else None
    if len(letters) < 2:
        return "reduce", sum(prod(v.shape) for v in call.inputs), None, 0
    flops, seen = 0, letters[0]
    for i, other in enumerate(letters[1:], start=1):
        seen = seen | other
        flops += 2 * prod(extent[name] for name in seen)
        later = set[str]().union(*letters[i + 1 :])
        if result is not None:
            seen = {name for name in seen if name in result or name in later or name[0] == "."}
    return "matmul_batched", flops, None, 0


def attention(call: Call) -> Result:
    """Scores and weighted sums of scaled dot-product attention: query [.., L, E], key [.., S, E], value [.., S, V].

    Where it is causal, the pairs that are masked are left out, as the kernels do block by block. The workspace is that
    of the CPU kernel with blocks, or of plain products where that one does not apply (sdp_utils_cpp.cpp).
    """
    query, key, value = call.inputs[:3]
    length, size = query.shape[-2:]
    reach, width = key.shape[-2], value.shape[-1]
    pairs = length * reach
    if call.arguments.get("is_causal"):
        pairs = sum(min(i + 1, reach) for i in range(length))
    batch = prod(query.shape[:-2])
    flops = 2 * batch * pairs * (size + width)
    return "attention", flops, None, _attention_workspace(call, batch * length * reach)


def _attention_workspace(call: Call, scores: int) -> int:
    query, key, value = call.inputs[:3]
    length, size = query.shape[-2:]
    mask = call.tensor("attn_mask")  # one of booleans is made one of numbers
    masked = mask.numel() * query.element_size() if mask is not None and mask.dtype is torch.bool else 0
    blocked = query.dim() == 4 and key.shape[-1] == value.shape[-1] and not call.arguments.get("dropout_p")
    if not blocked:  # scores and their softmax, scaled query and key; the result comes when these have gone
        most = 2 * scores + query.numel() + key.numel()
        return masked + max(0, most * query.element_size() - call.out_nbytes)
    rows = min(length, next(block for least, block in _QUERY_BLOCKS if length >= least))
    columns = min(_KEY_BLOCK, key.shape[-2])
    per_thread = _FLOAT_NBYTES * (rows * columns + 2 * rows + rows * size)
    if query.element_size() < _FLOAT_NBYTES:
        per_thread += query.element_size() * rows * columns
    return masked + torch.get_num_threads() * per_thread


def encoder(call: Call) -> Result:
    """A whole layer, or its attention, as one operator: products with every matrix, and the attention itself."""
    rows = prod(call.shape(0)[:-1])
    batch, length, width = (*call.shape(0), 0, 0, 0)[:3]
    flops = 2 * rows * sum(prod(w.shape) for w in call.inputs[1:] if w.dim() == 2 and w.is_floating_point())
    flops += 4 * batch * length * length * width
    hidden = max((w.shape[0] for w in call.inputs[1:] if w.dim() == 2), default=0)
    element = call.inputs[0].element_size() if call.inputs else 0
    return "attention", flops, None, element * rows * hidden


def convolution(call: Call) -> Result:
    """Weight [filters, channels / groups, ...]; transposed, [channels, filters / groups, ...].

    oneDNN takes the image as it lies, and weight and result in blocks, so that both exist twice for a while (measured:
    float32, 1 and 2 dimensions, whatever the kernel's size, within 3%).
    """
    source, weight = call.inputs[0], call.inputs[1]
    transposed = call.name.startswith("conv_transpose") or bool(call.arguments.get("transposed"))
    flops = 2 * (source.numel() if transposed else call.out_elements) * prod(weight.shape[1:])
    groups: Any = call.arguments.get("groups", 1)
    depthwise = groups > 1 and weight.shape[1] == 1
    workspace = call.out_nbytes + weight.numel() * weight.element_size()
    return "conv_nchw_depthwise" if depthwise else "conv_nchw", flops, None, workspace


def recurrent(call: Call) -> Result:
    """Every matrix times every row of every step: weights are the two-dimensional floating-point arguments that no
    state is."""
    source = call.inputs[0]
    cell = call.name.endswith("_cell")
    rows = prod(source.shape[:-1])
    states = call.arguments.get("hx")
    held = {id(v) for v in states} if isinstance(states, tuple) else {id(states)}
    matrices = [w for w in call.inputs[1:] if w.dim() == 2 and id(w) not in held]
    flops = 2 * rows * sum(w.numel() for w in matrices)
    gates = 0 if cell else max((w.shape[0] for w in matrices), default=0) * rows * source.element_size()
    return "recurrent", flops, None, gates
