"""What a graph or a machine cannot be: each fault with its own kind and one clear message, before any work is done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..ir.collecting import without_collecting
from ..ir.errors import InputError
from ..ir.graph import Graph, Tensor
from ..ir.machine import Machine, Unit

EXACT_NBYTES = 1 << 53
"""Above this a float no longer holds every whole number of bytes, so neither would a linear program nor a bound."""


NAMED_OPERATORS = 6
"""So many operators of a cycle are named, its first and its last among them: who must break it sees where it is."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with an input: a short kind for programs, a sentence with the numbers for people."""

    kind: str
    message: str


@without_collecting()
def validate(graph: Graph, machine: Machine) -> None:
    """Raises InputError with the first fault of the machine or of the graph."""
    for fault in faults(graph, machine):
        raise InputError(fault.message)


def faults(graph: Graph, machine: Machine) -> Iterator[Fault]:
    """Every fault, the machine's first. What presumes sound names is looked at only where they are.

    A graph without operators is none, nor are values of zero bytes: nothing is planned for them.
    """
    found = False
    for fault in (*_machine_faults(machine), *_name_faults(graph)):
        found = True
        yield fault
    if not found:
        yield from _size_faults(graph)
        yield from _order_faults(graph)


def _machine_faults(machine: Machine) -> Iterator[Fault]:
    where = f"machine '{machine.name}'"
    yield from _twice(where, "tier", (t.name for t in machine.tiers))
    yield from _twice(where, "unit", (u.name for u in machine.units))
    yield from _twice(where, "link", (k.name for k in machine.links))
    for tier in machine.tiers:
        if tier.capacity_nbytes < 0 or not 0 <= tier.reserve_nbytes <= tier.capacity_nbytes:
            yield Fault(
                "capacity",
                f"{where}: tier '{tier.name}' has {tier.capacity_nbytes} bytes and reserves {tier.reserve_nbytes} of "
                "them; give it a capacity of at least its reserve, neither below zero",
            )
        if tier.alignment < 1:
            yield Fault("alignment", f"{where}: tier '{tier.name}' aligns to {tier.alignment} bytes; give at least 1")
    for link in machine.links:
        for end in (link.origin, link.target):
            if end not in machine.tier:
                tiers = ", ".join(machine.tier)
                yield Fault("unknown tier", f"{where}: link '{link.name}' joins '{end}', which is none of {tiers}")
        if not (math.isfinite(link.bytes_per_s) and link.bytes_per_s > 0):
            yield Fault(
                "bandwidth",
                f"{where}: link '{link.name}' moves {link.bytes_per_s:g} bytes per second; give a finite rate above "
                "zero, or remove the link",
            )
        if not (math.isfinite(link.latency_s) and link.latency_s >= 0):
            yield Fault("latency", f"{where}: link '{link.name}' has a latency of {link.latency_s:g} s; give 0 or more")
        if not (math.isfinite(link.contention) and link.contention >= 0):
            yield Fault(
                "contention", f"{where}: link '{link.name}' has a contention of {link.contention:g}; give 0 or more"
            )
    if not machine.units:
        yield Fault("no unit", f"{where} has no unit that could compute; add one")
    for unit in machine.units:
        yield from _unit_faults(unit, machine, where)


def _unit_faults(unit: Unit, machine: Machine, where: str) -> Iterator[Fault]:
    if unit.tier not in machine.tier:
        tiers = ", ".join(machine.tier) or "there is none"
        yield Fault("unknown tier", f"{where}: unit '{unit.name}' computes from tier '{unit.tier}'; its tiers: {tiers}")
    if not unit.flops_per_s:
        yield Fault("speed", f"{where}: unit '{unit.name}' has no FLOP/s for any type; give at least float32")
    rates = [*unit.flops_per_s, ("memory", unit.bytes_per_s)]
    for what, rate in rates:
        if not (math.isfinite(rate) and rate > 0):
            yield Fault("speed", f"{where}: unit '{unit.name}' has a rate of {rate:g} for {what}; give one above zero")
    if not (math.isfinite(unit.launch_s) and unit.launch_s >= 0):
        yield Fault("speed", f"{where}: unit '{unit.name}' launches in {unit.launch_s:g} s; give 0 or more")


