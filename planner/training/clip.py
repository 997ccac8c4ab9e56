"""Clipping in a planned step: norms of gradients, the factor that they give, and updates that wait for it.

An update that runs as soon as its gradient is complete cannot know the norm of all gradients. So where they are clipped
by it, each gradient is kept, or stored and loaded again, as the plan decides, from its making to its update, and all
updates stand behind the last norm. The gradient that was made last comes first there: it is still in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from ...ir.errors import InputError
from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from ...ir.optimizer import BLOCK_ELEMENTS, KINDS, groups_from_text, splits
from ...ir.program import Clip, OptimizerProgram, Update
from .lowered import StepLowered
from .optimizer import laid_alike
from .updates import UPDATE

NORM = "norm"
"""Type of the operators that take the norm of one gradient, and the beginning of their names."""
FACTOR = "clip"
"""Type and name of the operator that makes the factor of the norms."""

Measure = Callable[[str, str, int], int]
"""Nanoseconds of taking a norm (`NORM`) or scaling (`FACTOR`), by dtype and elements."""


def with_clipping(step: StepLowered, clip: Clip, measure: Measure | None = None) -> StepLowered:
    """`step`, which has updates, with gradients clipped before them: after `split_updates` and `with_update_times`.

    Each update makes the clipped gradient for itself, in its workspace: a block at a time where it runs in blocks.
    Raises InputError where a gradient is asked for that no update uses: the norm is that of all gradients.
    """
    program = step.optimizer
    if program is None:
        raise InputError("gradients are clipped in the step where its updates are; plan with `optimizer`")
    beside = sorted(set(step.gradients) - {u.names[0] for u in program.updates})
    if clip.max_norm is not None and beside:
        raise InputError(
            f"max_norm clips by the norm of all gradients, and parameter '{beside[0]}' has one that the optimizer does "
            "not use; give the optimizer all parameters that are trained, or set requires_grad of the others to False"
        )
    updates = {u.operator: _scaling(step, program, u, measure) for u in program.updates}
    operators = replace(step.operators, graph=_replaced(step.graph, updates))
    step = replace(step, operators=operators, clip=clip)
    return step if clip.max_norm is None else _behind_norms(step, program, clip, measure)


def _scaling(step: StepLowered, program: OptimizerProgram, update: Update, measure: Measure | None) -> Operator:
    """The operator of an update with a clipped gradient beside the gradient."""
    operator, gradient = step.graph.operator[update.operator], step.graph.tensor[update.gradient]
    lo, hi = update.elements or (0, prod(gradient.shape or ()))
    options = groups_from_text(program.groups)[update.group]
    in_blocks = splits(KINDS[program.kind], options, gradient.dtype)
    itemsize = gradient.nbytes // max(1, prod(gradient.shape or ()))
    at_once = min(hi - lo, BLOCK_ELEMENTS) if in_blocks else hi - lo
    taken = operator.measured_ns
    if taken is not None and measure is not None:
        taken += measure(FACTOR, gradient.dtype, hi - lo)
    return replace(
        operator,
        flops=operator.flops + hi - lo,
        moved_nbytes=operator.moved_nbytes + (0 if in_blocks else 2 * (hi - lo) * itemsize),
        workspace_nbytes=operator.workspace_nbytes + at_once * itemsize,
        measured_ns=taken,
    )


def _behind_norms(step: StepLowered, program: OptimizerProgram, clip: Clip, measure: Measure | None) -> StepLowered:
    """The step with a norm behind each gradient, and all updates behind the factor."""
    graph = step.graph
    made = {s: i for i, op in enumerate(graph.operators) for s in graph.writes(op)}
    factor = Tensor(FACTOR, "float32", (), FACTOR, 0)
    storages, tensors = [Storage(FACTOR, 0, StorageKind.ACTIVATION)], [factor]
    norms: dict[str, str] = {}
    behind: dict[int, list[Operator]] = {}
    complete: dict[str, int] = {}
    for update in program.updates:
        at = complete[update.operator] = made.get(graph.tensor[update.gradient].storage or "", -1)
        name = f"{NORM}:{update.names[0]}"
        if name not in norms:
            norms[name] = update.names[0]
            storages.append(Storage(name, 0, StorageKind.ACTIVATION))
            tensors.append(Tensor(name, graph.tensor[update.gradient].dtype, (), name, 0))
            behind.setdefault(at, []).append(_norm(step, update, name, measure))
    makes = Operator(FACTOR, FACTOR, tuple(norms), (FACTOR,), flops=4 * len(norms), moved_nbytes=8 * len(norms))
    last = sorted(program.updates, key=lambda u: -complete[u.operator])  # stable: parts of one stay in their order
    waiting = [replace(o, inputs=(*o.inputs, FACTOR)) for o in (graph.operator[u.operator] for u in last)]
    ordered = list(behind.get(-1, ()))
    for i, operator in enumerate(graph.operators):
        ordered += [operator] if operator.op_type != UPDATE else []
        ordered += behind.get(i, ())
    changed = replace(
        graph,
        storages=(*graph.storages, *storages),
        tensors=(*graph.tensors, *tensors),
        operators=(*ordered, makes, *waiting),
    )
    return replace(
        step,
        operators=replace(step.operators, graph=changed),
        clip=replace(clip, operator=FACTOR, norms=norms),
    )


def _norm(step: StepLowered, update: Update, name: str, measure: Measure | None) -> Operator:
    """Reads the gradient; where it lies otherwise than its parameter, a copy that lies like it, as autograd makes."""
    gradient = step.graph.tensor[update.gradient]
    elements = prod(gradient.shape or ())
    return Operator(
        id=name,
        op_type=NORM,
        inputs=(gradient.id,),
        outputs=(name,),
        dtype=gradient.dtype,
        flops=2 * elements,
        moved_nbytes=gradient.nbytes,
        workspace_nbytes=0 if laid_alike(step, update) else gradient.nbytes,
        measured_ns=None if measure is None else measure(NORM, gradient.dtype, elements),
    )


def _replaced(graph: Graph, operators: dict[str, Operator]) -> Graph:
    return replace(graph, operators=tuple(operators.get(op.id, op) for op in graph.operators))
