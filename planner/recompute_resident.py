"""Orders with so much recomputation that nothing need move."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.plan import Plan
from .instance import Instance
from .place import place
from .realise import realise
from .recompute_choice import Chosen
from .recompute_orders import Flow, recompute_order
from .stays import Decisions, make_stays


def resident_plan(instance: Instance, name: str, *, packing_time_s: float, seed: int) -> Plan | None:
    """The plan in which nothing is ever moved; None where it does not fit."""
    nothing = Decisions(frozenset(), {}, prefetch=False)
    if instance.peak_of_all() > instance.capacity_nbytes:
        return None
    stays = make_stays(instance, nothing.evicted)
    placed = place(instance, stays, nothing, packing_time_s=packing_time_s, seed=seed)
    return None if placed is None else realise(instance, placed, name)


def held_nbytes(instance: Instance, flow: Flow, chosen: Chosen) -> int:
    """Bytes that a pass with these operators called again holds at most when nothing moves.

    As `peak_of_all` of the posed order, without posing it.
    """
    graph = instance.graph
    size = {item.storage: item.nbytes for item in instance.items}
    order = recompute_order(flow, chosen)
    begin: dict[str, int] = dict.fromkeys(graph.storages_of(graph.inputs), 0)
    last: dict[str, int] = {}
    change = [0] * (len(order) + 1)

    def close(s: str) -> None:
        if s in begin and s in size and not graph.storage[s].homed:
            change[begin[s]] += size[s]
            change[max(last.get(s, 0), begin[s]) + 1] -= size[s]

    for t, op in enumerate(order):
        for s in flow.reads[op]:
            last[s] = t
        for s in flow.writes[op]:
            if s not in begin or s in flow.maker:
                close(s)
                begin[s] = t
            last[s] = t
    for s in graph.storages_of(graph.outputs):
        last[s] = len(order) - 1
    for s in begin:
        close(s)
    live = peak = 0
    for delta in change:
        live += delta
        peak = max(peak, live)
    return peak + sum(item.nbytes for item in instance.items if item.homed)


def first_resident(instance: Instance, flow: Flow, sequence: Sequence[Chosen]) -> int | None:
    """How many of a sequence must be called again, at the least, for nothing to need moving; None: all are too few.

    By bisection, as if more recomputation always held less.
    """

    def fits(k: int) -> bool:
        return held_nbytes(instance, flow, frozenset().union(*sequence[:k])) <= instance.capacity_nbytes

    if not fits(len(sequence)):
        return None
    low, high = 0, len(sequence)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