def _name_faults(graph: Graph) -> Iterator[Fault]:
    """Names that are taken once, and that exist where they are used."""
    where = f"graph '{graph.name}'"
    yield from _twice(where, "storage", (s.id for s in graph.storages))
    yield from _twice(where, "tensor", (t.id for t in graph.tensors))
    yield from _twice(where, "operator", (o.id for o in graph.operators))
    for tensor in graph.tensors:
        if tensor.storage is not None and tensor.storage not in graph.storage:
            yield Fault(
                "unknown storage", f"tensor '{tensor.id}' lies in storage '{tensor.storage}', which {where} lacks"
            )
    users = [(f"op '{o.id}'", (*o.inputs, *o.outputs)) for o in graph.operators]
    users += [(f"the inputs of {where}", graph.inputs), (f"the outputs of {where}", graph.outputs)]
    for user, names in users:
        for name in names:
            if name not in graph.tensor:
                yield Fault("unknown tensor", f"{user} names tensor '{name}', which {where} does not have")


def _size_faults(graph: Graph) -> Iterator[Fault]:
    for storage in graph.storages:
        if storage.nbytes < 0:
            yield Fault("negative size", f"storage '{storage.id}' has {storage.nbytes} bytes; give 0 or more")
        if storage.nbytes > EXACT_NBYTES:
            yield Fault(
                "enormous",
                f"storage '{storage.id}' has {storage.nbytes} bytes; sizes are exact up to {EXACT_NBYTES}: look at its "
                "shape, or split it",
            )
        if storage.alignment < 1:
            yield Fault("alignment", f"storage '{storage.id}' aligns to {storage.alignment} bytes; give at least 1")
    total = sum(max(0, s.nbytes) for s in graph.storages)
    if total > EXACT_NBYTES >= max((s.nbytes for s in graph.storages), default=0):
        message = f"graph '{graph.name}' has {total} bytes in all; sizes are exact up to {EXACT_NBYTES}: split it"
        yield Fault("enormous", message)
    for tensor in graph.tensors:
        held = graph.storage[tensor.storage].nbytes if tensor.storage is not None else None
        if tensor.nbytes < 0 or tensor.offset < 0:
            message = f"tensor '{tensor.id}' has {tensor.nbytes} bytes at byte {tensor.offset}; give 0 or more"
            yield Fault("negative size", message)
        elif held is not None and held >= 0 and tensor.offset + tensor.nbytes > held:
            yield Fault(
                "outside",
                f"tensor '{tensor.id}' ends at byte {tensor.offset + tensor.nbytes} of storage '{tensor.storage}', "
                f"which has {held}",
            )
    for op in graph.operators:
        numbers = {"flops": op.flops, "moved_nbytes": op.moved_nbytes, "workspace_nbytes": op.workspace_nbytes}
        for name, number in {**numbers, "measured_ns": op.measured_ns or 0}.items():
            if number < 0:
                yield Fault("negative cost", f"op '{op.id}' has {name} = {number}; give 0 or more")


def _order_faults(graph: Graph) -> Iterator[Fault]:
    """Every tensor is made once, and before it is read."""
    made: dict[str, str] = {}
    for op in graph.operators:
        for name in op.outputs:
            if name in made:
                yield Fault("made twice", f"tensor '{name}' is made by op '{made[name]}' and by op '{op.id}'; keep one")
            made[name] = op.id
    held = _held(graph, made)
    for op in graph.operators:
        for name in op.inputs:
            if not _exists(graph.tensor[name], held, made):
                yield Fault(
                    "never made", f"op '{op.id}' reads tensor '{name}', which no operator makes and no input is"
                )
    for name in graph.outputs:
        if not _exists(graph.tensor[name], held, made):
            yield Fault("never made", f"output '{name}' of graph '{graph.name}' is made by no operator")
    before = predecessors(graph)
    late = next(((i, min(j for j in b if j >= i)) for i, b in enumerate(before) if any(j >= i for j in b)), None)
    if late is None:
        return
    cycle = _cycle(before)
    if cycle:
        names = [f"'{graph.operators[i].id}'" for i in (*cycle, cycle[0])]
        if len(cycle) > NAMED_OPERATORS:
            names[NAMED_OPERATORS - 1 : -2] = [f"... ({len(cycle) - NAMED_OPERATORS} more) ..."]
        path = " -> ".join(names)
        yield Fault("cyclic", f"the operators of graph '{graph.name}' wait for one another: {path}; break the cycle")
    else:
        reader, writer = (graph.operators[i].id for i in late)
        message = f"op '{reader}' (number {late[0]}) reads what op '{writer}' (number {late[1]}) makes only after it"
        yield Fault("order", f"{message}; list the operators of graph '{graph.name}' in an order that can run")


