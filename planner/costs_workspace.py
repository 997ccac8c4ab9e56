"""Memory that ONNX Runtime's CPU kernels allocate for themselves while they run.

Each formula names the source file of onnxruntime that it was read from (paths below onnxruntime/core or
onnxruntime/contrib_ops/cpu), and was compared with the growth of the resident peak around one run of the kernel
(`runtime.workspace`; ONNX Runtime 1.31, x86-64): equal to within 0.5 MiB, or an upper bound where it says so. What is
counted is what the kernel touches: some buffers are reserved larger than they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ..ir.caches import cache_nbytes
from .costs_onnx_call import Call, Form, attention_dims, elements, form_nbytes

# mlas/lib/convolve.cpp: MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD = MLAS_SGEMM_STRIDEN * MLAS_SGEMM_STRIDEK floats.
_CONVOLUTION_BUFFER = 4 * 128 * 128

# Their kernels take float16 as it is; all others are run in float32 between casts (insert_cast_transformer.cc).
_HALF_KERNELS = frozenset(
    [
        "Cast",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "Transpose",
        "Concat",
        "Slice",
        "Split",
        "Gather",
        "GatherND",
        "GatherElements",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Identity",
        "Max",
        "Min",
        "Where",
        "Pad",
        "Tile",
    ]
)


def workspace_nbytes(call: Call, threads: int) -> int:
    """Bytes that the kernel of `call` allocates for itself on `threads` threads; 0 for one without a formula."""
    rule = _RULES.get(call.op_type)
    if call.op_type in ("Conv", "FusedConv"):
        nbytes = _convolution(call, threads)
    elif call.op_type in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
        nbytes = _attention(call, threads)
    else:
        nbytes = rule(call) if rule is not None else 0
    if call.arithmetic in ("float16", "bfloat16") and call.op_type not in _HALF_KERNELS and not call.blocked:
        halves = [f for f in (*call.inputs, *call.outputs) if f is not None and f[0] in ("float16", "bfloat16")]
        nbytes += sum(4 * elements(f) for f in halves)
        # Gelu has no kernel in float16 at all: the function that stands for it holds one more value.
        nbytes += 4 * elements(call.output()) if call.op_type == "Gelu" else 0
    return nbytes


def _item(form: Form | None) -> int:
    return form_nbytes((form[0], (1,))) if form is not None else 0


def _convolution(call: Call, threads: int) -> int:
    """MlasConvPrepare (mlas/lib/convolve.cpp): direct, expanded whole, or expanded in segments, a buffer a thread.

    NCHWc kernels need nothing (contrib nchwc_ops.cc). Kernels of more than three dimensions expand a whole group
    (providers/cpu/nn/conv.cc).
    """
    weight = call.shape(1)
    if call.blocked or len(weight) < 3 or not call.shape(0) or call.output() is None:
        return 0
    kernel, groups = weight[2:], call.attribute("group", 1)
    inner, filters = prod(weight[1:]), weight[0] // groups
    positions = elements(call.output()) // max(1, call.shape(0)[0] * weight[0])
    if len(kernel) > 3:
        return 4 * inner * positions
    if prod(kernel) == 1 and _plain(call):
        return 0
    if filters > positions:
        return 4 * inner * positions
    return threads * _CONVOLUTION_BUFFER


def _plain(call: Call) -> bool:
    """No stride and no padding."""
    ones = all(s == 1 for s in call.attributes.get("strides", ()))
    automatic: bytes | str = call.attributes.get("auto_pad", b"NOTSET")
    return ones and not any(call.attributes.get("pads", ())) and automatic in (b"NOTSET", "NOTSET", b"VALID", "VALID")


def _transposed_convolution(call: Call) -> int:
    """One group's columns: providers/cpu/nn/conv_transpose.cc, col_buffer_size."""
    shape, weight = call.shape(0), call.shape(1)
    return _item(call.input(0)) * prod(weight[1:]) * prod(shape[2:])


