"""Which nodes only rename bytes: their outputs are views of their first input, and no kernel runs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import NodeProto, TensorProto
from onnx.numpy_helper import to_array

from .lift import STANDARD
from .types import Value

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def is_view(
    node: NodeProto, values: Mapping[str, Value], constants: Mapping[str, TensorProto], used: Mapping[str, int]
) -> bool:
    """Whether the bytes of the first output are those of the first input, and both have an address.

    `used` counts the uses of values.
    """
    if node.domain not in STANDARD or not node.input or not node.input[0] or not node.output[0]:
        return False
    given, made = values[node.input[0]], values[node.output[0]]
    if not (given.planned and made.planned) or given.shape is None or made.shape is None:
        return False
    if given.elem_type != made.elem_type or prod(given.shape) != prod(made.shape):
        return False
    if node.op_type in _RESHAPES or node.op_type == "Cast":
        return True
    if node.op_type == "Expand":  # as many elements: it only adds dimensions of one
        return True
    if node.op_type == "Transpose":
        return _keeps_order(node, given.shape)
    if node.op_type == "Dropout":
        return _inference_only(node, constants) and not any(used.get(n) for n in node.output[1:])
    return False


def _keeps_order(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a Transpose moves only dimensions of size one."""
    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved) or prod(shape) == 0


def _inference_only(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return True
    mode = constants.get(node.input[2])
    return mode is not None and not bool(to_array(mode).any())
