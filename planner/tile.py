"""How finely large weights are split for a budget, so that they stream, and that small budgets are feasible at all."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from ..ir.errors import InfeasibleError
from ..ir.machine import Machine
from .costs import duration_ns
from .instance import make_instance
from .lookups import STREAMED_SHARE, better_left, store_link
from .onnx import Lowered, SplitAxis, apply_lookups, split, splittable, tables

JOINED_SHARE = 1 / 6
"""Where the parts' results must be joined by a copy, weights up to this share of the budget stay whole: only what would
keep loads from overlapping compute is worth the copy."""
JOINED_PART_SHARE = 1 / 30
"""Once the copy is paid for, more parts cost little: each is at most this share of the budget."""
LAUNCHES_PER_PART = 20
"""A part must compute for at least as long as this many launches, or splitting costs more than it gains."""


def tile(lowered: Lowered, machine: Machine) -> Lowered:
    """`lowered` with large weights split for the budget of the machine's compute tier, and with tables of which a pass
    needs a few rows left in the store. Untouched where everything fits twice over."""
    budget = machine.tier[machine.units[0].tier].usable_nbytes
    if sum(s.nbytes for s in lowered.graph.storages if s.homed) <= budget // 2:
        return lowered  # everything will stay: splitting would only cost
    lowered = _leave_tables(lowered, machine, budget)
    parts = _parts(lowered, machine, budget)
    return split(lowered, parts) if parts else lowered


def _leave_tables(lowered: Lowered, machine: Machine, budget: int) -> Lowered:
    """Tables above a share of the budget whose rows are read faster than the whole."""
    graph, link = lowered.graph, store_link(machine)
    chosen: list[str] = []
    for storage, operators in tables(lowered).items():
        table = graph.storage[storage]
        picked = sum(prod(graph.tensor[graph.operator[o].inputs[1]].shape or ()) for o in operators)
        row_nbytes = max(graph.tensor[graph.operator[o].outputs[0]].nbytes for o in operators) // max(picked, 1)
        if better_left(table.nbytes, picked, row_nbytes, budget, link):
            chosen.append(storage)
    return apply_lookups(lowered, chosen, link) if chosen else lowered


def _parts(lowered: Lowered, machine: Machine, budget: int) -> dict[str, int]:
    """Into how many parts each operator with a large weight is split."""
    unit = machine.units[0]
    parts: dict[str, int] = {}
    for op_id, axis in splittable(lowered).items():
        nbytes = axis.units * axis.unit_nbytes
        if not axis.contiguous_output and nbytes <= budget * JOINED_SHARE:
            continue
        share = STREAMED_SHARE if axis.contiguous_output else JOINED_PART_SHARE
        wanted = -(-nbytes // max(1, int(budget * share)))
        op = lowered.graph.operator[op_id]
        worthwhile = max(1, duration_ns(op, unit) // max(1, int(1e9 * unit.launch_s * LAUNCHES_PER_PART)))
        if nbytes * 4 > budget:  # a question of feasibility, not of speed
            worthwhile = axis.units
        count = min(wanted, worthwhile, _most_parts(axis))
        if count > 1:
            parts[op_id] = int(count)
    return parts


def _most_parts(axis: SplitAxis) -> int:
    return max(1, axis.units // axis.granule)


def smallest_budget(lowered: Lowered, machine: Machine) -> int:
    """The smallest capacity in bytes of the compute tier at which, with weights split for that very capacity, the
    largest working set and workspace fit. Bisection; a finer split at a smaller budget only ever helps."""
    tier = machine.units[0].tier

    def fits(nbytes: int) -> bool:
        smaller = machine.with_capacity({tier: nbytes})
        try:
            make_instance(tile(lowered, smaller).graph, smaller)
        except InfeasibleError:
            return False
        return True

    roomy = replace(machine, tiers=tuple(replace(t, capacity_nbytes=1 << 60) for t in machine.tiers))
    whole = make_instance(lowered.graph, roomy)
    reserve = machine.tier[tier].reserve_nbytes
    low, high = reserve + 1, whole.smallest_budget
    while high - low > 4096:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