def _integer_convolution(call: Call) -> int:
    """One group's columns, unless pointwise: providers/cpu/nn/conv_integer.cc."""
    weight, output = call.shape(1), call.output()
    if output is None or (prod(weight[2:]) == 1 and _plain(call)):
        return 0
    return prod(weight[1:]) * prod(output[1][2:])


def _quantized_convolution(call: Call) -> int:
    """One image in and out in NHWC, its int32 sums, and its columns (depthwise: pointers to them).

    providers/cpu/nn/qlinearconv.cc
    """
    image, weight, output = call.shape(0), call.shape(3), call.output()
    if output is None or len(image) < 3 or len(output[1]) != len(image) or len(weight) != len(image):
        return 0
    positions = prod(output[1][2:])
    nbytes = prod(image[1:]) + 5 * output[1][1] * positions
    if prod(weight[2:]) == 1 and _plain(call):
        return nbytes
    if call.attribute("group", 1) > 1 and weight[1] == 1:
        return nbytes + 8 * prod(weight[2:]) * positions
    return nbytes + prod(weight[1:]) * call.attribute("group", 1) * positions


def _quantized_product(call: Call) -> int:
    """int32 sums: providers/cpu/math/quantize_linear_matmul.cc."""
    return 4 * elements(call.output())


def _dynamic_quantized_product(call: Call) -> int:
    """The first operand in bytes: contrib quantization/dynamic_quantize_matmul.cc."""
    return elements(call.input(0))


def _product_nbits(call: Call) -> int:
    """The whole weight in floats: contrib quantization/matmul_nbits.cc."""
    return 4 * call.attribute("K", 0) * call.attribute("N", 0)


def _softmax(call: Call) -> int:
    """Input and output transposed, unless the axis is the last: providers/cpu/math/softmax.h, hardmax.cc."""
    last = call.attribute("axis", -1) in (-1, len(call.shape(0)) - 1)
    return 0 if last else 2 * form_nbytes(call.input(0))


def _local_response(call: Call) -> int:
    """The scale, and one image's squares with padding channels: providers/cpu/nn/lrn.cc."""
    shape = call.shape(0)
    if len(shape) != 4:
        return 0
    padded = (shape[1] + call.attribute("size", 1) - 1) * shape[2] * shape[3]
    return form_nbytes(call.input(0)) + _item(call.input(0)) * padded


def _composed(temporaries: int) -> Callable[[Call], int]:
    """Functions of the ONNX standard without a kernel: `temporaries` values of the output's size live at once."""
    return lambda call: temporaries * form_nbytes(call.output())


def _variadic(call: Call) -> int:
    """providers/cpu/math/element_wise_ops.cc, UntypedBroadcastVariadic: the last result and the next one."""
    return min(2, max(0, len(call.inputs) - 2)) * form_nbytes(call.output())


def _where(call: Call) -> int:
    """Each side, broadcast against the condition: providers/cpu/tensor/where_op.cc."""

    def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        rank = max(len(a), len(b))
        a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
        return prod(m if n == 1 else n for m, n in zip(a, b, strict=True))

    sides = sum(broadcast(call.shape(0), call.shape(i)) for i in (1, 2))
    return _item(call.input(1)) * sides


def _scatter(call: Call) -> int:
    """The indices, made non-negative, as int64: providers/cpu/tensor/scatter.cc."""
    return 8 * elements(call.input(1))


def _einsum(call: Call) -> int:
    """Operands transposed, the larger twice, and the result before and after its transposition.

    providers/cpu/math/einsum_utils/einsum_typed_compute_processor.cc; an upper bound, for what must be transposed
    depends on the equation.
    """
    operands = [form_nbytes(f) for f in call.inputs]
    result = form_nbytes(call.output())
    if len(operands) == 1:
        return operands[0] + (result if result < operands[0] else 0)
    return sum(operands) + max(operands, default=0) + 2 * result


