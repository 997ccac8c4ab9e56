"""Where an operator with a large weight may be cut: over its output columns or channels, and how finely."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm, prod

import onnx
from onnx import ModelProto, ValueInfoProto

from ...ir.graph import Graph, Operator
from ...ir.threads import physical_cores
from .lift import STANDARD
from .lower import Lowered

READ_ALIGNMENT = 4096
"""Parts begin at multiples of this in their blob: what a read past the page cache needs."""
TENSOR_ALIGNMENT = 64
CHANNEL_BLOCK = 16
"""The largest block of ONNX Runtime's NCHWc layout; channels of one block lie together. Multiples suit every CPU."""

_GEMM_DEPTH, _GEMM_COLUMNS = 128, 80
PRODUCTS = ("Gemm", "FusedGemm")
_NCHWC = "com.microsoft.nchwc"
_SUMMAND = 3  # the input of a convolution that is added to its output


@dataclass(frozen=True, slots=True)
class SplitAxis:
    """How an operator may be cut: `units` output columns or channels, in parts that are multiples of `granule`.

    A unit is `unit_nbytes` of storage `weight_storage`. `contiguous_output`: parts write slices of the output itself.
    """

    units: int
    granule: int
    contiguous_output: bool
    weight_storage: str
    unit_nbytes: int


def splittable(lowered: Lowered) -> dict[str, SplitAxis]:
    """The operators that `split` can cut, by id. Parts of products compute the same bits as the whole."""
    models = {d: ModelProto.FromString(m) for d, m in lowered.program.models.items()}
    found: dict[str, SplitAxis] = {}
    for op in lowered.graph.operators:
        if op.id not in lowered.program.kernels:
            continue  # the store does it
        axis = axis_of(lowered.graph, op, models[lowered.program.kernels[op.id]])
        if axis is not None:
            found[op.id] = axis
    return found


def axis_of(graph: Graph, op: Operator, model: ModelProto) -> SplitAxis | None:
    cut = cut_of(model)
    if cut is None:
        return None
    weight = graph.tensor[op.inputs[1]]
    storage = graph.storage.get(weight.storage or "")
    if storage is None or not storage.homed or storage.blob is None or weight.nbytes != storage.nbytes:
        return None
    units = _shape(model.graph.input[1])[0]
    if units == 0 or weight.nbytes == 0:
        return None
    unit_nbytes, out_nbytes = weight.nbytes // units, graph.tensor[op.outputs[0]].nbytes // units
    aligned = lcm(
        READ_ALIGNMENT // gcd(READ_ALIGNMENT, unit_nbytes),
        TENSOR_ALIGNMENT // gcd(TENSOR_ALIGNMENT, unit_nbytes, out_nbytes, cut.element_nbytes),
        CHANNEL_BLOCK if model.graph.node[0].domain == _NCHWC else 1,
    )
    granule = -(-_least_units(model) // aligned) * aligned
    if units < 2 * granule:
        return None
    return SplitAxis(units, granule, cut.contiguous, storage.id, unit_nbytes)


def _least_units(model: ModelProto) -> int:
    """The fewest columns that a part of a product may have to round as the whole does.

    ONNX Runtime's GEMM (MLAS, sgemm.cpp) sums over blocks of 128 rows of the weight, and over longer ones where a
    thread has 64 columns or fewer; threads share columns in multiples of 16. A product of one row sums at once.
    """
    rows, depth = _shape(model.graph.output[0])[0], _shape(model.graph.input[1])[1]
    if model.graph.node[0].op_type not in PRODUCTS or rows == 1 or depth <= _GEMM_DEPTH:
        return 1
    return _GEMM_COLUMNS * physical_cores()


@dataclass(frozen=True, slots=True)
class Cut:
    """How the kernel's tensors follow a range of units: the axis per input, None where it is taken whole."""

    inputs: tuple[int | None, ...]
    contiguous: bool
    element_nbytes: int


def cut_of(model: ModelProto) -> Cut | None:
    """The cut of a kernel model by its form alone; None where there is none."""
    node = model.graph.node[0]
    shapes = [_shape(i) for i in model.graph.input]
    if (
        not shapes
        or node.input[0] != model.graph.input[0].name
        or node.input[1:2] != [i.name for i in model.graph.input[1:2]]
    ):
        return None
    attributes = {a.name: a for a in node.attribute}
    output = _shape(model.graph.output[0])
    product = (node.op_type == "Gemm" and node.domain in STANDARD) or node.op_type == "FusedGemm"
    convolution = (node.op_type == "Conv" and node.domain in (*STANDARD, _NCHWC)) or node.op_type == "FusedConv"
    by_columns = "transB" in attributes and attributes["transB"].i == 1
    one_group = "group" not in attributes or attributes["group"].i == 1
    if not (product and by_columns) and not (convolution and one_group):
        return None
    contiguous = output[0] == 1
    units = shapes[1][0]
    cuts: list[int | None] = [None, 0]
    for position, shape in enumerate(shapes[2:], 2):
        name = model.graph.input[position].name
        summand = convolution and len(node.input) > _SUMMAND and node.input[_SUMMAND] == name
        if summand and not contiguous:
            return None  # a range of its channels is not one range of bytes
        if summand:
            cuts.append(1)
        elif prod(shape) == units and shape[-1] == units:
            cuts.append(len(shape) - 1)
        elif shape and shape[-1] != 1:
            return None
        else:
            cuts.append(None)
    elem = model.graph.output[0].type.tensor_type.elem_type
    return Cut(tuple(cuts), contiguous, int(onnx.helper.tensor_dtype_to_np_dtype(elem).itemsize))


def _shape(value: ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)


def part_ranges(axis: SplitAxis, parts: int) -> list[tuple[int, int]]:
    """Half-open ranges of units, nearly equal, multiples of the granule; the last takes the rest as well."""
    blocks = axis.units // axis.granule
    edges = [i * blocks // parts * axis.granule for i in range(parts)] + [axis.units]
    return [(edges[i], edges[i + 1]) for i in range(parts)]
