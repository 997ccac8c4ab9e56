"""Models that tests and benchmarks write: a GPT-like transformer, a large MLP, a branching CNN; and the light networks.

Weights are scaled by the root of what they sum over, so activations keep their size from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

_OPSET = 17
_CHUNK_ELEMENTS = 1 << 22


@dataclass
class ModelWriter:
    """Gathers nodes and weights and writes one model file, weights inside it or in `<name>.data` beside it."""

    path: Path
    external: bool
    seed: int = 0
    nodes: list[NodeProto] = field(default_factory=list[NodeProto])
    tensors: list[TensorProto] = field(default_factory=list[TensorProto])

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.data = self.path.with_name(self.path.name + ".data")
        if self.external:
            self.data.write_bytes(b"")

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node; returns the name of its one output."""
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(make_node(op, inputs, [output], name=f"{op}{len(self.nodes)}", **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a small initializer."""
        self.tensors.append(from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        """Add a random float32 initializer of this standard deviation, written piece by piece where external."""
        if not self.external:
            return self.constant(name, np.concatenate(list(self._pieces(shape, scale))).reshape(shape))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        with self.data.open("ab") as file:
            start = file.tell()
            for piece in self._pieces(shape, scale):
                file.write(piece.tobytes())
            length = file.tell() - start
        for key, value in (("location", self.data.name), ("offset", start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def _pieces(self, shape: tuple[int, ...], scale: float) -> Iterator[Any]:
        left = int(np.prod(shape))
        while left:
            count = min(left, _CHUNK_ELEMENTS)
            yield self.rng.standard_normal(count, np.float32) * np.float32(scale)
            left -= count

    def save(self, name: str, inputs: list[Any], outputs: list[Any], *, opset: int = _OPSET) -> Path:
        """Write the model; inputs and outputs are value infos."""
        graph = make_graph(self.nodes, name, inputs, outputs, self.tensors)
        onnx.save(make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=8), self.path)
        return self.path


def write_gpt(
    path: Path,
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50257,
    sequence: int = 128,
    batch: int = 1,
    seed: int = 0,
    external: bool = False,
    tied: bool = False,
) -> Path:
    """A pre-LN GPT: int64 'tokens' [batch, sequence] to float 'logits' [batch, sequence, vocabulary].

    Standard operators of opset 17; `tied` uses the token table, transposed, as the last matrix.
    """
    w = ModelWriter(path, external, seed)
    deep = 1 / (2 * layers) ** 0.5  # so that the sum over all residual branches has unit variance
    table = w.weight("wte", (vocabulary, width), width**-0.5 if tied else 1.0)
    x = w.node("Gather", [table, "tokens"])
    x = w.node("Add", [x, w.weight("wpe", (sequence, width), 0.1)])
    w.constant("mask", np.triu(np.full((sequence, sequence), -1e9, np.float32), 1))
    w.constant("one", np.float32(1))
    w.constant("half", np.float32(0.5))
    w.constant("root2", np.float32(2**0.5))
    w.constant("scale", np.float32((width // heads) ** -0.5))
    w.constant("split_heads", np.array([batch, sequence, heads, width // heads], np.int64))
    w.constant("join_heads", np.array([batch, sequence, width], np.int64))
    for layer in range(layers):
        x = w.node("Add", [x, _attention(w, f"h{layer}.attn", x, width, deep)])
        x = w.node("Add", [x, _feed_forward(w, f"h{layer}.mlp", x, width, deep)])
    x = _norm(w, "ln_f", x, width)
    head = w.node("Transpose", [table], perm=[1, 0]) if tied else w.weight("head", (width, vocabulary), width**-0.5)
    w.nodes.append(make_node("MatMul", [x, head], ["logits"], name="head"))
    tokens = make_tensor_value_info("tokens", TensorProto.INT64, [batch, sequence])
    logits = make_tensor_value_info("logits", TensorProto.FLOAT, [batch, sequence, vocabulary])
    return w.save("gpt", [tokens], [logits])


def _norm(w: ModelWriter, name: str, x: str, width: int) -> str:
    scale = w.constant(f"{name}.weight", 1 + 0.1 * w.rng.standard_normal(width, np.float32))
    bias = w.constant(f"{name}.bias", 0.1 * w.rng.standard_normal(width, np.float32))
    return w.node("LayerNormalization", [x, scale, bias], axis=-1, epsilon=1e-5)


def _linear(w: ModelWriter, name: str, x: str, rows: int, columns: int, scale: float = 1.0) -> str:
    product = w.node("MatMul", [x, w.weight(f"{name}.weight", (rows, columns), scale * rows**-0.5)])
    return w.node("Add", [product, w.weight(f"{name}.bias", (columns,), 0.1)])


def _attention(w: ModelWriter, name: str, x: str, width: int, scale: float) -> str:
    x = _norm(w, f"{name}.ln", x, width)
    q, k, v = (_heads(w, _linear(w, f"{name}.{part}", x, width, width)) for part in "qkv")
    scores = w.node("Mul", [w.node("MatMul", [q, w.node("Transpose", [k], perm=[0, 1, 3, 2])]), "scale"])
    weights = w.node("Softmax", [w.node("Add", [scores, "mask"])], axis=-1)
    mixed = w.node("Transpose", [w.node("MatMul", [weights, v])], perm=[0, 2, 1, 3])
    return _linear(w, f"{name}.out", w.node("Reshape", [mixed, "join_heads"]), width, width, scale)


def _heads(w: ModelWriter, x: str) -> str:
    return w.node("Transpose", [w.node("Reshape", [x, "split_heads"])], perm=[0, 2, 1, 3])


def _feed_forward(w: ModelWriter, name: str, x: str, width: int, scale: float) -> str:
    x = _linear(w, f"{name}.up", _norm(w, f"{name}.ln", x, width), width, 4 * width)
    bell = w.node("Add", [w.node("Erf", [w.node("Div", [x, "root2"])]), "one"])
    x = w.node("Mul", [w.node("Mul", [x, bell]), "half"])
    return _linear(w, f"{name}.down", x, 4 * width, width, scale)


def write_mlp(path: Path, *, width: int, layers: int, rows: int = 1, external: bool = True, seed: int = 0) -> Path:
    """`layers` products of [rows, width] with [width, width], Relu between: 4 * layers * width**2 bytes of weights."""
    w = ModelWriter(path, external, seed)
    x = "x"
    for layer in range(layers):
        matrix = w.weight(f"w{layer}", (width, width), (2 / width) ** 0.5)
        bias = w.weight(f"b{layer}", (width,), 0.01)
        last = layer == layers - 1
        w.nodes.append(make_node("Gemm", [x, matrix, bias], ["y" if last else f"z{layer}"], name=f"fc{layer}"))
        x = "y" if last else w.node("Relu", [f"z{layer}"])
    shape = [rows, width]
    return w.save(
        "mlp",
        [make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )


def write_cnn(path: Path, *, batch: int = 1, seed: int = 0) -> Path:
    """A small CNN with a residual sum, a concatenation, grouped convolution, pooling and a classifier.

    'image' [batch, 3, 32, 32] to 'scores' [batch, 100].
    """
    w = ModelWriter(path, external=False, seed=seed)
    x = _conv(w, "stem", "image", 3, 64, 3)
    left = _conv(w, "left", x, 64, 64, 3)
    x = w.node("Relu", [w.node("Add", [w.node("Conv", [left, _kernel(w, "sum", 64, 64, 3)], pads=[1] * 4), x])])
    x = w.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    branches = [_conv(w, "b1", x, 64, 96, 1), _conv(w, "b3", x, 64, 96, 3), _conv(w, "g4", x, 64, 64, 3, group=4)]
    x = _conv(w, "mix", w.node("Concat", branches, axis=1), 256, 128, 1)
    x = w.node("Flatten", [w.node("GlobalAveragePool", [x])])
    w.nodes.append(
        make_node(
            "Gemm",
            [x, w.weight("fc.weight", (100, 128), 128**-0.5), w.weight("fc.bias", (100,), 0.1)],
            ["scores"],
            name="fc",
            transB=1,
        )
    )
    image = make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 32, 32])
    return w.save("cnn", [image], [make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 100])])


def _kernel(w: ModelWriter, name: str, inputs: int, outputs: int, size: int) -> str:
    return w.weight(f"{name}.weight", (outputs, inputs, size, size), (2 / (inputs * size * size)) ** 0.5)


def _conv(w: ModelWriter, name: str, x: str, inputs: int, outputs: int, size: int, group: int = 1) -> str:
    kernel = _kernel(w, name, inputs // group, outputs, size)
    bias = w.weight(f"{name}.bias", (outputs,), 0.1)
    return w.node("Relu", [w.node("Conv", [x, kernel, bias], pads=[size // 2] * 4, group=group)])


def light_models() -> dict[str, Path]:
    """The nine networks that the onnx package ships without weights: their inputs have fixed shapes, batch 1."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return {p.stem.removeprefix("light_"): p for p in sorted(folder.glob("light_*.onnx"))}
