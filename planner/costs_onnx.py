"""Arithmetic and traffic of ONNX operators.

The cost classes are the families of kernels of ONNX Runtime's CPU provider that run at different speeds; each is
measured by `runtime.calibrate`. The NCHWc and the NCHW convolutions are different kernels (direct, and im2col with a
matrix product), a product with a single row reads its matrix once without packing it, and functions that MLAS
vectorises are twenty times faster than those that call the C library for each element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, slots=True)
class Work:
    """Class, operations and bytes; None stands for the bytes of all inputs and outputs."""

    cost_class: str
    flops: int = 0
    moved_nbytes: int | None = None


def work(call: Call) -> Work:
    """What `call` does, by the rule of its operator."""
    rule = _RULES.get(call.op_type)
    return rule(call) if rule is not None else Work("other", call.out_elements)


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


def _product(call: Call) -> Work:
    batch, rows, inner, columns = product_dims(call)
    flops = 2 * batch * rows * inner * columns
    if rows == 1 or columns == 1:
        return Work("matvec", flops)
    if batch > 1:
        return Work("matmul_batched", flops)
    return Work("matmul_t" if call.attribute("transB", 0) else "matmul", flops)


def _product_nbits(call: Call) -> Work:
    # The weight is expanded to floats before the product (matmul_nbits.cc), written and read once more.
    inner, columns = call.attribute("K", 0), call.attribute("N", 0)
    rows = elements(call.input(0)) // max(1, inner)
    return Work("matmul", 2 * rows * inner * columns, call.nbytes + 2 * 4 * inner * columns)


def _einsum(call: Call) -> Work:
    equation: bytes | str = call.attributes.get("equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    extent: dict[str, int] = {}
    broadcast = 1
    for term, form in zip(text.split("->")[0].split(","), call.inputs, strict=False):
        head, ellipsis, tail = term.partition("...")
        shape = form[1] if form else ()
        named = [*zip(head, shape, strict=False), *zip(reversed(tail), reversed(shape), strict=False)]
        for letter, size in named:
            extent[letter] = max(extent.get(letter, 1), size)
        if ellipsis:
            broadcast = max(broadcast, prod(shape[len(head) : len(shape) - len(tail)]))
    whole = broadcast * prod(extent.values())
    return Work("matmul", (2 if len(call.inputs) > 1 else 1) * whole)


def _convolution(call: Call) -> Work:
    weight = call.shape(3 if call.op_type == "QLinearConv" else 1)
    if len(weight) < 3:
        return Work("conv_nchw")
    flops = 2 * call.out_elements * prod(weight[1:])
    depthwise = call.attribute("group", 1) > 1 and weight[1] == 1
    if not call.blocked:
        return Work("conv_nchw_depthwise" if depthwise else "conv_nchw", flops)
    if call.input(3) is not None:
        # The addend is copied into the output first, then added to (nchwc_ops.cc): twice the output's bytes more.
        return Work("conv_sum", flops, call.nbytes + 2 * call.out_nbytes)
    pointwise = prod(weight[2:]) == 1
    return Work("conv_depthwise" if depthwise else "conv_pointwise" if pointwise else "conv", flops)


def _transposed_convolution(call: Call) -> Work:
    return Work("conv_nchw", 2 * elements(call.input(0)) * prod(call.shape(1)[1:]))


def _pool(call: Call) -> Work:
    window = prod(call.attributes.get("kernel_shape", ()))
    return Work("pool" if call.blocked else "pool_nchw", elements(call.output()) * window)


def _global_pool(call: Call) -> Work:
    return Work("reduce", elements(call.input(0)))


def _recurrent(call: Call) -> Work:
    """Input product for all steps, then one product with the state per step; weights W at input 1, R at input 2."""
    steps = prod(call.shape(0)[:2])
    return Work("recurrent", 2 * steps * (elements(call.input(1)) + elements(call.input(2))))


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


def _attention(call: Call) -> Work:
    batch, heads, length, reach, size = attention_dims(call)
    flops = 4 * batch * heads * length * reach * size
    if call.op_type == "Attention" and call.domain == "com.microsoft":
        flops += 2 * batch * length * elements(call.input(1))
    return Work("attention", flops)


def _simple(cost_class: str, per_element: int = 1) -> Callable[[Call], Work]:
    return lambda call: Work(cost_class, per_element * call.out_elements)


def _reduction(call: Call) -> Work:
    return Work("reduce", elements(call.input(0)))


def _softmax(call: Call) -> Work:
    rank = len(call.shape(0))
    last = call.attribute("axis", -1) in (-1, rank - 1)
    return Work("softmax" if last else "softmax_outer", 5 * call.out_elements)


def _picked(call: Call) -> Work:
    """Only the rows that are asked for are read."""
    return Work("gather", 0, 2 * call.out_nbytes + form_nbytes(call.input(1)))


def _part(call: Call) -> Work:
    """Reads no more than it writes."""
    return Work("copy", 0, 2 * call.out_nbytes)


def _power(call: Call) -> Work:
    # pow.cc multiplies for the exponents 2 and 3, when the exponent is one number; which one, the shape does not say.
    single = elements(call.input(1)) == 1
    return Work("transcendental" if single else "scalar_math", 10 * call.out_elements)


def _variadic(call: Call) -> Work:
    """Sum, Min, Max and Mean: beyond two operands, each further one goes through a temporary of the output's size."""
    few = len(call.inputs) <= 2
    return Work("elementwise" if few else "elementwise_temporary", max(0, len(call.inputs) - 1) * call.out_elements)


