"""What operators cost that run graphs of their own: If, Loop and Scan.

The nodes of a body are looked at one by one, as those of the model are. An If counts as its larger branch, a Loop as
often as its constant says, a Scan once for each element of its sequence; a Loop whose number of rounds depends on data
counts one round. All of it is one operator of one class: that of the body in which most is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.numpy_helper import to_array

from ...ir.errors import InputError
from ..costs import OperatorCost, onnx_cost
from .infer import Inference
from .kernels import Surroundings, node_forms, typed
from .types import Value, tensor_value, value_of_type

WITH_BODIES = frozenset({"If", "Loop", "Scan"})

_MOST_ROUNDS = 1 << 31
"""Exporters write the largest int64 where a loop ends by its condition alone."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the nodes of a graph may name: values, and those of them that are constant."""

    values: dict[str, Value]
    constants: dict[str, TensorProto]


def cost_with_bodies(model: ModelProto, inference: Inference, around: Surroundings) -> OperatorCost:
    """The cost of the one node of a finished kernel `model`, with what its bodies compute and hold."""
    node = model.graph.node[0]
    own = onnx_cost(node, *node_forms(model))
    bodies = bodies_of(node)
    if node.op_type not in WITH_BODIES or not bodies:
        return own
    scope = _Scope(
        {i.name: value_of_type(i.type) for i in model.graph.input}
        | {t.name: tensor_value(t.data_type, tuple(t.dims)) for t in model.graph.initializer},
        {t.name: t for t in model.graph.initializer},
    )
    outer = [scope.values.get(n) for n in node.input]
    walk = _Walk(inference, around)
    if node.op_type == "If":
        return _joined(own, max((walk.cost(b, (), scope, apart=True)[0] for b in bodies), key=_weight), 1, 0)
    known = count_rounds(node, scope.constants, outer)
    rounds = 1 if known is None else known
    given, handed = _body_inputs(node, outer)
    body, results = walk.cost(bodies[0], given, scope)
    # A Loop keeps what each round adds to its further results, and joins all of it in the end.
    gathered = results[1 + len(handed) :] if node.op_type == "Loop" else ()
    return _joined(own, body, rounds, _nbytes(handed) + rounds * _nbytes(gathered))


def count_rounds(node: NodeProto, constants: Mapping[str, TensorProto], inputs: Sequence[Value | None]) -> int | None:
    """How often a Loop or Scan runs its body, None where that depends on data; `inputs` are the values it is given."""
    if node.op_type == "Scan":
        axes = _scan_axes(node)
        scanned = inputs[len(inputs) - len(axes) :]
        shapes = [(v.shape or (), axis) for v, axis in zip(scanned, axes, strict=False) if v is not None]
        return next((shape[axis] for shape, axis in shapes if -len(shape) <= axis < len(shape)), None)
    most = constants.get(node.input[0]) if node.input and node.input[0] else None
    if most is None or not _goes_on(node, constants):
        return None
    rounds = int(to_array(most).reshape(-1)[0])
    return rounds if 0 <= rounds < _MOST_ROUNDS else None


