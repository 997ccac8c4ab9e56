"""From the joint forward and backward graph of a module to the graph of a training step.

Values are told apart by the storages of the traced tensors, which are those that eager PyTorch would have: a view is a
tensor of its base's storage and no operator. The joint graph is functional, so nothing but updates of parameters,
optimizer states and buffers is ever written twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import getitem
from typing import cast

import torch
from torch import fx

from ...ir.errors import InputError
from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from ...ir.program import NodeOutput
from ..costs import OperatorCost
from ..pytorch.lifetimes import storage_key
from ..pytorch.lowered import ModuleCall, OpLowered
from ..pytorch.traced import FREE, Value, leaves, mutated, schema_of, value_of
from ..pytorch.views import OPAQUE, covered, dtype_name, is_dense, is_row_major, known_shape
from ..recompute_orders import is_random
from .costs import call_cost
from .lower_nodes import draws, last_of_forward, unique
from .lowered import TURN, JointGraph, Placeholder, StepLowered

_KINDS = {
    "parameter": StorageKind.WEIGHT,
    "buffer": StorageKind.CONSTANT,
    "constant": StorageKind.CONSTANT,
    "input": StorageKind.INPUT,
    "tangent": StorageKind.GRADIENT,
}


def lower_joint(joint: JointGraph, *, name: str) -> StepLowered:
    """The operators of a training step: those of the joint graph, and the turn between forward and backward.

    Operators have the names of their nodes. Random ones follow one another by tokens, tensors without bytes, so that
    no order swaps them. Raises InputError for a graph that writes in place or whose shapes depend on data.
    """
    return _Lowering(joint, name).run()


class _Lowering:
    """One walk over the nodes; what is found is gathered in dicts and becomes frozen data at the end."""

    def __init__(self, joint: JointGraph, name: str) -> None:
        self.joint = joint
        self.name = name
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, Tensor] = {}
        self.operators: dict[str, Operator] = {}
        self.values: dict[fx.Node, Value] = {}
        self.nodes: dict[str, NodeOutput] = {}
        self.storage_of: dict[int, str] = {}
        self.parameters: dict[str, tuple[str, ...]] = {}
        self.strides: dict[str, tuple[int, ...]] = {}
        self.sparse: set[str] = set()
        self.token: str | None = None

    def run(self) -> StepLowered:
        graph = self.joint.module.graph
        by_node = {p.node: p for p in self.joint.placeholders}
        tangents: list[str] = []
        for node in graph.find_nodes(op="placeholder"):
            tensor = self._placeholder(node, by_node[node.name])
            if tensor is not None and by_node[node.name].kind == "tangent":
                tangents.append(tensor)
        turn = self._walk(graph, tangents)
        results = tuple(t for t in map(self._tensor_of, self._results_of_forward) if t is not None)
        gradients = self._gradients(by_node)
        self._of_kind(gradients.values(), StorageKind.GRADIENT)
        self._of_kind(results, StorageKind.OUTPUT)
        fixed = {self.tensors[t].storage for t in (*tangents, *results, *gradients.values())}
        fixed |= {s.id for s in self.storages.values() if s.kind in (StorageKind.CONSTANT, StorageKind.INPUT)}
        fixed |= {self.tensors[t].storage for t in self._changed}  # PyTorch writes them behind the forward
        found = self._graph((*results, *gradients.values()))
        held = frozenset(p.node for p in self.joint.placeholders if p.kind in ("parameter", "buffer"))
        calls = {op.id: ModuleCall("", 0) for op in found.operators}
        return StepLowered(
            operators=OpLowered(found, calls, {}, {}, frozenset(), graph, held),
            turn=turn,
            values=self.nodes,
            parameters={s: names for s, names in self.parameters.items() if s in found.storage},
            gradients=gradients,
            fixed=frozenset(s for s in fixed if s in found.storage),
            strides=self.strides,
            sparse=frozenset(self.sparse),
            training=self.joint.training,
        )

    @property
    def _results_of_forward(self) -> Sequence[fx.Node | None]:
        return self._outputs[: self.joint.forward_outputs]

    @property
    def _outputs(self) -> Sequence[fx.Node | None]:
        (results,) = self.joint.module.graph.output_node().args
        return cast("Sequence[fx.Node | None]", results)

    def _graph(self, results: tuple[str, ...]) -> Graph:
        """What was found, without what nothing touches."""
        used = {self.tensors[t].storage for op in self.operators.values() for t in (*op.inputs, *op.outputs)}
        used |= {self.tensors[t].storage for t in results}
        tensors = tuple(t for t in self.tensors.values() if t.storage in used or t.storage is None)
        given = {s.id for s in self.storages.values() if s.kind is StorageKind.INPUT and s.id in used}
        return Graph(
            name=self.name,
            storages=tuple(s for s in self.storages.values() if s.id in used),
            tensors=tensors,
            operators=tuple(self.operators.values()),
            inputs=tuple(t.id for t in tensors if t.id in given),
            outputs=tuple(dict.fromkeys(results)),
        )

    def _walk(self, graph: fx.Graph, tangents: list[str]) -> str:
        """Lower every node, the turn behind the last one that the forward's results need; the turn's name."""
        last = last_of_forward(graph, self._results_of_forward)
        turn = unique(TURN, {n.name: n for n in graph.nodes})
        turned = False
        for index, node in enumerate(graph.nodes):
            if not turned and index > last and node.op in ("call_function", "output"):
                self._turn(turn, tangents)
                turned = True
            if node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = self._attribute(node)
        return turn

    def _placeholder(self, node: fx.Node, given: Placeholder) -> str | None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        name = given.names[0] if given.names else node.name
        tensor = self._tensor(unique(name, self.tensors), value, _KINDS[given.kind])
        self.values[node] = tensor
        self.nodes[tensor] = NodeOutput(node.name, 0)
        storage = self.tensors[tensor].storage
        if given.kind == "parameter" and storage is not None:
            shape, strides = tuple(value.shape), tuple(value.stride())
            self.parameters.setdefault(storage, given.names)
            fills = self.tensors[tensor].nbytes == self.storages[storage].nbytes
            if not is_dense(shape, strides) or not fills:  # a part of other memory, or with gaps
                self.sparse.add(storage)
            elif not is_row_major(shape, strides):
                self.strides[storage] = strides
        return tensor

    def _attribute(self, node: fx.Node) -> Value:
        """A tensor that the graph holds itself; subgraphs of a call are none."""
        value = node.meta.get("val", getattr(self.joint.module, str(node.target), None))
        if not isinstance(value, torch.Tensor):
            return None
        tensor = self._tensor(unique(node.name, self.tensors), value, StorageKind.CONSTANT)
        self.nodes[tensor] = NodeOutput(node.name, 0)
        return tensor

    def _tensor(self, name: str, value: torch.Tensor, kind: StorageKind = StorageKind.ACTIVATION) -> str:
        """A tensor named `name` for a traced value, in the storage that it is in."""
        shape, key = known_shape(value), storage_key(value)
        if shape is None or key is None or isinstance(value.untyped_storage().nbytes(), torch.SymInt):
            raise InputError(
                f"'{self.name}': the value '{name}' of the training step has a shape that depends on data; a plan "
                "needs shapes that are known: keep such operators out of what is trained"
            )
        offset, nbytes = covered(value)
        storage = self.storage_of.get(key)
        if storage is None:
            storage = self.storage_of[key] = unique(name, self.storages)
            self.storages[storage] = Storage(storage, value.untyped_storage().nbytes(), kind)
        self.tensors[name] = Tensor(name, dtype_name(value.dtype), shape, storage, nbytes, offset)
        return name

    def _call(self, node: fx.Node) -> Value:
        if node.target is getitem:
            whole, index = self.values.get(cast("fx.Node", node.args[0])), node.args[1]
            return whole[index] if isinstance(whole, tuple) and isinstance(index, int) else None
        schema = schema_of(node)
        if schema is not None and schema.name in FREE:
            return None
        if any(v is not None for v in leaves(value_of(mutated(node), self.values))):
            raise InputError(
                f"'{self.name}': '{node.target}' writes in place in the training step, where nothing may; "
                "let the operator return what it makes"
            )
        return self._operator(node)

    def _operator(self, node: fx.Node) -> Value:
        """The results of a call, and the operator for it unless it only renames bytes."""
        known = len(self.storages)
        made: list[str] = []
        result = self._results(node, made)
        born = {s: i for i, s in enumerate(self.storages)}
        fresh = tuple(t for t in made if born[cast("str", self.tensors[t].storage)] >= known)
        if not fresh:
            return result
        read = dict.fromkeys(v for v in leaves(self._read(node)) if v is not None)
        inputs, outputs, op_type = tuple(read), fresh, str(node.target)
        if draws(node):
            inputs, outputs = (*inputs, *((self.token,) if self.token else ())), (*outputs, self._token(node.name))
            op_type = op_type if is_random(Operator("", op_type, (), ())) else f"random:{op_type}"
        self._add(node.name, op_type, inputs, outputs, call_cost(node))
        return result

    def _results(self, node: fx.Node, made: list[str]) -> Value:
        """Tensors for what a call returns; their ids are added to `made`."""
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return self._result(node, value, 0, node.name, made)
        if isinstance(value, (list, tuple)):
            parts = list(enumerate(cast("tuple[object, ...]", value)))
            return tuple(
                self._result(node, part, i, f"{node.name}:{i}", made) if isinstance(part, torch.Tensor) else None
                for i, part in parts
            )
        return None

    def _result(self, node: fx.Node, value: torch.Tensor, index: int, name: str, made: list[str]) -> str:
        tensor = self._tensor(unique(name, self.tensors), value)
        self.nodes[tensor] = NodeOutput(node.name, index)
        made.append(tensor)
        return tensor

    def _read(self, node: fx.Node) -> Value:
        """What a call reads. A batch norm that trains is given running statistics, which none of the results that
        matter depends on: it could not be called again once they have changed, if they counted."""
        args: Mapping[str, object] = dict(enumerate(node.args))  # type: ignore[arg-type]
        schema = schema_of(node)
        if schema is not None:
            names = [a.name for a in schema.arguments]
            args = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
            if "running_mean" in args and (args.get("training") is True or args.get("train") is True):
                args = {k: v for k, v in args.items() if k not in ("running_mean", "running_var")}
        else:
            args = {**args, **node.kwargs}
        return value_of(args, self.values)

    def _token(self, op: str) -> str:
        """What stands for the state of the random number generator behind `op`."""
        self.token = unique(f"{op}:random", self.tensors)
        self.tensors[self.token] = Tensor(self.token, OPAQUE, None, None, 0)
        return self.token

    def _add(
        self, op: str, op_type: str, inputs: tuple[str, ...], outputs: tuple[str, ...], cost: OperatorCost
    ) -> None:
        self.operators[op] = Operator(
            id=op,
            op_type=op_type,
            inputs=inputs,
            outputs=outputs,
            cost_class=cost.cost_class,
            dtype=cost.dtype,
            flops=cost.flops,
            moved_nbytes=cost.moved_nbytes,
            workspace_nbytes=cost.workspace_nbytes,
        )

    def _turn(self, turn: str, tangents: list[str]) -> None:
        """The forward's results go out, their gradients come in, and buffers have their new values."""
        read = dict.fromkeys(t for t in map(self._tensor_of, self._results_of_forward) if t is not None)
        versions = [self._version(turn, t) for t in self._changed]
        cost = OperatorCost("copy", "float32", 0, 0, 0)
        self._add(turn, "Turn", tuple(read), (*tangents, *versions), cost)

    @property
    def _changed(self) -> list[str]:
        """The tensors that the forward writes in place: buffers, parameters, inputs."""
        by_name = {n.name: n for n in self.joint.module.graph.find_nodes(op="placeholder")}
        found = [self.values.get(by_name[node]) for node in self.joint.updates.values()]
        return [t for t in dict.fromkeys(found) if isinstance(t, str)]

    def _version(self, op: str, tensor: str) -> str:
        """The tensor that `op` makes of `tensor` in place."""
        version = unique(f"{op}:{tensor}", self.tensors)
        self.tensors[version] = replace(self.tensors[tensor], id=version)
        return version

    def _tensor_of(self, node: object) -> str | None:
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return value if isinstance(value, str) else None

    def _of_kind(self, tensors: Iterable[str], kind: StorageKind) -> None:
        """The activations that these tensors lie in become of that kind."""
        for s in (cast("str", self.tensors[t].storage) for t in tensors):
            if self.storages[s].kind is StorageKind.ACTIVATION:
                self.storages[s] = replace(self.storages[s], kind=kind)

    def _gradients(self, by_node: Mapping[str, Placeholder]) -> dict[str, str]:
        """Gradients by the first name of what they are of: parameters, and inputs that ask for one."""
        found: dict[str, str] = {}
        primals = [p for p in by_node.values() if p.kind != "tangent"]
        for given, gradient in zip(primals, self._outputs[self.joint.forward_outputs :], strict=True):
            tensor = self._tensor_of(gradient)
            if tensor is not None:
                found[given.names[0] if given.names else given.node] = tensor
        return found
