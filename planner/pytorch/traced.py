"""What the nodes of a traced graph say: what they are called with, what they change, which module they are in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from .lowered import ModuleCall

Value: TypeAlias = "str | tuple[Value, ...] | None"
"""What a traced value is in the graph: a tensor's id, several of them, or none for what is no tensor."""

_CALL = re.compile(r"@(\d+)$")
FREE = frozenset({"aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::_assert_async"})
"""Operators that exist for the trace alone."""
_RENAMING = frozenset({"aten::detach_", "aten::requires_grad_"})
_RUNNING_STATISTICS = {"aten::batch_norm": 5, "aten::native_batch_norm": 5, "aten::instance_norm": 5}
"""Operators that update arguments 3 and 4 where the argument at this position is true; their schemas do not say so."""


def schema_of(node: fx.Node) -> Any:
    """The torch.FunctionSchema of what a node calls, None for what is no ATen (or other registered) operator."""
    return node.target._schema if isinstance(node.target, OpOverload) else None  # pyright: ignore[reportPrivateUsage]


def region(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, list[object]] | None:
    """For a region under other settings (autocast, gradients): its graph and what its placeholders stand for."""
    if not isinstance(node.target, HigherOrderOperator):
        return None
    for i, arg in enumerate(node.args):
        if isinstance(arg, fx.Node) and arg.op == "get_attr":
            body = getattr(graph, cast("str", arg.target), None)
            rest: list[object] = list(node.args[i + 1 :])
            if isinstance(body, fx.GraphModule) and len(body.graph.find_nodes(op="placeholder")) == len(rest):
                return body, rest
    return None


def mutated(node: fx.Node) -> tuple[object, ...]:
    """The arguments whose data a call changes."""
    schema = schema_of(node)
    if schema is None or schema.name in _RENAMING or torch.Tag.inplace_view in cast("OpOverload", node.target).tags:
        return ()
    by_name = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    found = [by_name.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    switch = _RUNNING_STATISTICS.get(schema.name)
    if switch is not None and len(node.args) > switch and node.args[switch]:
        found += node.args[3:5]
    return tuple(found)


def module_call(node: fx.Node) -> ModuleCall:
    """The innermost call around a node; the outermost module of the trace is the wrapper of `capture`."""
    stack: dict[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ModuleCall("", 0)
    key, (path, _) = list(stack.items())[-1]
    repeated = _CALL.search(key)
    return ModuleCall(path.partition(".")[2] if "." in path else "", int(repeated[1]) if repeated else 0)


def value_of(arg: object, values: Mapping[fx.Node, Value]) -> Value:
    """What an argument of a node is, by what its nodes are."""
    if isinstance(arg, fx.Node):
        return values.get(arg)
    if isinstance(arg, (tuple, list)):
        return tuple(value_of(a, values) for a in cast("tuple[object, ...]", arg))
    if isinstance(arg, Mapping):
        return tuple(value_of(a, values) for a in cast("Mapping[str, object]", arg).values())
    return None


def leaves(value: Value) -> Iterator[str | None]:
    """The single values in a nested one."""
    if isinstance(value, tuple):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value
