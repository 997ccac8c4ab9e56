"""One-node models that stand for the cost classes of `planner.costs_onnx`, in sizes usual in networks.

`flops` and `moved_nbytes` are counted as the planner counts them; a test holds the two together. Weights are what a
running plan has just read from disk, so they come from memory and not from the caches: they are rotated over copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import onnx
from onnx import helper

MICROSOFT, BLOCKED = "com.microsoft", "com.microsoft.nchwc"
_OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(BLOCKED, 1)]
_IR_VERSION = 10
Form = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A call of `op_type` on inputs of these forms. `weights` are the inputs to rotate.

    `constants` are integers inside the model that follow the inputs, None for an absent input.

    `moved_nbytes` None stands for the bytes of all inputs and outputs.
    """

    cost_class: str
    op_type: str
    inputs: tuple[Form, ...]
    flops: int
    domain: str = ""
    attributes: dict[str, object] = field(default_factory=dict[str, object])
    weights: tuple[int, ...] = ()
    constants: tuple[tuple[int, ...] | None, ...] = ()
    outputs: int = 1
    moved_nbytes: int | None = None
    dtype: str = "float32"

    @property
    def node(self) -> onnx.NodeProto:
        """Its node: inputs 'i0', 'i1', ..., constants 'c0', ..., outputs 'o0', ..."""
        inputs = [f"i{k}" for k in range(len(self.inputs))]
        inputs += ["" if c is None else f"c{k}" for k, c in enumerate(self.constants)]
        outputs = [f"o{k}" for k in range(self.outputs)]
        node = helper.make_node(self.op_type, inputs, outputs, domain=self.domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in self.attributes.items())
        return node

    @property
    def model(self) -> bytes:
        """The serialised model around its node; constants are int64 vectors."""
        values = [helper.make_tensor_value_info(f"i{k}", _type(d), s) for k, (d, s) in enumerate(self.inputs)]
        results = [helper.make_empty_tensor_value_info(f"o{k}") for k in range(self.outputs)]
        held = [
            onnx.numpy_helper.from_array(np.array(c, np.int64), f"c{k}")
            for k, c in enumerate(self.constants)
            if c is not None
        ]
        graph = helper.make_graph([self.node], self.cost_class, values, results, held)
        return helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION).SerializeToString()


def _type(dtype: str) -> int:
    return int(getattr(onnx.TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())))


def _f32(*shape: int) -> Form:
    return "float32", shape


def gemm(rows: int, inner: int, columns: int, *, transposed: bool, dtype: str = "float32") -> Sample:
    """A product with one weight, stored [inner, columns] or transposed."""
    weight = (columns, inner) if transposed else (inner, columns)
    cost_class = "matvec" if rows == 1 else "matmul_t" if transposed else "matmul"
    attributes: dict[str, object] = {"transB": 1} if transposed else {}
    flops = 2 * rows * inner * columns
    inputs = ((dtype, (rows, inner)), (dtype, weight))
    return Sample(cost_class, "Gemm", inputs, flops, attributes=attributes, weights=(1,), dtype=dtype)


def integer_gemm(rows: int, inner: int, columns: int) -> Sample:
    """The same in bytes, summed in int32."""
    inputs = (("uint8", (rows, inner)), ("int8", (inner, columns)))
    return Sample("matmul", "MatMulInteger", inputs, 2 * rows * inner * columns, weights=(1,), dtype="int8")


def heads(batch: int, rows: int, inner: int, columns: int) -> Sample:
    """Products of activations, as between the heads of attention."""
    inputs = (_f32(1, batch, rows, inner), _f32(1, batch, inner, columns))
    return Sample("matmul_batched", "MatMul", inputs, 2 * batch * rows * inner * columns)


def conv(channels: int, filters: int, size: int, kernel: int, *, groups: int = 1, blocked: bool = True) -> Sample:
    """A convolution that keeps the image's size, with bias; in the NCHWc layout, or in NCHW."""
    weight = _f32(filters, channels // groups, kernel, kernel)
    depthwise = groups > 1 and groups == channels
    kind = "conv_depthwise" if depthwise else "conv_pointwise" if kernel == 1 else "conv"
    if not blocked:
        kind = "conv_nchw_depthwise" if depthwise else "conv_nchw"
    attributes: dict[str, object] = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2, "group": groups}
    return Sample(
        kind,
        "Conv",
        (_f32(1, channels, size, size), weight, _f32(filters)),
        2 * filters * size * size * prod(weight[1][1:]),
        domain=BLOCKED if blocked else "",
        attributes=attributes,
        weights=(1,),
    )


def conv_sum(channels: int, filters: int, size: int, kernel: int) -> Sample:
    """A convolution in the NCHWc layout that adds to an image of its output's size."""
    plain = conv(channels, filters, size, kernel)
    image = _f32(1, filters, size, size)
    inputs = (*plain.inputs, image)
    nbytes = sum(4 * prod(shape) for _, shape in (*inputs, image, image, image))
    return replace(plain, cost_class="conv_sum", inputs=inputs, moved_nbytes=nbytes)


def pool(channels: int, size: int, kernel: int, stride: int, *, blocked: bool) -> Sample:
    """A maximum over windows without padding."""
    out = (size - kernel) // stride + 1
    attributes: dict[str, object] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    flops = channels * out * out * kernel * kernel
    kind = "pool" if blocked else "pool_nchw"
    domain = BLOCKED if blocked else ""
    return Sample(kind, "MaxPool", (_f32(1, channels, size, size),), flops, domain=domain, attributes=attributes)


def _pointwise(cost_class: str, op_type: str, per_element: int, *shapes: tuple[int, ...], domain: str = "") -> Sample:
    flops = per_element * prod(shapes[0])
    return Sample(cost_class, op_type, tuple(_f32(*s) for s in shapes), flops, domain=domain)