def _names(text: str, rule: Callable[[Call], Work]) -> dict[str, Callable[[Call], Work]]:
    return dict.fromkeys(text.split(), rule)


_RULES: dict[str, Callable[[Call], Work]] = {
    **_names("MatMul Gemm FusedMatMul FusedGemm MatMulInteger QLinearMatMul MatMulIntegerToFloat", _product),
    **_names("DynamicQuantizeMatMul QGemm TransposeMatMul MatMulScale", _product),
    "MatMulNBits": _product_nbits,
    "Einsum": _einsum,
    **_names("Conv FusedConv QLinearConv ConvInteger NhwcFusedConv DeformConv", _convolution),
    "ConvTranspose": _transposed_convolution,
    **_names("MaxPool AveragePool LpPool QLinearAveragePool", _pool),
    **_names("GlobalAveragePool GlobalMaxPool GlobalLpPool QLinearGlobalAveragePool", _global_pool),
    **_names("LSTM GRU RNN", _recurrent),
    **_names("Attention MultiHeadAttention GroupQueryAttention DecoderMaskedMultiHeadAttention", _attention),
    **_names("LayerNormalization SimplifiedLayerNormalization RMSNormalization", _simple("normalise", 8)),
    **_names("SkipLayerNormalization SkipSimplifiedLayerNormalization", _simple("normalise", 9)),
    **_names("EmbedLayerNormalization BatchNormalization InstanceNormalization", _simple("normalise", 4)),
    "LpNormalization": _simple("normalise", 3),
    **_names("GroupNormalization MeanVarianceNormalization", _simple("elementwise_temporary", 8)),
    "LRN": _simple("lrn", 10),
    **_names("Softmax LogSoftmax Hardmax", _softmax),
    **_names("ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare", _reduction),
    **_names("ReduceLogSum ReduceLogSumExp ArgMax ArgMin CumSum", _reduction),
    **_names("Add Sub Mul Div And Or Xor Not Equal Less Greater LessOrEqual GreaterOrEqual", _simple("elementwise")),
    **_names("BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift Relu LeakyRelu PRelu Clip", _simple("elementwise")),
    **_names("Neg Abs Sqrt Reciprocal Floor Ceil Round HardSigmoid Softsign ThresholdedRelu", _simple("elementwise")),
    **_names("QLinearAdd QLinearMul Cast CastLike QuantizeLinear DequantizeLinear Shrink", _simple("elementwise")),
    **_names("DynamicQuantizeLinear IsNaN IsInf Dropout RotaryEmbedding", _simple("elementwise", 2)),
    **_names("Exp Erf Tanh Sigmoid Gelu FastGelu QuickGelu Log Swish", _simple("transcendental", 10)),
    **_names("Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Softplus", _simple("scalar_math", 20)),
    **_names("Elu Selu Celu Sign Mod Mish", _simple("scalar_math", 20)),
    "Pow": _power,
    **_names("Sum Min Max Mean", _variadic),
    **_names("Where HardSwish BiasGelu BiasAdd BiasSplitGelu", _simple("elementwise_temporary", 2)),
    **_names("Concat Pad Expand Tile Identity Reshape Flatten Squeeze Unsqueeze Trilu", _simple("copy", 0)),
    **_names("ReorderInput ReorderOutput ConstantOfShape EyeLike Range ReverseSequence", _simple("copy", 0)),
    **_names("Slice Split", _part),
    **_names("Transpose DepthToSpace SpaceToDepth", _simple("transpose", 0)),
    **_names("Gather GatherElements GatherND", _picked),
    **_names("ScatterElements ScatterND Scatter TensorScatter OneHot", _simple("scatter", 0)),
    **_names("Resize Upsample GridSample AffineGrid RoiAlign", _simple("resize", 8)),
    **_names("TopK NonZero Unique Compress", _simple("reduce")),
}
