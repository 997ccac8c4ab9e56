"""Graphs written operator by operator: shapes are inferred, and bytes, arithmetic and traffic follow from them.

The operators are about those of an ONNX export: a matrix product takes its bias, a normalisation is one operator,
splitting and transposing copy, reshaping is a view. Names of types are ONNX's where it has the operator, and the
formulas those of `planner.costs_onnx`: a multiply-add is two operations, an operator without a remark reads its inputs
and writes its outputs once. No operator has a workspace here: convolutions are implicit products, attention is tiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor

ITEM_NBYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "bool": 1,
}
"""Bytes of an element, by numpy's names of types."""


def tensor_nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a dense tensor."""
    return ITEM_NBYTES[dtype] * prod(shape)


@dataclass
class Builder:
    """Gathers storages, tensors and operators; every method returns the id of the tensor that it makes.

    `dtype` is that of weights and activations. Ids of operators are the given names or the type and a number; a
    result has its operator's id.
    """

    name: str
    dtype: str = "float32"
    storages: dict[str, Storage] = field(default_factory=dict[str, Storage])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    operators: list[Operator] = field(default_factory=list[Operator])
    inputs: list[str] = field(default_factory=list[str])

    def shape(self, x: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        shape = self.tensors[x].shape
        assert shape is not None
        return shape

    def elements(self, x: str) -> int:
        """Number of elements of a tensor."""
        return prod(self.shape(x))

    def tensor(self, name: str, shape: Sequence[int], kind: StorageKind, dtype: str | None = None) -> str:
        """A tensor with a storage of its own."""
        assert name not in self.tensors, f"'{name}' is made twice"
        dtype = dtype or self.dtype
        nbytes = tensor_nbytes(dtype, shape)
        self.storages[name] = Storage(name, nbytes, kind, blob=name if kind is StorageKind.WEIGHT else None)
        self.tensors[name] = Tensor(name, dtype, tuple(shape), name, nbytes)
        return name

    def weight(self, name: str, *shape: int, kind: StorageKind = StorageKind.WEIGHT) -> str:
        """A parameter, or a constant that is at home below like one."""
        return self.tensor(name, shape, kind)

    def input(self, name: str, *shape: int, dtype: str | None = None) -> str:
        """An input of the network."""
        self.inputs.append(name)
        return self.tensor(name, shape, StorageKind.INPUT, dtype)

    def view(self, x: str, *shape: int) -> str:
        """The same bytes in another shape."""
        base = self.tensors[x]
        assert prod(shape) == self.elements(x), f"'{x}' of {base.shape} cannot be seen as {shape}"
        name = f"{x}@{'x'.join(map(str, shape))}"
        self.tensors[name] = replace(base, id=name, shape=tuple(shape))
        return name

    def apply(
        self,
        op_type: str,
        inputs: Sequence[str],
        *shapes: Sequence[int],
        cost_class: str = "elementwise",
        flops: int = 0,
        moved_nbytes: int | None = None,
        name: str | None = None,
        dtypes: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """An operator with an output for each of `shapes`; `dtypes` of the outputs where they are not the network's."""
        name = name or f"{op_type}_{len(self.operators)}"
        ids = (name, *(f"{name}:{i}" for i in range(1, len(shapes))))
        for i, (output, shape) in enumerate(zip(ids, shapes, strict=True)):
            self.tensor(output, shape, StorageKind.ACTIVATION, dtypes[i] if i < len(dtypes) else None)
        if moved_nbytes is None:
            moved_nbytes = sum(self.tensors[t].nbytes for t in (*inputs, *ids))
        self.operators.append(Operator(name, op_type, tuple(inputs), ids, cost_class, self.dtype, flops, moved_nbytes))
        return ids

    def same(self, op_type: str, inputs: Sequence[str], cost_class: str = "elementwise", per_element: int = 1) -> str:
        """An operator whose output has the shape of its first input, with so many operations an element."""
        return self.apply(
            op_type,
            inputs,
            self.shape(inputs[0]),
            cost_class=cost_class,
            flops=per_element * self.elements(inputs[0]),
        )[0]

    # Products

    def linear(self, x: str, columns: int, name: str, *, bias: bool = True, weight: str | None = None) -> str:
        """x [..., k] times a parameter [k, columns], plus a bias. `weight`: one that is there already, as
        [columns, k] (a tied table)."""
        *rows, inner = self.shape(x)
        matrix = weight or self.weight(f"{name}.weight", inner, columns)
        terms = [x, matrix, *([self.weight(f"{name}.bias", columns)] if bias else [])]
        cost_class = "matvec" if prod(rows) == 1 else "matmul_t" if weight else "matmul"
        flops = 2 * prod(rows) * inner * columns
        return self.apply("Gemm", terms, (*rows, columns), cost_class=cost_class, flops=flops, name=name)[0]

    def matmul(self, a: str, b: str, *, transposed: bool = False) -> str:
        """Batched product of [..., m, k] and [..., k, n], or [..., n, k] where `transposed`."""
        (*batch, m, k), b_shape = self.shape(a), self.shape(b)
        inner, n = (b_shape[-1], b_shape[-2]) if transposed else b_shape[-2:]
        assert k == inner, f"'{a}' {self.shape(a)} times '{b}' {b_shape}"
        flops = 2 * prod(batch) * m * k * n
        return self.apply("MatMul", (a, b), (*batch, m, n), cost_class="matmul_batched", flops=flops)[0]

    def conv(
        self, x: str, channels: int, size: int, name: str, *, stride: int = 1, pad: int | None = None, bias: bool = True
    ) -> str:
        """Square convolution over [n, c, h, w]; by default padded so that stride 1 keeps the size."""
        n, c, h, w = self.shape(x)
        pad = size // 2 if pad is None else pad
        h, w = ((edge + 2 * pad - size) // stride + 1 for edge in (h, w))
        terms = [x, self.weight(f"{name}.weight", channels, c, size, size)]
        terms += [self.weight(f"{name}.bias", channels)] if bias else []
        flops = 2 * n * channels * h * w * c * size * size
        cost_class = "conv_pointwise" if size == 1 else "conv"
        return self.apply("Conv", terms, (n, channels, h, w), cost_class=cost_class, flops=flops, name=name)[0]

    def conv_transpose(self, x: str, channels: int, size: int, name: str) -> str:
        """Transposed convolution whose stride is its size: [n, c, h, w] to [n, channels, h * size, w * size]."""
        n, c, h, w = self.shape(x)
        terms = (x, self.weight(f"{name}.weight", c, channels, size, size), self.weight(f"{name}.bias", channels))
        flops = 2 * n * c * h * w * channels * size * size
        shape = (n, channels, h * size, w * size)
        return self.apply("ConvTranspose", terms, shape, cost_class="conv_nchw", flops=flops, name=name)[0]

    # Normalisation and attention

    def layer_norm(self, x: str, name: str) -> str:
        """Over the last axis, with scale and shift."""
        width = self.shape(x)[-1]
        terms = (x, self.weight(f"{name}.weight", width), self.weight(f"{name}.bias", width))
        return self.same("LayerNormalization", terms, "normalise", 8)

    def rms_norm(self, x: str, name: str) -> str:
        """Over the last axis, with scale."""
        return self.same("RMSNormalization", (x, self.weight(f"{name}.weight", self.shape(x)[-1])), "normalise", 8)

    def batch_norm(self, x: str, name: str) -> str:
        """Over [n, c, h, w] by channel, with scale, shift, and the running mean and variance, which are constants."""
        channels = self.shape(x)[1]
        terms = [x, *(self.weight(f"{name}.{part}", channels) for part in ("weight", "bias"))]
        running = ("running_mean", "running_var")
        terms += [self.weight(f"{name}.{part}", channels, kind=StorageKind.CONSTANT) for part in running]
        return self.same("BatchNormalization", terms, "normalise", 4)

    def softmax(self, x: str) -> str:
        """Over the last axis."""
        return self.same("Softmax", (x,), "softmax", 5)

    def attention(self, q: str, k: str, v: str) -> str:
        """One tiled kernel over [batch, heads, length, size]; k and v may have fewer heads. The two products of all
        lengths are counted, as costs_onnx does: a causal mask is no discount."""
        batch, heads, length, size = self.shape(q)
        flops = 4 * batch * heads * length * self.shape(k)[2] * size
        return self.apply("Attention", (q, k, v), self.shape(q), cost_class="attention", flops=flops)[0]

    # What moves bytes

    def gather(self, table: str, ids: str) -> str:
        """Rows of a table, of which only those asked for are read."""
        shape = (*self.shape(ids), *self.shape(table)[1:])
        moved = 2 * tensor_nbytes(self.tensors[table].dtype, shape) + self.tensors[ids].nbytes
        return self.apply("Gather", (table, ids), shape, cost_class="gather", moved_nbytes=moved)[0]

    def split(self, x: str, parts: int) -> tuple[str, ...]:
        """Equal parts of the last axis, copied."""
        *rows, width = self.shape(x)
        return self.apply("Split", (x,), *[(*rows, width // parts)] * parts, cost_class="copy")

    def transpose(self, x: str, *axes: int) -> str:
        """A copy in another order of axes."""
        shape = self.shape(x)
        return self.apply("Transpose", (x,), [shape[a] for a in axes], cost_class="transpose")[0]

    def concat(self, *xs: str) -> str:
        """Along axis 1, copied."""
        shape = list(self.shape(xs[0]))
        shape[1] = sum(self.shape(x)[1] for x in xs)
        return self.apply("Concat", xs, shape, cost_class="copy")[0]

    def slice(self, x: str, *shape: int) -> str:
        """A part of `x` of this shape, copied; the rest is not read."""
        moved = 2 * tensor_nbytes(self.tensors[x].dtype, shape)
        return self.apply("Slice", (x,), shape, cost_class="copy", moved_nbytes=moved)[0]

    def pool(self, x: str, size: int, *, stride: int, pad: int = 0, kind: str = "MaxPool") -> str:
        """MaxPool or AveragePool over [n, c, h, w]."""
        n, c, h, w = self.shape(x)
        shape = (n, c, *((edge + 2 * pad - size) // stride + 1 for edge in (h, w)))
        return self.apply(kind, (x,), shape, cost_class="pool_nchw", flops=prod(shape) * size * size)[0]

    def global_pool(self, x: str) -> str:
        """The mean of each channel: [n, c, h, w] to [n, c, 1, 1]."""
        n, c, _, _ = self.shape(x)
        return self.apply("GlobalAveragePool", (x,), (n, c, 1, 1), cost_class="reduce", flops=self.elements(x))[0]

    def build(self, *outputs: str) -> Graph:
        """The graph, `outputs` its results."""
        for x in outputs:
            at = self.tensors[x].storage
            assert at is not None
            self.storages[at] = replace(self.storages[at], kind=StorageKind.OUTPUT)
        return Graph(
            name=self.name,
            storages=tuple(self.storages.values()),
            tensors=tuple(self.tensors.values()),
            operators=tuple(self.operators),
            inputs=tuple(self.inputs),
            outputs=outputs,
        )


def parameters(graph: Graph) -> int:
    """Elements of all weights and experts: the published parameter count. Constants (running means, masks) are none."""
    counted = {StorageKind.WEIGHT, StorageKind.EXPERT}
    whole = {t.storage: t for t in graph.tensors if t.storage == t.id}
    return sum(prod(whole[s.id].shape or ()) for s in graph.storages if s.kind in counted)


def total_flops(graph: Graph) -> int:
    """Operations of a pass, a multiply-add counted as two."""
    return sum(op.flops for op in graph.operators)
