from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from tensorstow.ir.graph import Operator
from tensorstow.ir.machine import Rate, Unit
from tensorstow.planner.costs import OperatorCost, duration_ns, onnx_cost
from tensorstow.runtime.kernel_samples import Sample, samples

BLOCKED, MICROSOFT = "com.microsoft.nchwc", "com.microsoft"
MIB = 1 << 20


def f32(*shape: int) -> tuple[str, tuple[int, ...]]:
    return "float32", shape


def cost(op: str, inputs: list[Any], outputs: list[Any], domain: str = "", **attributes: Any) -> OperatorCost:
    names = ["" if i is None else f"i{k}" for k, i in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{k}" for k in range(len(outputs))], domain=domain, **attributes)
    return onnx_cost(node, inputs, outputs, threads=2)


def test_matrix_products() -> None:
    plain = cost("MatMul", [f32(2, 128, 768), f32(768, 3072)], [f32(2, 128, 3072)])
    assert (plain.cost_class, plain.dtype, plain.flops) == ("matmul", "float32", 2 * 256 * 768 * 3072)
    assert plain.moved_nbytes == 4 * (256 * 768 + 768 * 3072 + 256 * 3072)
    assert plain.workspace_nbytes == 0
    flipped = cost("Gemm", [f32(128, 768), f32(3072, 768), f32(3072)], [f32(128, 3072)], transB=1)
    assert (flipped.cost_class, flipped.flops) == ("matmul_t", 2 * 128 * 768 * 3072)
    assert cost("Gemm", [f32(768, 128), f32(768, 64)], [f32(128, 64)], transA=1).flops == 2 * 128 * 768 * 64
    assert cost("MatMul", [f32(1, 1, 768), f32(768, 9)], [f32(1, 1, 9)]).cost_class == "matvec"
    heads = cost("MatMul", [f32(1, 12, 128, 64), f32(1, 12, 64, 128)], [f32(1, 12, 128, 128)])
    assert (heads.cost_class, heads.flops) == ("matmul_batched", 2 * 12 * 128 * 64 * 128)
    vectors = cost("MatMul", [f32(7), f32(7)], [f32()])
    assert (vectors.cost_class, vectors.flops) == ("matvec", 14)
    summed = cost("MatMulInteger", [("uint8", (8, 16)), ("int8", (16, 32))], [("int32", (8, 32))])
    assert (summed.dtype, summed.flops, summed.moved_nbytes) == ("int8", 8192, 8 * 16 + 16 * 32 + 4 * 8 * 32)


def test_einsum_counts_every_index_once() -> None:
    made = cost("Einsum", [f32(4, 8, 512, 64), f32(4, 8, 512, 64)], [f32(4, 8, 512, 512)], equation="bhid,bhjd->bhij")
    assert made.flops == 2 * 4 * 8 * 512 * 512 * 64
    dots = cost("Einsum", [f32(5, 3, 4), f32(5, 4, 6)], [f32(5, 3, 6)], equation="...ij,...jk->...ik")
    assert dots.flops == 2 * 5 * 3 * 4 * 6


def test_convolutions() -> None:
    inputs = [f32(1, 64, 56, 56), f32(64, 64, 3, 3), f32(64)]
    made = cost("Conv", inputs, [f32(1, 64, 56, 56)], BLOCKED, pads=[1] * 4)
    assert (made.cost_class, made.workspace_nbytes) == ("conv", 0)
    assert made.flops == 2 * 64 * 64 * 9 * 56 * 56
    addend = cost("Conv", [*inputs, f32(1, 64, 56, 56)], [f32(1, 64, 56, 56)], BLOCKED, pads=[1] * 4)
    assert addend.cost_class == "conv_sum"
    assert addend.moved_nbytes == made.moved_nbytes + 3 * 4 * 64 * 56 * 56
    thin = cost("Conv", [f32(1, 64, 56, 56), f32(8, 64, 1, 1)], [f32(1, 8, 56, 56)], BLOCKED)
    assert thin.cost_class == "conv_pointwise"
    deep = cost("Conv", [f32(1, 64, 56, 56), f32(64, 1, 3, 3)], [f32(1, 64, 56, 56)], BLOCKED, group=64, pads=[1] * 4)
    assert (deep.cost_class, deep.flops) == ("conv_depthwise", 2 * 9 * 64 * 56 * 56)
    up = cost("ConvTranspose", [f32(1, 64, 28, 28), f32(64, 32, 2, 2)], [f32(1, 32, 56, 56)], strides=[2, 2])
    assert (up.flops, up.workspace_nbytes) == (2 * 64 * 28 * 28 * 32 * 4, 4 * 32 * 4 * 28 * 28)


def test_gather_moves_what_it_picks() -> None:
    made = cost("Gather", [f32(50257, 768), ("int64", (1, 128))], [f32(1, 128, 768)])
    assert made.moved_nbytes == 2 * 4 * 128 * 768 + 8 * 128


def test_unknown_and_unbound_operators_cost_their_bytes() -> None:
    made = cost("Mystery", [f32(3, 5), None], [f32(7)])
    assert (made.cost_class, made.moved_nbytes, made.workspace_nbytes) == ("other", 4 * 22, 0)
    assert cost("Loop", [("int64", ()), None], [None]).moved_nbytes == 8
    packed = cost("Mystery", [("int4", (3,))], [("bfloat16", (3,))])
    assert packed.moved_nbytes == 2 + 6


OPERATORS = [
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "LSTM", "Attention", "MultiHeadAttention", "Where", "Sum"),
    *("Einsum", "Gather", "MaxPool", "LRN", "QLinearConv", "ConvInteger", "MatMulNBits", "GlobalAveragePool"),
    *("Resize", "TopK", "If", "GroupQueryAttention", "FusedConv", "ScatterElements"),
]


