"""What every value of the optimised graph is: ONNX Runtime itself is asked, one small session per form of node.

Shape inference of the onnx package knows neither the names nor the operators that ONNX Runtime's optimiser makes. The
session of a one-operator model does, and opening it proves that the kernel exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from ...ir.errors import InputError
from .kernels import Site, Surroundings, embed_all, embed_integers, embed_parameters, make_site, serialised
from .lift import STANDARD
from .session import open_session, options, reason
from .types import Value, dtype_name, value_of_runtime, value_of_type

_DATA_DEPENDENT = frozenset({"Unique", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"})
"""Operators beyond the standard whose output shapes depend on values; all others are tried once on zeros."""


class Inference:
    """Values of outputs by form of node. Sessions are opened once per form and dropped."""

    def __init__(self) -> None:
        self._options = options()
        self._known: dict[bytes, tuple[Value, ...] | Exception] = {}

    def site(
        self,
        node: NodeProto,
        values: Mapping[str, Value],
        constants: Mapping[str, TensorProto],
        around: Surroundings,
    ) -> tuple[Site, tuple[Value, ...]]:
        """The kernel of `node` and what its outputs are.

        As few constants as possible lie inside the kernel; more of them where the shapes of its outputs are else
        unknown, all where ONNX Runtime accepts no other kernel. Raises InputError where it accepts none.
        """
        found: list[tuple[Site, tuple[Value, ...]]] = []
        failures: list[Exception] = []
        for embed in (embed_parameters, embed_integers, embed_all):
            if embed is embed_all and found:
                break
            site = make_site(node, values, constants, around, embed)
            outputs = self._outputs(site.model)
            if isinstance(outputs, Exception):
                failures.append(outputs)
                continue
            found.append((site, outputs))
            if all(v.planned for v in outputs):
                break
        if not found:
            raise InputError(
                f"operator '{node.name or ', '.join(node.output)}' ({node.op_type}): ONNX Runtime has no kernel "
                f"for it: {reason(failures[0])}"
            ) from failures[0]
        # The first of those that leave the fewest outputs unknown.
        return min(found, key=lambda s: sum(not v.planned for v in s[1]))

    def _outputs(self, model: ModelProto) -> tuple[Value, ...] | Exception:
        form = serialised(model)
        if form not in self._known:
            try:
                session = open_session(form, self._options)
            except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base; kept, and shown
                self._known[form] = error
            else:
                self._known[form] = _described(session, model)
        return self._known[form]


def _described(session: Any, model: ModelProto) -> tuple[Value, ...]:
    outputs = session.get_outputs()
    values = [value_of_runtime(o.type, o.shape) for o in outputs]
    if any(v.shape == () for v in values):
        # ONNX Runtime reports a scalar and an unknown rank alike; shape inference of the onnx package tells them apart.
        ranked = onnx.shape_inference.infer_shapes(model).graph.output
        values = [
            replace(v, shape=value_of_type(r.type).shape) if v.shape == () else v
            for v, r in zip(values, ranked, strict=True)
        ]
    node = model.graph.node[0]
    if all(v.shape is not None for v in values) or node.domain in STANDARD or node.op_type in _DATA_DEPENDENT:
        return tuple(values)
    return _tried(session, model, tuple(values))


def _tried(session: Any, model: ModelProto, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Shapes of the outputs from one run on zeros; `values` unchanged where it cannot be run."""
    feed: dict[str, Any] = {}
    for given in model.graph.input:
        value = value_of_type(given.type)
        if not value.planned or value.shape is None:
            return values
        try:
            feed[given.name] = np.zeros(value.shape, np.dtype(dtype_name(value.elem_type)))
        except TypeError:
            return values
    try:
        results = session.run(None, feed)
    except Exception:  # noqa: BLE001  an operator that refuses zeros has shapes that no plan can know
        return values
    return tuple(
        Value(v.elem_type, tuple(r.shape), v.type_text) if isinstance(r, np.ndarray) and v.elem_type else v
        for v, r in zip(values, results, strict=True)
    )