def _held(graph: Graph, made: dict[str, str]) -> set[str]:
    """Storages with content that no name of a tensor says the maker of: inputs, homed ones, all that is written."""
    names = {*graph.inputs, *made}
    written = {graph.tensor[n].storage for n in names}
    return {s.id for s in graph.storages if s.homed or s.id in written}


def _exists(tensor: Tensor, held: set[str], made: dict[str, str]) -> bool:
    # What has no storage and no maker is given from outside the plan, as the data of an input without a shape.
    return tensor.id in made or tensor.storage is None or tensor.storage in held


def predecessors(graph: Graph) -> list[tuple[int, ...]]:
    """For each operator, by index, the operators whose results it reads: in no valid order does it precede them.

    A tensor that no operator makes is a view of its storage: of what it holds when a pass begins, or else of what the
    operators before wrote to its bytes.
    """
    begins = {graph.tensor[n].storage for n in graph.inputs} | {s.id for s in graph.storages if s.homed}
    maker = {name: i for i, op in enumerate(graph.operators) for name in op.outputs}
    writers: dict[str, list[tuple[int, Tensor]]] = {}
    for name, i in maker.items():
        tensor = graph.tensor[name]
        if tensor.storage is not None:
            writers.setdefault(tensor.storage, []).append((i, tensor))
    found: list[tuple[int, ...]] = []
    for i, op in enumerate(graph.operators):
        before: dict[int, None] = {}
        for name in op.inputs:
            if name in maker:
                before[maker[name]] = None
            elif graph.tensor[name].storage not in begins:
                before |= dict.fromkeys(_written_before(graph.tensor[name], writers, i))
        found.append(tuple(before))
    return found


def _written_before(view: Tensor, writers: dict[str, list[tuple[int, Tensor]]], reader: int) -> list[int]:
    of_storage = writers.get(view.storage or "", [])
    if len(of_storage) == 1 and of_storage[0][0] != reader:
        return [of_storage[0][0]]
    end = view.offset + view.nbytes
    return [i for i, t in of_storage if i < reader and t.offset < end and view.offset < t.offset + t.nbytes]


def _cycle(before: list[tuple[int, ...]]) -> list[int]:
    """Operators that wait for one another in a ring, each for the next; empty where there are none."""
    after: list[list[int]] = [[] for _ in before]
    for i, earlier in enumerate(before):
        for j in earlier:
            after[j].append(i)
    waiting = [len(b) for b in before]
    ready = [i for i, count in enumerate(waiting) if not count]
    while ready:
        for i in after[ready.pop()]:
            waiting[i] -= 1
            if not waiting[i]:
                ready.append(i)
    stuck = {i for i, count in enumerate(waiting) if count}
    if not stuck:
        return []
    path, at = list[int](), min(stuck)
    place: dict[int, int] = {}
    while at not in place:
        place[at] = len(path)
        path.append(at)
        at = next(j for j in before[at] if j in stuck)
    return path[place[at] :]


def _twice(where: str, kind: str, names: Iterable[str]) -> Iterator[Fault]:
    for name, count in Counter(names).items():
        if count > 1:
            yield Fault("duplicate", f"{where} has {kind} '{name}' {count} times; give each its own name")