@given(
    op=st.sampled_from(OPERATORS),
    shapes=st.lists(st.none() | st.lists(st.integers(0, 5), max_size=5).map(tuple), max_size=6),
    outputs=st.lists(st.none() | st.lists(st.integers(0, 5), max_size=5).map(tuple), min_size=1, max_size=3),
    domain=st.sampled_from(["", MICROSOFT, BLOCKED]),
)
def test_no_form_breaks_a_formula(
    op: str, shapes: list[tuple[int, ...] | None], outputs: list[tuple[int, ...] | None], domain: str
) -> None:
    def forms(given: list[tuple[int, ...] | None]) -> list[tuple[str, tuple[int, ...]] | None]:
        return [None if s is None else ("float32", s) for s in given]

    made = cost(op, forms(shapes), forms(outputs), domain)
    assert min(made.flops, made.moved_nbytes, made.workspace_nbytes) >= 0


# Peaks around one run of ONNX Runtime 1.31 on two threads, in MiB, measured by runtime.workspace.
MEASURED = [
    ("Conv", [f32(1, 512, 14, 14), f32(512, 512, 3, 3)], [f32(1, 512, 14, 14)], {"pads": [1] * 4}, "", 3.45),
    ("Conv", [f32(2, 64, 112, 112), f32(64, 64, 3, 3)], [f32(2, 64, 112, 112)], {"pads": [1] * 4}, "", 0.13),
    ("ConvInteger", [("uint8", (1, 64, 224, 224)), ("int8", (64, 64, 3, 3))], [("int32", (1, 64, 224, 224))],
     {"pads": [1] * 4}, "", 27.3),
    ("Softmax", [f32(64, 256, 1024)], [f32(64, 256, 1024)], {"axis": 1}, "", 128.0),
    ("Softmax", [f32(64, 256, 1024)], [f32(64, 256, 1024)], {"axis": -1}, "", 0.0),
    ("LRN", [f32(1, 64, 256, 256)], [f32(1, 64, 256, 256)], {"size": 5}, "", 32.9),
    ("Where", [("bool", (1024,)), f32(64, 256, 1024), f32(1)], [f32(64, 256, 1024)], {}, "", 64.0),
    ("Sum", [f32(64, 256, 1024)] * 5, [f32(64, 256, 1024)], {}, "", 127.9),
    ("LSTM", [f32(256, 8, 512), f32(2, 2048, 512), f32(2, 2048, 512)], [f32(256, 2, 8, 512)],
     {"hidden_size": 512, "direction": "bidirectional"}, "", 39.8),
    ("GRU", [f32(256, 8, 1024), f32(1, 768, 1024), f32(1, 768, 256)], [f32(256, 1, 8, 256)], {"hidden_size": 256},
     "", 5.9),
    ("Attention", [f32(2, 512, 768), f32(768, 2304), f32(2304)], [f32(2, 512, 768)], {"num_heads": 12}, MICROSOFT,
     35.9),
    ("Attention", [f32(2, 12, 512, 64)] * 3, [f32(2, 12, 512, 64)], {}, "", 23.9),
    ("MatMulNBits", [f32(256, 1024), ("uint8", (1024, 32, 16)), f32(32768)], [f32(256, 1024)],
     {"K": 1024, "N": 1024, "bits": 4}, MICROSOFT, 3.9),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "outputs", "attributes", "domain", "mib"), MEASURED)
