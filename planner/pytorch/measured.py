"""From traced operators to what is measured of them, and from measured times to the graph's durations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload

from ...ir.graph import Operator
from ...ir.machine import Unit
from ...ir.signature import Argument, Request, Signature, TensorForm, TorchName, write_signature
from ..costs import duration_ns
from .lower import OpLowered

_ONLY_TRACED = ("aten._assert", "aten.detach_.")
"""Beginnings of operators that torch.export adds, and no eager pass makes."""


def signatures(lowered: OpLowered) -> dict[str, Signature]:
    """Signatures of the calls of a pass by the name of their node: that of the operator in the graph, or of a view.

    Parameters and buffers, and all views of them, come from memory. Left out is what a signature cannot tell: regions
    with a graph of their own, tensors whose shape depends on data.
    """
    from_memory = _weights_and_views(lowered.traced, lowered.traced_weights)
    found: dict[str, Signature] = {}
    for node in lowered.traced.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            signature = None if str(node.target).startswith(_ONLY_TRACED) else _signature(node, from_memory)
            if signature is not None:
                found[node.name] = signature
    return found


def requests(lowered: OpLowered, unit: Unit) -> tuple[Request, ...]:
    """What to measure of a pass, each signature once, in the order of the program."""
    calls: dict[Signature, list[str]] = {}
    for name, signature in signatures(lowered).items():
        calls.setdefault(signature, []).append(name)
    return tuple(_request(s, lowered.graph.operator.get(names[0]), len(names), unit) for s, names in calls.items())


def _request(signature: Signature, op: Operator | None, calls: int, unit: Unit) -> Request:
    """A view has no operator: it moves nothing, and takes a launch at the most."""
    if op is None:
        return Request(signature, max(1, round(1e9 * unit.launch_s)), calls, 0)
    formula_ns = duration_ns(replace(op, measured_ns=None), unit)
    return Request(signature, formula_ns, calls, op.moved_nbytes + op.workspace_nbytes)


def with_measured(lowered: OpLowered, unit: Unit, times: Mapping[Signature, int], *, python_ns: int = 0) -> OpLowered:
    """`lowered` with `measured_ns` in every operator: its own time where there is one, else its formula's, corrected.

    It is multiplied by what the formulas of its cost class were wrong by: the median of measured over formula time, or
    that of all classes where none of its own was measured.

    `python_ns` is what a pass spends in the module's own Python. With the times of the views, which are no operators,
    it is spread evenly over the operators, the remainder of the division going to the first ones.
    """
    calls = signatures(lowered)
    graph = lowered.graph
    formulas = [duration_ns(replace(op, measured_ns=None), unit) for op in graph.operators]
    factor = _factors(graph.operators, formulas, calls, times)
    views_ns = sum(times.get(signature, 0) for name, signature in calls.items() if name not in graph.operator)
    share, rest = divmod(python_ns + views_ns, max(1, len(graph.operators)))
    changed: list[Operator] = []
    for k, (op, formula) in enumerate(zip(graph.operators, formulas, strict=True)):
        ns = times.get(calls.get(op.id, ""))
        if ns is None:
            ns = round(formula * factor.get(op.cost_class, factor.get("", 1.0)))
        changed.append(replace(op, measured_ns=max(1, ns) + share + (k < rest)))
    return replace(lowered, graph=replace(graph, operators=tuple(changed)))


def _factors(
    ops: Sequence[Operator],
    formulas: Sequence[int],
    operators: Mapping[str, Signature],
    times: Mapping[Signature, int],
) -> dict[str, float]:
    """Median of measured over formula time by cost class, and of all under ''; every signature counts once."""
    ratios: dict[tuple[str, Signature], float] = {}
    for op, formula in zip(ops, formulas, strict=True):
        signature = operators.get(op.id)
        if signature is not None and signature in times:
            ratios[op.cost_class, signature] = times[signature] / formula
    classes: dict[str, list[float]] = {}
    for (cost_class, _), ratio in ratios.items():
        classes.setdefault(cost_class, []).append(ratio)
        classes.setdefault("", []).append(ratio)
    return {cost_class: median(found) for cost_class, found in classes.items()}


def _weights_and_views(graph: fx.Graph, weights: Collection[str]) -> set[fx.Node]:
    """Placeholders of these names, and what operators return that is a view of one."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in weights:
            found.add(node)
        elif node.op == "call_function" and isinstance(node.target, OpOverload):
            if any(source in found for source in _viewed(node, node.target)):
                found.add(node)
        elif node.op == "call_function" and node.args and node.args[0] in found:
            found.add(node)  # an element of a split weight
    return found


def _viewed(node: fx.Node, overload: OpOverload) -> Iterable[fx.Node]:
    """The arguments that an operator returns views of: the schema marks them with an alias that is not written."""
    arguments: Iterable[Any] = cast("Any", overload)._schema.arguments
    for argument, given in zip(arguments, node.args, strict=False):
        if isinstance(given, fx.Node) and argument.alias_info is not None and not argument.alias_info.is_write:
            yield given


class _UntellableError(Exception):
    """An argument that a signature has no word for."""


def _signature(node: fx.Node, from_memory: Collection[fx.Node]) -> Signature | None:
    def tell(argument: Any) -> Argument:
        if isinstance(argument, fx.Node):
            return _told(argument.meta.get("val"), weight=argument in from_memory, tell=tell)
        return _told(argument, weight=False, tell=tell)

    try:
        args = [tell(a) for a in node.args]
        # Where it runs is the measuring machine's affair.
        kwargs = {k: tell(v) for k, v in node.kwargs.items() if k not in ("device", "pin_memory")}
    except _UntellableError:
        return None
    return write_signature(str(node.target), args, kwargs)


def _told(value: Any, *, weight: bool, tell: Any) -> Argument:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            raise _UntellableError
        shape, strides = tuple(map(_whole, value.shape)), tuple(map(_whole, value.stride()))
        return TensorForm(str(value.dtype).removeprefix("torch."), shape, strides, weight)
    if value is None or isinstance(value, (bool, int, float, str)):
        return cast("Argument", value)
    if isinstance(value, (list, tuple)):
        return tuple(tell(v) for v in cast("list[Any]", value))
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return TorchName(str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return "cpu"
    if isinstance(value, torch.SymInt):
        return _whole(value)
    raise _UntellableError


def _whole(number: int | torch.SymInt) -> int:
    """A dimension that does not depend on data."""
    if isinstance(number, int):
        return number
    known = number.node.maybe_as_int()
    if known is None:
        raise _UntellableError
    return int(known)