def samples(*, quick: bool) -> Iterator[Sample]:
    """All samples, the classes that most of the time goes into first; fewer sizes of each when `quick`."""
    yield from _products(quick=quick)
    yield from _convolutions(quick=quick)
    for rows in (128,) if quick else (32, 128, 512):
        yield from _over_rows(rows)
    yield from _layouts()
    yield from _rare()


def _products(*, quick: bool) -> Iterator[Sample]:
    for transposed in (False, True):
        for rows in (16, 128) if quick else (4, 16, 64, 256):
            yield gemm(rows, 768, 3072, transposed=transposed)
        yield gemm(64, 3072, 768, transposed=transposed)
        yield gemm(1, 2048, 2048, transposed=transposed)
        yield gemm(1, 1024, 4096, transposed=transposed)
    yield heads(12, 128, 64, 128)
    yield heads(12, 128, 128, 64)
    for rows in (16, 128):
        yield integer_gemm(rows, 768, 3072)
        yield gemm(rows, 768, 1024, transposed=False, dtype="float64")
        yield gemm(rows, 768, 1024, transposed=False, dtype="float16")


def _convolutions(*, quick: bool) -> Iterator[Sample]:
    for channels, size in ((64, 56), (512, 7)) if quick else ((64, 56), (128, 28), (256, 14), (512, 7)):
        yield conv(channels, channels, size, 3)
        yield conv(channels, channels, size, 3, blocked=False)
        yield conv(channels, channels, size, 3, groups=channels)
        yield conv(channels, channels, size, 3, groups=channels, blocked=False)
        yield conv(4 * channels, channels, size, 1)
        yield conv(channels, 4 * channels, size, 1)
        yield conv_sum(channels, 4 * channels, size, 1)
        yield conv_sum(channels, channels, size, 3)


def _over_rows(rows: int) -> Iterator[Sample]:
    """What works on activations of `rows` rows."""
    wide, narrow = (rows, 3072), (rows, 768)
    yield _pointwise("elementwise", "Add", 1, wide, wide)
    yield _pointwise("elementwise", "Relu", 1, wide)
    yield _pointwise("transcendental", "Gelu", 10, wide)
    yield _pointwise("transcendental", "Tanh", 10, wide)
    yield _pointwise("elementwise_temporary", "BiasGelu", 2, wide, (3072,), domain=MICROSOFT)
    yield _pointwise("elementwise_temporary", "Sum", 2, wide, wide, wide)
    yield Sample("softmax", "Softmax", (_f32(12, rows, 128),), 5 * 12 * rows * 128, attributes={"axis": -1})
    yield _pointwise("normalise", "LayerNormalization", 8, narrow, (768,), (768,))
    yield Sample("reduce", "ReduceMean", (_f32(*narrow),), prod(narrow), constants=((-1,),))
    yield Sample("copy", "Concat", (_f32(*narrow), _f32(*narrow)), 0, attributes={"axis": -1})
    yield Sample("transpose", "Transpose", (_f32(1, rows, 12, 64),), 0, attributes={"perm": [0, 2, 1, 3]})
    yield Sample("transpose", "Transpose", (_f32(1, rows, 12, 64),), 0, attributes={"perm": [0, 2, 3, 1]})
    table, picked = 20000 * 768, 2 * 4 * rows * 768 + 8 * rows
    inputs = (_f32(table // 768, 768), ("int64", (rows,)))
    yield Sample("gather", "Gather", inputs, 0, weights=(0,), moved_nbytes=picked)


def _layouts() -> Iterator[Sample]:
    """Images: pooling, and the way into and out of the NCHWc layout."""
    for blocked in (True, False):
        yield pool(64, 112, 3, 2, blocked=blocked)
        yield pool(256, 28, 3, 1, blocked=blocked)
    image = _f32(1, 256, 28, 28)
    yield Sample("copy", "ReorderInput", (image,), 0, domain=BLOCKED)
    yield Sample("copy", "ReorderOutput", (image,), 0, domain=BLOCKED, attributes={"channels": 256})
    sizes = (1, 64, 56, 56)
    yield Sample("resize", "Resize", (_f32(1, 64, 28, 28),), 8 * prod(sizes), constants=(None, None, sizes))


def _rare() -> Iterator[Sample]:
    """Classes that few networks spend time in: one size each."""
    yield _pointwise("scalar_math", "Softplus", 20, (64, 1024))
    yield Sample("softmax_outer", "Softmax", (_f32(1, 32, 64, 64),), 5 * 32 * 4096, attributes={"axis": 1})
    yield Sample("lrn", "LRN", (_f32(1, 96, 27, 27),), 10 * 96 * 27 * 27, attributes={"size": 5})
    inputs = (_f32(16, 8192), ("int64", (16, 8192)), _f32(16, 8192))
    yield Sample("scatter", "ScatterElements", inputs, 0, attributes={"axis": 1})
    for batch in (1, 8):
        hidden, steps = 256, 16
        weights = (_f32(1, 4 * hidden, hidden), _f32(1, 4 * hidden, hidden))
        flops = 2 * steps * batch * 2 * 4 * hidden * hidden
        inputs = (_f32(steps, batch, hidden), *weights)
        attributes: dict[str, object] = {"hidden_size": hidden}
        yield Sample("recurrent", "LSTM", inputs, flops, attributes=attributes, outputs=3)
    for length in (64, 256):
        form = _f32(1, length, 768)
        attributes = {"num_heads": 12}
        flops = 4 * length * length * 768
        yield Sample("attention", "MultiHeadAttention", (form,) * 3, flops, domain=MICROSOFT, attributes=attributes)