def _goes_on(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether the condition of a Loop is true before it and after each round, whatever the data."""
    begin = node.input[1] if len(node.input) > 1 else ""
    if begin and not _true(constants.get(begin)):
        return False
    body = bodies_of(node)[0]
    makers = {o: n for n in body.node for o in n.output}
    held = {t.name: t for t in body.initializer}
    name = body.output[0].name
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    if name in makers:
        return _true(constant_of(makers[name]))
    return (len(body.input) > 1 and name == body.input[1].name) or _true(held.get(name) or constants.get(name))


def _true(tensor: TensorProto | None) -> bool:
    return tensor is not None and bool(to_array(tensor).all())


def bodies_of(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node runs."""
    return [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]


def _scan_axes(node: NodeProto) -> list[int]:
    """The axis of the sequence in each scanned input; these are the last ones."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type != AttributeProto.GRAPH}
    return list(attributes.get("scan_input_axes") or [0] * int(attributes.get("num_scan_inputs", 0)))


def _body_inputs(node: NodeProto, outer: Sequence[Value | None]) -> tuple[list[Value | None], list[Value | None]]:
    """What a body is given in the first round, and that of it which one round hands to the next."""
    if node.op_type == "Loop":
        carried = list(outer[2:])
        return [tensor_value(TensorProto.INT64, ()), tensor_value(TensorProto.BOOL, ()), *carried], carried
    axes = _scan_axes(node)
    states, scanned = list(outer[: len(outer) - len(axes)]), outer[len(outer) - len(axes) :]
    elements: list[Value | None] = []
    for value, axis in zip(scanned, axes, strict=False):
        shape = None if value is None else value.shape
        if value is None or shape is None or not -len(shape) <= axis < len(shape):
            elements.append(value)
        else:
            at = axis % len(shape)
            elements.append(replace(value, shape=(*shape[:at], *shape[at + 1 :])))
    return [*states, *elements], states


def _nbytes(values: Sequence[Value | None]) -> int:
    return sum(v.nbytes for v in values if v is not None)


def _weight(cost: OperatorCost) -> tuple[int, int, int]:
    return cost.flops, cost.moved_nbytes, cost.workspace_nbytes


def _joined(own: OperatorCost, body: OperatorCost, rounds: int, kept_nbytes: int) -> OperatorCost:
    """The node itself, which hands over its operands and results, and `rounds` times its body."""
    return OperatorCost(
        cost_class=body.cost_class if rounds else own.cost_class,
        dtype=body.dtype if rounds else own.dtype,
        flops=rounds * body.flops,
        moved_nbytes=own.moved_nbytes + rounds * body.moved_nbytes,
        workspace_nbytes=own.workspace_nbytes + (body.workspace_nbytes + kept_nbytes if rounds else 0),
    )


@dataclass(frozen=True, slots=True)
class _Walk:
    """Goes through bodies, and asks ONNX Runtime what each node makes."""

    inference: Inference
    around: Surroundings

    def cost(
        self, graph: GraphProto, given: Sequence[Value | None], outer: _Scope, *, apart: bool = False
    ) -> tuple[OperatorCost, list[Value | None]]:
        """All nodes of a body together, and what its results are.

        It is of the class of the node that computes most; its workspace is the most that its values and its kernels
        hold at once, the results left out where they are written `apart`. Where ONNX Runtime does not say what a node
        makes, the rest counts as nothing.
        """
        scope = _body_scope(graph, given, outer)
        last = {name: at for at, node in enumerate(graph.node) for name in _mentioned(node)}
        last.update((o.name, len(graph.node)) for o in graph.output)
        elsewhere = {o.name for o in graph.output} if apart else set[str]()
        costs: list[OperatorCost] = []
        held: dict[str, int] = {}
        most = 0
        for at, node in enumerate(graph.node):
            constant = constant_of(node)
            if constant is not None:
                _define(scope, node.output[0], constant)
                continue
            try:
                site, outputs = self.inference.site(node, scope.values, scope.constants, self.around)
            except InputError:
                break
            scope.values.update(zip(site.outputs, outputs, strict=True))
            costs.append(cost_with_bodies(typed(site.model, outputs), self.inference, self.around))
            made = zip(site.outputs, outputs, strict=True)
            held.update((name, value.nbytes) for name, value in made if name not in elsewhere)
            most = max(most, sum(held.values()) + costs[-1].workspace_nbytes)
            held = {name: nbytes for name, nbytes in held.items() if last.get(name, -1) > at}
        results = [scope.values.get(o.name) for o in graph.output]
        if not costs:
            return OperatorCost("other", "float32", 0, 0, 0), results
        chief, flops = max(costs, key=_weight), sum(c.flops for c in costs)
        return OperatorCost(chief.cost_class, chief.dtype, flops, sum(c.moved_nbytes for c in costs), most), results


def _body_scope(graph: GraphProto, given: Sequence[Value | None], outer: _Scope) -> _Scope:
    """What the nodes of a body may name before any of them has run."""
    scope = _Scope(dict(outer.values), dict(outer.constants))
    values = [*given, *[None] * len(graph.input)]
    for info, value in zip(graph.input, values, strict=False):
        scope.constants.pop(info.name, None)
        scope.values[info.name] = value_of_type(info.type) if value is None else value
    for tensor in graph.initializer:
        _define(scope, tensor.name, tensor)
    return scope


def _define(scope: _Scope, name: str, tensor: TensorProto) -> None:
    scope.constants[name] = tensor
    scope.values[name] = tensor_value(tensor.data_type, tuple(tensor.dims))


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor that a node is."""
    if node.op_type != "Constant":
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)


def _mentioned(node: NodeProto) -> list[str]:
    """Names that a node reads, its bodies' among them."""
    names = list(node.input)
    for body in bodies_of(node):
        names += [n for inner in body.node for n in _mentioned(inner)]
        names += [o.name for o in body.output]
    return names
