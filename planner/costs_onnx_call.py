"""A call of an ONNX operator: the dtypes and shapes that it is bound to, and the sizes that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx

Form = tuple[str, tuple[int, ...]]

_ITEM_BITS = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 64),
    **dict.fromkeys(("float32", "int32", "uint32"), 32),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 16),
    "complex128": 128,
    **dict.fromkeys(("int4", "uint4", "float4_e2m1fn"), 4),
    **dict.fromkeys(("int2", "uint2"), 2),
}


def form_nbytes(form: Form | None) -> int:
    """Bytes of a dense tensor of that dtype and shape; types of fewer than eight bits are packed. None has none."""
    if form is None or form[0] in ("opaque", "string"):
        return 0
    return (elements(form) * _ITEM_BITS.get(form[0], 8) + 7) // 8


def elements(form: Form | None) -> int:
    """Number of elements, 0 for None."""
    return 0 if form is None else prod(form[1])


@dataclass(frozen=True, slots=True)
class Call:
    """A node with the forms of what it is bound to."""

    op_type: str
    domain: str
    attributes: dict[str, Any]
    inputs: tuple[Form | None, ...]
    outputs: tuple[Form | None, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, inputs: Sequence[Form | None], outputs: Sequence[Form | None]) -> Call:
        """The call that `node` makes."""
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return cls(node.op_type, node.domain, attributes, tuple(inputs), tuple(outputs))

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of input `index`, () where there is none."""
        form = self.input(index)
        return () if form is None else form[1]

    def input(self, index: int) -> Form | None:
        """Form of input `index`."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int = 0) -> Form | None:
        """Form of output `index`."""
        return self.outputs[index] if index < len(self.outputs) else None

    def attribute(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    @property
    def out_elements(self) -> int:
        """Elements of all outputs."""
        return sum(elements(f) for f in self.outputs)

    @property
    def in_nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(form_nbytes(f) for f in self.inputs)

    @property
    def out_nbytes(self) -> int:
        """Bytes of all outputs."""
        return sum(form_nbytes(f) for f in self.outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs and outputs."""
        return self.in_nbytes + self.out_nbytes

    @property
    def blocked(self) -> bool:
        """Whether it works on the NCHWc layout of MLAS."""
        return self.domain == "com.microsoft.nchwc"

    @property
    def arithmetic(self) -> str:
        """The dtype computed in: that of the first input (of the output, without inputs), signed for bytes."""
        form = next((f for f in (*self.inputs, *self.outputs) if f is not None), None)
        dtype = "float32" if form is None else form[0]
        return "int8" if dtype == "uint8" else dtype


def product_dims(call: Call) -> tuple[int, int, int, int]:
    """(batch, rows, inner, columns) of a matrix product with operands at inputs 0 and 1, whatever their transposition.

    Leading dimensions of the first operand count as rows where the second is one matrix: MLAS then runs one product
    (matmul_helper.h). QLinearMatMul has its second operand at input 3.
    """
    a, b = call.shape(0), call.shape(3 if call.op_type == "QLinearMatMul" else 1)
    a = (1, *a) if len(a) == 1 else a
    b = (*b, 1) if len(b) == 1 else b
    if len(a) < 2 or len(b) < 2:
        return 0, 0, 0, 0
    flip_a = call.attribute("transA", 0)
    inner, rows = (a[-2], a[-1]) if flip_a else (a[-1], a[-2])
    columns = prod(b) // max(1, prod(b[:-2])) // max(1, inner)
    if prod(b[:-2]) == 1 and not flip_a:
        return 1, prod(a[:-1]), inner, columns
    batch = max(prod(a[:-2]), prod(b[:-2]))
    return batch, rows, inner, columns


def attention_dims(call: Call) -> tuple[int, int, int, int, int]:
    """(batch, heads, query length, key length, head size) of an attention operator of ONNX or com.microsoft."""
    query, key = call.shape(0), call.shape(1)
    heads = call.attribute("num_heads", call.attribute("q_num_heads", 0))
    if len(query) == 4:
        batch, heads, length, size = query
        return batch, heads, length, key[-2] if len(key) == 4 else length, size
    if len(query) != 3 or not heads:
        return 0, 0, 0, 0, 0
    batch, length, width = query
    if call.op_type == "Attention" and call.domain == "com.microsoft":
        # Input 1 is the weight of all three projections; input 4 the past, [2, batch, heads, past, size].
        past = call.shape(4)
        return batch, heads, length, length + (past[3] if len(past) == 5 else 0), (key[-1] // 3) // heads
    past = call.shape(3 if call.op_type == "GroupQueryAttention" else 6 if call.domain else 4)
    reach = (key[1] if len(key) == 3 else key[-2] if len(key) == 4 else length) + (past[2] if len(past) == 4 else 0)
    return batch, heads, length, reach, width // heads
