"""What the values of a joint graph stand for: names of parameters, inputs and tangents, out of what PyTorch notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd import descriptors
from torch.utils import _pytree as pytree

from ...ir.errors import InputError
from .joint_graph import Joint, Placeholder


def names_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[int, tuple[Any, tuple[str, ...]]]:
    """By the identity of a tensor: its kind and its names."""
    found: dict[int, tuple[str, list[str]]] = {}
    for kind, named in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
        ("input", _leaves({"args": args, "kwargs": kwargs})),
    ):
        for name, value in named:
            found.setdefault(id(value), (kind, []))[1].append(name)
    return {i: (kind, tuple(names)) for i, (kind, names) in found.items()}


def _leaves(nest: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for path, leaf in pytree.tree_flatten_with_path(nest)[0]:
        if isinstance(leaf, torch.Tensor):
            yield path[0].key + pytree.keystr(path[1:]), leaf  # pyright: ignore[reportAttributeAccessIssue]


def sources_of(
    graph: fx.GraphModule, names: dict[int, tuple[Any, tuple[str, ...]]]
) -> list[tuple[Any, tuple[str, ...]]]:
    """What each placeholder of dynamo's graph is, by the tensor that it was traced with."""
    found: list[tuple[Any, tuple[str, ...]]] = []
    for node in graph.graph.find_nodes(op="placeholder"):
        given = node.meta.get("grapharg")
        if given is None or not isinstance(given.example, torch.Tensor):
            raise InputError(
                f"the module's graph takes '{node.name}', which is no tensor; a training plan takes tensors of fixed "
                "shapes, pass other things as constants"
            )
        found.append(names.get(id(given.example), ("constant", (str(given.source.name),))))
    return found


def described(joint: fx.GraphModule, forward_outputs: int, sources: list[tuple[Any, tuple[str, ...]]]) -> Joint:
    """Our data of AOT autograd's `joint`, whose placeholders are what `sources` says of dynamo's. InputError for what
    no plan takes."""
    _slim(joint)
    output = joint.graph.output_node()
    results: list[Any] = output.meta["desc"]
    position = {result: i for i, result in enumerate(results[:forward_outputs])}
    placeholders: list[Placeholder] = []
    node_of: dict[Any, str] = {}
    for node in joint.graph.find_nodes(op="placeholder"):
        what = node.meta["desc"]
        node_of[what] = node.name
        if isinstance(what, descriptors.PlainAOTInput):
            placeholders.append(Placeholder(node.name, *sources[what.idx]))
        elif isinstance(what, descriptors.TangentAOTInput) and what.output in position:
            placeholders.append(Placeholder(node.name, "tangent", (), position[what.output]))
        else:
            raise InputError(
                f"the module's graph takes '{node.name}' ({what.expr()}): inputs that are views of one another and are "
                "written in place, or tensor subclasses, have no training plan; clone them before the call"
            )
    updates = {
        i: node_of[result.mutated_input]
        for i, result in enumerate(results[:forward_outputs])
        if isinstance(result, descriptors.InputMutationAOTOutput)
    }
    return Joint(joint, forward_outputs, tuple(placeholders), updates)


def _slim(joint: fx.GraphModule) -> None:
    """Leave out what tracing wrote to each node for whoever reads it (stacks, sources): it is most of a graph's bytes,
    and a step holds its graph as long as it lives."""
    for node in joint.graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val", "desc") if key in node.meta}
