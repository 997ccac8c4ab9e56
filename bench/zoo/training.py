"""A training step derived from a forward graph: backward operators by rules, gradients summed, parameters updated.

It is derived, not captured: no framework was asked. What a capture would add or take away (fusion, recomputation,
casts of mixed precision, dropout) is left out.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, Operator, StorageKind

from .rules import backward, statistics
from .tape import PARAMETERS, Tape

STATES = {"sgd": (), "adam": ("exp_avg", "exp_avg_sq")}
"""Optimizers, and the states that each keeps of a parameter, in its dtype, as torch.optim does by default."""
UPDATE_FLOPS = {"sgd": 2, "adam": 12}
"""Operations an element."""


def training_graph(
    forward: Graph, *, optimizer: str = "adam", update: str = "last", sum_in_place: bool = True
) -> Graph:
    """One training step of `forward`, derived by reverse-mode rules at operator level (`rules`), not captured.

    Forward, with the statistics that backward rules read; a cross-entropy of the one output against labels (class
    axis 1 of an image, else the last); for each operator, in reverse, its backward operators, which read exactly the
    forward values that autograd saves for that type; and one update for each parameter, which reads its gradient and
    writes parameter and states in place (a new tensor on the same storage). Running means of batch norms are updated
    in place by the forward and have kind OPTIMIZER_STATE here: state that one step hands to the next.

    `optimizer`: 'sgd' (plain) or 'adam' (two states). `update`: 'last', after the whole backward, in the order in which
    gradients are complete; or 'early', as soon as a parameter's gradient is complete and nothing reads it any more.
    `sum_in_place`: gradients of what is read several times are summed into one of them where nothing else reads it;
    else each sum has its own storage. Parameters that no operator touches (experts not drawn) are not updated.

    Raises InputError for an operator without a rule, for several outputs, and for unknown options.
    """
    if optimizer not in STATES:
        raise InputError(f"no optimizer is called '{optimizer}'; there are: {', '.join(STATES)}")
    if update not in ("last", "early"):
        raise InputError(f"update '{update}' is neither 'last' nor 'early'")
    if len(forward.outputs) != 1:
        raise InputError(
            f"'{forward.name}' has {len(forward.outputs)} outputs; a loss is derived for one: build it with one head"
        )
    tape = Tape(forward, sum_in_place)
    for op in forward.operators:
        tape.add(_with_statistics(tape, op))
    labels, loss = _add_loss(tape, forward.outputs[0])
    readers = _first_readers(forward)
    for op in reversed(forward.operators):
        backward(tape, op)
        if update == "early":
            for parameter in readers.get(op.id, ()):
                _update(tape, parameter, optimizer)
    if update == "last":
        for op in reversed(forward.operators):
            for parameter in readers.get(op.id, ()):
                _update(tape, parameter, optimizer)
    return Graph(
        name=f"{forward.name}-training",
        storages=tuple(tape.storages.values()),
        tensors=tuple(tape.tensors.values()),
        operators=tuple(tape.operators),
        inputs=(*forward.inputs, labels),
        outputs=(loss,),
    )


def _first_readers(forward: Graph) -> dict[str, list[str]]:
    """Parameters by the first operator that reads them: backward, none reads them after its turn."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for op in forward.operators:
        for s in forward.reads(op):
            if s not in seen and forward.storage[s].kind in PARAMETERS:
                found.setdefault(op.id, []).append(s)
            seen.add(s)
    return found


def _with_statistics(tape: Tape, op: Operator) -> Operator:
    """The forward operator, with what its backward needs among its outputs, and running means updated."""
    if not any(tape.wants(x) for x in op.inputs):
        return op
    made = [
        tape.make(f"{op.id}.{part}", dtype, shape, StorageKind.ACTIVATION)
        for part, dtype, shape in statistics(tape, op)
    ]
    tape.statistics[op.id] = tuple(made)
    if op.op_type == "BatchNormalization":
        for x in op.inputs[3:]:
            at = tape.storages[tape.storage(x)]
            tape.storages[at.id] = replace(at, kind=StorageKind.OPTIMIZER_STATE)
            made.append(tape.version(x, f"{x}:next"))
    moved = op.moved_nbytes + sum(tape.tensors[x].nbytes for x in made)
    return replace(op, outputs=(*op.outputs, *made), moved_nbytes=moved)


def _add_loss(tape: Tape, output: str) -> tuple[str, str]:
    """Labels and loss; the logarithms of the probabilities are what its backward reads."""
    shape = tape.shape(output)
    axis = 1 if len(shape) == 4 else len(shape) - 1
    dtype = tape.tensors[output].dtype
    at = tape.storages[tape.storage(output)]
    tape.storages[at.id] = replace(at, kind=StorageKind.ACTIVATION)
    labels = tape.make("labels", "int64", (*shape[:axis], *shape[axis + 1 :]), StorageKind.INPUT)
    loss = tape.make("loss", dtype, (), StorageKind.OUTPUT)
    logs = tape.make("loss.log_probs", dtype, shape, StorageKind.ACTIVATION)
    cost = 5 * prod(shape)
    op = Operator("loss", "CrossEntropy", (output, labels), (loss, logs), "softmax", dtype, cost)
    tape.add(op)
    tape.emit(op, "dx", (logs, labels), (output,), flops=2 * prod(shape), cost_class="softmax")
    return labels, loss


def _update(tape: Tape, storage: str, optimizer: str) -> None:
    """Read gradient, parameter and states; write parameter and states in place."""
    gradient = tape.gradients.get(storage)
    if gradient is None:
        raise InputError(f"parameter '{storage}' of '{tape.forward.name}' has no gradient: the output ignores it")
    parameter = next(t for t in tape.forward.tensors if t.storage == storage)
    states = [tape.new(f"{storage}.{s}", parameter, StorageKind.OPTIMIZER_STATE) for s in STATES[optimizer]]
    read = (parameter.id, *states)
    written = tuple(tape.version(x, f"{x}:next") for x in read)
    elements = tape.elements(parameter.id)
    name = f"{storage}.update"
    flops = UPDATE_FLOPS[optimizer] * elements
    tape.add(Operator(name, optimizer, (*read, gradient), written, "elementwise", parameter.dtype, flops))