def test_workspace_is_what_was_measured(
    op: str, inputs: list[Any], outputs: list[Any], attributes: dict[str, Any], domain: str, mib: float
) -> None:
    made = cost(op, inputs, outputs, domain, **attributes)
    assert abs(made.workspace_nbytes / MIB - mib) < 0.5


@pytest.mark.parametrize("sample", list(samples(quick=False)), ids=lambda s: f"{s.cost_class}-{s.op_type}-{s.dtype}")
def test_calibration_counts_as_the_planner_does(sample: Sample) -> None:
    """runtime may not import planner, so the samples carry their counts; they must be the same ones."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(sample.model))
    forms = [*sample.inputs, *(None if c is None else ("int64", (len(c),)) for c in sample.constants)]
    shapes = [_form(value) for value in inferred.graph.output]
    if not all(shapes):  # operators that ONNX knows no shapes for
        shapes = [sample.inputs[0]]
    if sample.op_type in ("Conv", "MaxPool"):
        shapes = [_convolved(sample)]
    if sample.cost_class == "matmul_batched":
        shapes = [f32(*sample.inputs[0][1][:-1], sample.inputs[1][1][-1])]
    made = onnx_cost(sample.node, forms, shapes)
    assert (made.cost_class, made.dtype, made.flops) == (sample.cost_class, sample.dtype, sample.flops)
    if sample.moved_nbytes is not None:
        assert made.moved_nbytes == sample.moved_nbytes


def _form(value: onnx.ValueInfoProto) -> tuple[str, tuple[int, ...]] | None:
    made = value.type.tensor_type
    if not made.HasField("shape"):
        return None
    dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(made.elem_type)))
    return dtype, tuple(d.dim_value for d in made.shape.dim)


def _convolved(sample: Sample) -> tuple[str, tuple[int, ...]]:
    batch, channels, size, _ = sample.inputs[0][1]
    if sample.op_type == "Conv":
        return f32(batch, sample.inputs[1][1][0], size, size)
    kernel, stride = (sample.attributes[k] for k in ("kernel_shape", "strides"))
    assert isinstance(kernel, list)
    assert isinstance(stride, list)
    out = (size - int(kernel[0])) // int(stride[0]) + 1
    return f32(batch, channels, out, out)


UNIT = Unit(
    "cpu",
    "dram",
    (("float32", 1e11), ("float64", 5e10)),
    1e10,
    launch_s=1e-6,
    rates=(Rate("matmul", "float32", 2e11, 5e9), Rate("copy", "float32", bytes_per_s=4e10)),
)


def op(
    cost_class: str, dtype: str = "float32", flops: int = 0, moved: int = 0, measured: int | None = None
) -> Operator:
    return Operator("o", "Op", (), (), cost_class, dtype, flops, moved, 0, measured)


def test_durations() -> None:
    assert duration_ns(op("matmul", flops=2 * 10**8, moved=10**6), UNIT) == 1_000 + 1_000_000 + 200_000
    assert duration_ns(op("copy", flops=10**12, moved=10**6), UNIT) == 1_000 + 25_000
    assert duration_ns(op("copy", "int64", moved=10**6), UNIT) == 1_000 + 25_000
    assert duration_ns(op("pool", flops=10**8, moved=10**6), UNIT) == 1_000 + 1_000_000
    assert duration_ns(op("pool", flops=10**5, moved=10**6), UNIT) == 1_000 + 100_000
    assert duration_ns(op("pool", "int64", flops=10**8), UNIT) == 1_000 + 2_000_000
    assert duration_ns(op("matmul", flops=1, measured=77), UNIT) == 77


@given(flops=st.integers(0, 10**15), moved=st.integers(0, 10**13), cls=st.sampled_from(["matmul", "copy", "other"]))
def test_durations_are_positive_and_grow(flops: int, moved: int, cls: str) -> None:
    unit = Unit("cpu", "dram", (("float32", 1e11),), 1e10, rates=UNIT.rates)
    some = duration_ns(op(cls, flops=flops, moved=moved), unit)
    assert some >= 1
    assert duration_ns(op(cls, flops=2 * flops, moved=2 * moved), unit) >= some


def test_a_model_of_a_sample_has_one_node() -> None:
    for sample in samples(quick=True):
        graph = onnx.load_from_string(sample.model).graph
        assert len(graph.node) == 1
        assert all(prod(shape) for _, shape in sample.inputs)