def _recurrent(gates: int) -> Callable[[Call], int]:
    """Gates of all steps, and the reversed input and output of a backward direction.

    providers/cpu/rnn/uni_directional_lstm.cc, deep_cpu_gru.cc, rnn.cc; an upper bound for a backward direction.
    """

    def rule(call: Call) -> int:
        state, shape = call.shape(2), call.shape(0)
        if len(state) != 3 or len(shape) != 3:
            return 0
        steps, directions, hidden = shape[0] * shape[1], state[0], state[-1]
        direction: bytes | str = call.attributes.get("direction", b"forward")
        backward = direction not in (b"forward", "forward") and gates > 1
        return _item(call.input(0)) * steps * (gates * directions * hidden + (shape[2] + hidden if backward else 0))

    return rule


def _attention(call: Call, threads: int) -> int:
    """Score matrices and masks; for com.microsoft also the heads in a layout of their own.

    providers/cpu/llm/attention.cc; contrib bert/attention_cpu_base.h; multihead_attention.cc and
    group_query_attention.cc, which keep only tiles of the scores where nothing masks them.
    """
    batch, heads, length, reach, size = attention_dims(call)
    item = _item(call.input(0))
    scores = item * batch * heads * length * reach
    causal = bool(call.attribute("is_causal", 0) or call.attribute("unidirectional", 0))
    if not call.domain:
        mask = call.input(3)
        if mask is None:
            return scores + (item * length * reach if causal else 0)
        return scores + (item * elements(mask) if causal or _item(mask) == 1 else 0)
    head_layout = item * batch * heads * size * (length + 2 * reach)
    extra = [form for form in call.inputs[3:] if form is not None]
    if call.op_type == "MultiHeadAttention" and not causal and not extra:
        return head_layout + threads * _attention_tiles(reach, size)
    if call.op_type == "GroupQueryAttention" and "softcap" not in call.attributes and len(call.inputs) <= 9:
        rotary = 2 if call.attribute("do_rotary", 0) else 1
        return rotary * sum(form_nbytes(f) for f in call.inputs[:3]) + threads * _attention_tiles(reach, size)
    mask_nbytes = item * batch * length * reach if causal or extra else 0
    return scores + mask_nbytes + head_layout + item * batch * heads * length * size


def _attention_tiles(reach: int, size: int) -> int:
    """multihead_attention.cc: blocks of queries by blocks of keys that fill the second cache, in a thread's buffer."""
    keys = min(reach, max(1, cache_nbytes(2) // (16 * 2 * max(1, size))))
    queries = min(keys, 2 * size)
    return 4 * queries * (2 + keys + size)


def _resize(call: Call) -> int:
    """With antialiasing, the image after its first pass: providers/cpu/tensor/upsample_antialias.h."""
    shape, output = call.shape(0), call.output()
    if not call.attribute("antialias", 0) or output is None or len(shape) < 2:
        return 0
    return _item(call.input(0)) * prod(shape[:-1]) * output[1][-1]


def _cross_entropy(call: Call) -> int:
    """Log-probabilities and their transposition: the function of the ONNX standard."""
    return 2 * form_nbytes(call.input(0))


_RULES: dict[str, Callable[[Call], int]] = {
    "ConvTranspose": _transposed_convolution,
    "ConvInteger": _integer_convolution,
    "QLinearConv": _quantized_convolution,
    "QLinearMatMul": _quantized_product,
    "DynamicQuantizeMatMul": _dynamic_quantized_product,
    "MatMulNBits": _product_nbits,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "LRN": _local_response,
    "GroupNormalization": _composed(3),
    "MeanVarianceNormalization": _composed(3),
    "HardSwish": _composed(1),
    "Mish": _composed(1),
    "BiasGelu": _composed(1),
    "Sum": _variadic,
    "Min": _variadic,
    "Max": _variadic,
    "Mean": _variadic,
    "Where": _where,
    "ScatterElements": _scatter,
    "Einsum": _einsum,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Resize": _resize,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}
