"""Small ONNX models from a seed, and what they compute unconstrained: cases that are executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info

from tests.models import ModelWriter

UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Softplus")
WIDTHS = (48, 96, 128, 160, 192)
LARGEST = 1.0  # values stay of this size from layer to layer


def write_model(rng: np.random.Generator, path: Path) -> Path:
    """x [rows, width] through products (weights used once or twice, beside the file or inside it, of up to 144 KiB),
    sums, elementwise operators, concatenations, slices, normalisations, transpositions and a table; one or two
    outputs, of which one may be an intermediate value."""
    w = ModelWriter(path, external=bool(rng.random() < 0.5), seed=int(rng.integers(1 << 30)))
    rows, width = int(rng.integers(1, 9)), int(rng.choice(WIDTHS))
    values = [("x", width)]
    kept: dict[tuple[int, int], str] = {}
    if rng.random() < 0.3:
        table = w.weight("table", (500, width), LARGEST)
        w.constant("rows", rng.integers(0, 500, rows).astype(np.int64))
        values.append((w.node("Gather", [table, "rows"]), width))
    for i in range(int(rng.integers(2, 9))):
        name, size = values[int(rng.integers(max(0, len(values) - 3), len(values)))]
        values.append(_layer(w, rng, i, rows, name, size, values, kept))
    chosen = [len(values) - 1]
    if rng.random() < 0.4:
        chosen.append(int(rng.integers(1, len(values))))
    outputs: list[object] = []
    for number in dict.fromkeys(chosen):
        name, size = values[number]
        w.nodes.append(make_node("Identity", [name], [f"y{number}"], name=f"out{number}"))
        outputs.append(make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [rows, size]))
    return w.save("random", [make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])], outputs)


def _layer(
    w: ModelWriter,
    rng: np.random.Generator,
    number: int,
    rows: int,
    name: str,
    size: int,
    values: list[tuple[str, int]],
    kept: dict[tuple[int, int], str],
) -> tuple[str, int]:
    """One more value: its name and its width."""
    kind = rng.choice(["product", "gemm", "sum", "unary", "join", "slice", "norm", "turn"], p=[0.3, 0.2] + [1 / 12] * 6)
    if kind in ("product", "gemm"):
        wide = int(rng.choice(WIDTHS))
        matrix = kept.get((size, wide)) if rng.random() < 0.3 else None
        matrix = matrix or w.weight(f"w{number}", (size, wide), size**-0.5)
        kept[size, wide] = matrix
        if kind == "product":
            return w.node("MatMul", [name, matrix]), wide
        return w.node("Gemm", [name, matrix, w.weight(f"b{number}", (wide,), 0.1)]), wide
    if kind == "sum":
        other = next((n for n, s in values if s == size and n != name), name)
        return w.node("Tanh", [w.node("Add", [name, other])]), size
    if kind == "join":
        other, more = values[int(rng.integers(len(values)))]
        return w.node("Concat", [name, other], axis=1), size + more
    if kind == "slice":
        keep = max(1, size // 2)
        parts = [w.constant(f"{part}{number}", np.array([n])) for part, n in (("from", 0), ("to", keep), ("on", 1))]
        return w.node("Slice", [name, *parts]), keep
    if kind == "norm":
        scale = w.constant(f"scale{number}", np.ones(size, np.float32))
        return w.node("LayerNormalization", [name, scale], axis=-1), size
    if kind == "turn" and rows > 1:
        return w.node("Transpose", [w.node("Softmax", [w.node("Transpose", [name])], axis=0)]), size
    return w.node(str(rng.choice(UNARY)), [name]), size
