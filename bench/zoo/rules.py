"""What the backward of each operator reads and makes, and what its forward must make beside its result.

The lists follow PyTorch's derivatives (tools/autograd/derivatives.yaml): what a formula mentions is what autograd
saves. A product's two gradients are operators of their own, each with the forward's arithmetic; what is elementwise
costs about what its forward does; tiled attention computes its scores again, five products against two (Dao 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Operator

from .tape import Tape

Form = tuple[str, str, tuple[int, ...]]
"""A name, a dtype and a shape."""


def statistics(tape: Tape, op: Operator) -> list[Form]:
    """What the forward of `op` makes for its backward beside its results: means and deviations, indices of maxima, the
    logarithm of the sums of a tiled softmax."""
    shape = tape.shape(op.inputs[0])
    if op.op_type == "LayerNormalization":
        return [(part, "float32", shape[:-1]) for part in ("mean", "rstd")]
    if op.op_type == "RMSNormalization":
        return [("rstd", "float32", shape[:-1])]
    if op.op_type == "BatchNormalization":
        return [(part, "float32", shape[1:2]) for part in ("mean", "rstd")]
    if op.op_type == "MaxPool":
        return [("indices", "int64", tape.shape(op.outputs[0]))]
    if op.op_type == "Attention":
        return [("logsumexp", "float32", shape[:-1])]
    return []


def backward(tape: Tape, op: Operator) -> None:
    """Append the backward operators of `op`. Raises InputError for a type without a rule."""
    if not any(tape.wants(x) for x in op.inputs):
        return
    given = [tape.gradient(y) for y in op.outputs if tape.tensors[y].dtype != "int64"]
    if all(g is None for g in given):
        return
    if any(g is None for g in given):
        raise InputError(f"only some results of operator '{op.id}' have a gradient; drop those that nothing uses")
    rule = _RULES.get(op.op_type)
    if rule is None:
        raise InputError(
            f"operator '{op.id}' is a '{op.op_type}', which has no rule for training; there are rules for: "
            + ", ".join(_RULES)
        )
    rule(tape, op, [g for g in given if g is not None])


Rule = Callable[[Tape, Operator, list[str]], None]


def _product(tape: Tape, op: Operator, given: list[str]) -> None:
    """Products and convolutions: the gradient of each operand needs the other one; a bias needs neither."""
    (dy,), (a, b, *bias) = given, op.inputs
    tape.emit(op, "da", (dy, b), (a,), flops=op.flops)
    tape.emit(op, "db", (dy, a), (b,), flops=op.flops)
    tape.emit(op, "dbias", (dy,), bias, flops=tape.elements(dy), cost_class="reduce")


def _sum(tape: Tape, op: Operator, given: list[str]) -> None:
    """The gradient passes as it is; a term that was broadcast sums it."""
    (dy,) = given
    size = tape.elements(dy)
    for x in op.inputs:
        if tape.elements(x) != size:
            tape.emit(op, "dbroadcast", (dy,), (x,), flops=size, cost_class="reduce")
    tape.pass_on(dy, [x for x in op.inputs if tape.elements(x) == size])


def _multiply(tape: Tape, op: Operator, given: list[str]) -> None:
    a, b = op.inputs
    tape.emit(op, "dx", (*given, a, b), (a, b), flops=2 * tape.elements(given[0]))


def _from_input(tape: Tape, op: Operator, given: list[str]) -> None:
    tape.emit(op, "dx", (*given, op.inputs[0]), op.inputs[:1], flops=2 * op.flops)


def _from_output(tape: Tape, op: Operator, given: list[str]) -> None:
    tape.emit(op, "dx", (*given, op.outputs[0]), op.inputs[:1], flops=op.flops)


def _normalise(tape: Tape, op: Operator, given: list[str]) -> None:
    x, *terms = op.inputs
    parameters = [t for t in terms if tape.wants(t)]
    reads = (*given, x, terms[0], *tape.statistics[op.id])
    tape.emit(op, "dx", reads, (x, *parameters), flops=2 * op.flops)


def _moved(tape: Tape, op: Operator, given: list[str]) -> None:
    """What only moves or averages elements: its backward knows shapes alone."""
    tape.emit(op, "dx", given, op.inputs, flops=op.flops)


def _max_pool(tape: Tape, op: Operator, given: list[str]) -> None:
    tape.emit(op, "dx", (*given, *tape.statistics[op.id]), op.inputs, flops=tape.elements(given[0]))


def _by_index(tape: Tape, op: Operator, given: list[str]) -> None:
    """Rows by their ids: their gradients are added up where they came from."""
    source, ids = op.inputs
    tape.emit(op, "dx", (*given, ids), (source,), flops=tape.elements(given[0]), cost_class="scatter")


def _rotary(tape: Tape, op: Operator, given: list[str]) -> None:
    x, *angles = op.inputs
    tape.emit(op, "dx", (*given, *angles), (x,), flops=op.flops)


def _attention(tape: Tape, op: Operator, given: list[str]) -> None:
    reads = (*given, *op.inputs, op.outputs[0], *tape.statistics[op.id])
    sums = 4 * prod(tape.shape(op.inputs[0]))  # the gradient of q is summed in float32
    tape.emit(op, "dx", reads, op.inputs, flops=5 * op.flops // 2, workspace_nbytes=sums)


def _combine(tape: Tape, op: Operator, given: list[str]) -> None:
    """The weighted sum of experts: weights need the experts' results, and these the weights."""
    gates, ids, *results = op.inputs
    tape.emit(op, "dx", (*given, gates, ids, *results), (gates, *results), flops=2 * op.flops, cost_class="gather")


def _top_k(tape: Tape, op: Operator, given: list[str]) -> None:
    tape.emit(op, "dx", (*given, *op.outputs), op.inputs, flops=op.flops)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Gemm", "MatMul", "Conv", "ConvTranspose"), _product),
    "Add": _sum,
    "Mul": _multiply,
    **dict.fromkeys(("Gelu", "Silu"), _from_input),
    **dict.fromkeys(("Relu", "Softmax"), _from_output),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "BatchNormalization"), _normalise),
    **dict.fromkeys(("Concat", "Split", "Transpose", "Slice", "AveragePool", "GlobalAveragePool"), _moved),
    "MaxPool": _max_pool,
    **dict.fromkeys(("Gather", "Dispatch"), _by_index),
    "RotaryEmbedding": _rotary,
    "Attention": _attention,
    "Combine": _combine,
    "TopK": _top_k,
}
