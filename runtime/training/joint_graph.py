"""The joint forward and backward graph of a module, as data, and what is built from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import fx

Gradients: TypeAlias = "list[torch.Tensor | None]"


@dataclass(frozen=True, slots=True)
class Sections:
    """What is built from a joint graph.

    `forward(primals)` clears the list that it is given, and returns the forward's outputs and a state.
    `backward(state, tangents)` clears the list as well, and returns a gradient or None for each primal. `read` names
    the placeholders whose tensors the backward reads again: one that was written in place in between is an error.
    """

    forward: Callable[[list[Any]], tuple[list[Any], object]]
    backward: Callable[[object, list[Any]], Gradients]
    read: frozenset[str]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What the placeholder `node` of a joint graph stands for.

    `names` are the qualified names of a parameter or buffer (several where it is tied), and the path of an input, as
    "args[0]['ids']"; a 'constant' is a tensor that is held elsewhere, under the name that dynamo gives it. A 'tangent'
    is the gradient of forward output `output`.
    """

    node: str
    kind: Literal["parameter", "buffer", "input", "constant", "tangent"]
    names: tuple[str, ...] = ()
    output: int | None = None


@dataclass(frozen=True)
class Joint:
    """Forward and backward of a module as one graph of ATen calls.

    The graph's results are `forward_outputs` values of the forward, then one per placeholder that is no tangent: its
    gradient, or None. `updates` maps positions among the forward's outputs to the placeholder whose new value they are
    (the running mean of a batch norm, say): it is copied there after the forward. The remaining outputs are the
    module's result (or the loss), flat. `training`: the module was in training mode.
    """

    module: fx.GraphModule
    forward_outputs: int
    placeholders: tuple[Placeholder, ...]
    updates: Mapping[int, str] = field(default_factory=dict[int, str])
    training: bool = True

    @cached_property
    def primals(self) -> tuple[Placeholder, ...]:
        """The placeholders that are no tangents, in order: what the forward is called with."""
        return tuple(p for p in self.placeholders if p.kind != "tangent")

    @cached_property
    def outputs(self) -> tuple[fx.Node | None, ...]:
        """The nodes of the graph's results: of the forward, then the gradients."""
        (results,) = self.module.graph.output_node().args
        return tuple(cast("Sequence[fx.Node | None]", results))

    @cached_property
    def gradients(self) -> dict[str, fx.Node]:
        """The node of the gradient of each placeholder that has one."""
        found = zip(self.primals, self.outputs[self.forward_outputs :], strict=True)
        return {p.node: node for p, node in found if node is not None}

    @property
    def constants(self) -> dict[str, Any]:
        """By target, what the graph holds itself: tensors that forward makes of Python values, and subgraphs. The
        content of the tensors is no part of the key: it may be another one at every call."""
        nodes = self.module.graph.find_nodes(op="get_attr")
        return {str(n.target): attribute(self.module, str(n.target)) for n in nodes}

    @cached_property
    def key(self) -> str:
        """Digest of all that decides what is computed: operators, arguments, shapes, dtypes, names, torch's version."""
        return hashlib.sha256("\n".join(_lines(self)).encode()).hexdigest()


def attribute(module: fx.GraphModule, target: str) -> Any:
    """What `module.target` is, through the dots."""
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found


def is_view(node: fx.Node) -> bool:
    """Whether all that a node gives lies in the memory of what it is given."""
    given = {memory_of(n.meta.get("val")) for n in node.all_input_nodes}
    value = node.meta.get("val")
    parts: Sequence[object] = cast("Sequence[object]", value) if isinstance(value, (tuple, list)) else (value,)
    return all(memory_of(v) in given for v in parts if isinstance(v, torch.Tensor))


def memory_of(value: object) -> object:
    """The same for all tensors of one storage; None for what is no tensor."""
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None  # pyright: ignore


def _lines(joint: Joint) -> Iterator[str]:
    """What the key is a digest of: a line for each node. Devices are left out: 'meta' stands for the CPU."""
    yield f"torch {torch.__version__}"
    for p in joint.placeholders:
        yield f"{p.node} {p.kind} {p.names} {p.output}"
    yield from _node_lines(joint.module)
    yield f"{joint.forward_outputs} {sorted(joint.updates.items())}"


def _node_lines(module: fx.GraphModule) -> Iterator[str]:
    """A line for each node, and behind it those of the graph that it names: a branch of `torch.cond`, say."""
    for node in module.graph.nodes:
        yield f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} {_form(node.meta.get('val'))}"
        named = attribute(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(named, fx.GraphModule):
            yield from _node_lines(named)


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.requires_grad}"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_form, cast("list[Any]", value)))
    return repr(value)
