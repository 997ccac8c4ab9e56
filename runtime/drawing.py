"""Kernels that draw random numbers: each has a generator of its own, and a seed of its own where the model gives none.

ONNX Runtime keeps the generator in the session's kernel, so one session for two operators of equal form would give the
second one what comes after the numbers of the first. Where a node has no seed it takes the process's, plus the node's
number in its graph; the one node of a kernel's model has always the number 0, so all would begin alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from ..ir.graph import Operator
from ..ir.operators import is_random

_SEEDED = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_SEEDS = 1 << 23
"""A seed is a float32, which holds whole numbers up to twice that."""


def draws(op: str, op_type: str) -> bool:
    """Whether an operator of this id and type draws random numbers."""
    return is_random(Operator(op, op_type, (), ()))


class Seeds:
    """What `operators`, which draw, begin with where the model does not say: one number of this process, plus the place
    among them all by id. `onnxruntime.set_seed` sets the first, as it does for a session of the whole model."""

    def __init__(self, operators: Iterable[str]) -> None:
        self._place = {op: place for place, op in enumerate(sorted(operators))}
        self._first: int | None = None

    def __contains__(self, op: str) -> bool:
        return op in self._place

    def give(self, op: str, model: onnx.ModelProto, options: Any) -> bool:
        """Write a seed into the kernel model of `op` if it draws and has none; whether that was so."""
        if op not in self._place or not model.graph.node:
            return False
        node = model.graph.node[0]
        if node.op_type not in _SEEDED or any(a.name == "seed" for a in node.attribute):
            return False
        if self._first is None:
            self._first = _drawn(options)
        node.attribute.append(helper.make_attribute("seed", float(self._first + self._place[op])))
        return True


def _drawn(options: Any) -> int:
    """A number that ONNX Runtime draws by the process's own seed: the same each time."""
    node = helper.make_node("RandomUniform", [], ["y"], high=float(_SEEDS), shape=[1])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "seed", [], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return int(np.asarray(session.run(None, {})[0])[0])
