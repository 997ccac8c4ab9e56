"""A live torch.optim object as updates of a planned step: which states there are, what an update costs, and how large
updates are split so that their states stream through a small window.

Where this stands among published systems. Fuyou (Liao et al., arXiv 2403.06504) runs the optimizer on the CPU while the
backward computes on the accelerator, and lets states travel between SSD and memory beside it, by a pipeline of its own.
Here updates are operators of the step and states are storages whose home is the SSD: the loads ahead of an update and
the stores behind it are gaps of the one residency problem that also decides about activations, on the same links and in
the same memory. What Fuyou schedules by hand falls out of that plan, and so do the states that stay. All updates run
on the unit that the step runs on; what dividing them between two units would be worth is told by `interleave`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx, nn

from ...ir.errors import InputError
from ...ir.graph import Graph, Operator, Storage, Tensor
from ...ir.machine import Machine
from ...ir.optimizer import (
    BLOCK_ELEMENTS,
    KINDS,
    OptimizerKind,
    Options,
    groups_from_text,
    groups_text,
    kind_of,
    options_of,
    splits,
    temporaries_nbytes,
)
from ...ir.program import OptimizerProgram, Update, row_major
from ..costs import OperatorCost
from ..pytorch.views import dtype_name
from .lowered import OptimizerCalls, StateTensor, StepLowered, UpdateCall

FLOPS = {"AdamW": 14, "Adam": 14, "SGD": 4, "Adafactor": 16}
"""Arithmetic for each element, a multiply-add as two, a root or a division as one. It never binds: updates are bound by
the bytes that they move."""
WINDOW_SHARE = 1 / 50
"""What one update touches of the budget at most, where states stream: at 2% the granularity costs little (see
docs/mathematics.md), and the window holds what is read ahead, what is updated and what is written behind."""
SMALLEST_PIECE_NBYTES = 1 << 20
"""States of an update are not split below this: requests to a disk reach its rate from here on."""
GRANULE_NBYTES = 4096
"""Pieces begin at multiples of a page in every array, so that transfers go past the page cache without a copy."""


def optimizer_calls(optimizer: Any, module: nn.Module) -> OptimizerCalls:
    """The updates of `optimizer` (AdamW, Adam, SGD or Adafactor of torch.optim) on the parameters of `module`.

    One call for each parameter that the optimizer holds. Options are read as they are; the runtime reads those that
    may change (learning rates above all) again at every step. Raises InputError for another kind of optimizer, options
    that no planned step honours, and parameters that are not the module's.
    """
    kind, options = kind_of(optimizer), options_of(optimizer)
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    calls: list[UpdateCall] = []
    for number, (group, chosen) in enumerate(zip(optimizer.param_groups, options, strict=True)):
        for position, parameter in enumerate(group["params"]):
            if id(parameter) not in names:
                raise InputError(
                    f"parameter {position} of group {number} of {kind.name} (shape {list(parameter.shape)}) is none of "
                    f"{type(module).__name__}; make the optimizer of the parameters of the module that is planned, or "
                    "plan without `optimizer`"
                )
            calls.append(_call(kind, number, chosen, tuple(names[id(parameter)]), parameter))
    return OptimizerCalls(kind.name, groups_text(options), tuple(calls))


def _call(
    kind: OptimizerKind, number: int, options: Options, names: tuple[str, ...], parameter: torch.Tensor
) -> UpdateCall:
    if parameter.layout is not torch.strided or (parameter.is_complex() and kind.name == "Adafactor"):
        raise InputError(
            f"parameter '{names[0]}' is {parameter.dtype} in layout {parameter.layout}, which {kind.name} in a planned "
            "step cannot update; plan without `optimizer`"
        )
    dtype, shape = dtype_name(parameter.dtype), tuple(parameter.shape)
    states = tuple(StateTensor(s.key, dtype, s.shape) for s in kind.states(options, shape))
    cost = _cost(kind, options, dtype, prod(shape), sum(prod(s.shape) for s in states), parameter.element_size())
    return UpdateCall(names, number, states, cost)


def _cost(kind: OptimizerKind, options: Options, dtype: str, elements: int, kept: int, itemsize: int) -> OperatorCost:
    """The gradient is read, parameter and states are read and written; temporaries stay in the cache where it runs in
    blocks, and cost their own bytes twice where it does not."""
    workspace = temporaries_nbytes(kind, options, dtype, elements, itemsize)
    moved = (3 * elements + 2 * kept) * itemsize + (0 if splits(kind, options, dtype) else 2 * workspace)
    return OperatorCost("elementwise", dtype, FLOPS[kind.name] * elements, moved, workspace)


def window_nbytes(machine: Machine) -> int:
    """Bytes of states that one update should touch at most on `machine`, where states do not all fit."""
    budget = machine.tier[machine.units[0].tier].usable_nbytes
    return max(SMALLEST_PIECE_NBYTES, int(budget * WINDOW_SHARE))


def split_updates(step: StepLowered, piece_nbytes: int) -> StepLowered:
    """`step` with updates whose states take more than `piece_nbytes` split into ranges of elements, each an operator
    with states of its own.

    Only where that gives the same bits (`ir.optimizer.splits`), the parameter's elements lie without gaps, and its
    gradient lies as it does; Adafactor's updates stay whole, for they take means over all of the parameter. Updates of
    one parameter follow one another where the whole one stood. Splitting again an update that is split is refused.
    """
    program = step.optimizer
    if program is None:
        return step
    kind, options = KINDS[program.kind], groups_from_text(program.groups)
    parts: dict[str, list[tuple[int, int]]] = {}
    for update in program.updates:
        if update.elements is not None:
            raise InputError(f"'{update.operator}' is split already; split the updates of a step once")
        ranges = _ranges(step, update, kind, options[update.group], piece_nbytes)
        if len(ranges) > 1:
            parts[update.operator] = ranges
    return _split(step, program, parts) if parts else step


def _ranges(
    step: StepLowered, update: Update, kind: OptimizerKind, options: Options, piece_nbytes: int
) -> list[tuple[int, int]]:
    graph = step.graph
    states = [graph.tensor[t] for t in update.states.values()]
    nbytes = sum(s.nbytes for s in states)
    if nbytes <= piece_nbytes or not splits(kind, options, states[0].dtype) or not laid_alike(step, update):
        return []
    elements = prod(states[0].shape or ())
    granule = GRANULE_NBYTES // (states[0].nbytes // elements)
    length = max(1, piece_nbytes * elements // nbytes // granule) * granule
    return [(lo, min(lo + length, elements)) for lo in range(0, elements, length)]


def laid_alike(step: StepLowered, update: Update) -> bool:
    """Whether element i of the gradient's memory belongs to element i of the parameter's."""
    storage = next(s for s, names in step.parameters.items() if names == update.names)
    if storage in step.sparse:
        return False
    node = _node(step, update.gradient)
    value = None if node is None else node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    shape = tuple(value.shape)
    wanted = step.strides.get(storage) or row_major(shape)
    return all(n == 1 or a == b for n, a, b in zip(shape, value.stride(), wanted, strict=True))


def _node(step: StepLowered, tensor: str) -> fx.Node | None:
    name = step.values[tensor].node if tensor in step.values else None
    return next((n for n in step.operators.traced.nodes if n.name == name), None)


def _split(step: StepLowered, program: OptimizerProgram, parts: Mapping[str, list[tuple[int, int]]]) -> StepLowered:
    graph = step.graph
    old = {t for u in program.updates if u.operator in parts for t in u.states.values()}
    storages: dict[str, list[Storage]] = {}
    tensors: list[Tensor] = []
    operators: dict[str, list[Operator]] = {}
    updates: list[Update] = []
    for update in program.updates:
        if update.operator not in parts:
            updates.append(update)
            continue
        whole = graph.operator[update.operator]
        calls: list[Operator] = []
        for number, (lo, hi) in enumerate(parts[update.operator]):
            states = {key: _piece(graph, t, number, lo, hi) for key, t in update.states.items()}
            for key, (storage, tensor) in states.items():
                storages.setdefault(update.states[key], []).append(storage)
                tensors.append(tensor)
            others = [graph.tensor[t] for t in whole.inputs if t not in old and t != update.gradient]
            held = [*others, *(t for _, t in states.values())]
            name = f"{update.operator}[{number}]"
            versions = [replace(t, id=f"{name}:{t.id}") for t in held]
            tensors += versions
            calls.append(_share(whole, name, update.gradient, held, versions, hi - lo, graph))
            by_key = {key: t.id for key, (_, t) in states.items()}
            updates.append(replace(update, operator=name, states=by_key, elements=(lo, hi)))
        operators[update.operator] = calls
    changed = _replaced(graph, old, storages, tensors, operators)
    return replace(
        step, operators=replace(step.operators, graph=changed), optimizer=replace(program, updates=tuple(updates))
    )


def _piece(graph: Graph, tensor: str, number: int, lo: int, hi: int) -> tuple[Storage, Tensor]:
    whole = graph.tensor[tensor]
    itemsize = whole.nbytes // prod(whole.shape or ())
    name, nbytes = f"{tensor}[{number}]", (hi - lo) * itemsize
    storage = replace(graph.storage[whole.storage or ""], id=name, nbytes=nbytes, blob=name, blob_offset=0)
    return storage, Tensor(name, whole.dtype, (hi - lo,), name, nbytes)


def _share(
    whole: Operator, name: str, gradient: str, held: list[Tensor], versions: list[Tensor], elements: int, graph: Graph
) -> Operator:
    """The operator of a range: its share of the work, and the temporaries of a range that long."""
    total = prod(graph.tensor[gradient].shape or ())
    return replace(
        whole,
        id=name,
        inputs=(gradient, *(t.id for t in held)),
        outputs=tuple(t.id for t in versions),
        flops=whole.flops * elements // total,
        moved_nbytes=whole.moved_nbytes * elements // total,
        workspace_nbytes=whole.workspace_nbytes * min(elements, BLOCK_ELEMENTS) // min(total, BLOCK_ELEMENTS),
        measured_ns=None,
    )


def _replaced(
    graph: Graph,
    old: set[str],
    storages: Mapping[str, list[Storage]],
    tensors: list[Tensor],
    operators: Mapping[str, list[Operator]],
) -> Graph:
    """The graph with the operators of `operators` in place of those they are parts of, and states to match."""
    gone = old | {t for op in operators for t in graph.operator[op].outputs}
    return replace(
        graph,
        storages=tuple(new for s in graph.storages for new in storages.get(s.id, [s])),
        tensors=(*(t for t in graph.tensors if t.id not in gone), *tensors),
        operators=tuple(new for op in graph.operators for new in operators.get(op.id, [op])),
    )


def with_update_times(step: StepLowered, measure: Callable[[str, Options, str, int], int]) -> StepLowered:
    """`step` with the time of each update as measured here: `measure(kind, options, dtype, elements)` in nanoseconds,
    as `runtime.training.optimizer.update_ns` gives it. Updates of equal form are measured once."""
    program = step.optimizer
    if program is None:
        return step
    options = groups_from_text(program.groups)
    known: dict[tuple[int, str, int], int] = {}
    times: dict[str, int] = {}
    for update in program.updates:
        gradient = step.graph.tensor[update.gradient]
        lo, hi = update.elements or (0, prod(gradient.shape or ()))
        form = update.group, gradient.dtype, hi - lo
        if form not in known:
            known[form] = measure(program.kind, options[update.group], gradient.dtype, hi - lo)
        times[update.operator] = known[form]
    operators = tuple(replace(op, measured_ns=times.get(op.id, op.measured_ns)) for op in step.graph.operators)
    return replace(step, operators=replace(step.operators, graph=replace(step.graph, operators=operators)))
