"""Arithmetic and traffic of ONNX operators.

The cost classes are the families of kernels of ONNX Runtime's CPU provider that run at different speeds; each is
measured by `runtime.calibrate`. The NCHWc and the NCHW convolutions are different kernels (direct, and im2col with a
matrix product), a product with a single row reads its matrix once without packing it, and functions that MLAS
vectorises are twenty times faster than those that call the C library for each element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from .costs_onnx_call import Call, attention_dims, elements, form_nbytes, product_dims


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
