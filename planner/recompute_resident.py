"""Orders with so much recomputation that nothing need move, or no more than the tier below has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    return peak + homed_nbytes(instance)


def first_resident(instance: Instance, flow: Flow, sequence: Sequence[Chosen]) -> int | None:
    """How many of a sequence must be called again, at the least, for nothing to need moving; None: all are too few.

    By bisection, as if more recomputation always held less.
    """
    return _first(sequence, lambda chosen: held_nbytes(instance, flow, chosen) <= instance.capacity_nbytes)


def first_spilling_less(instance: Instance, flow: Flow, sequence: Sequence[Chosen]) -> int:
    """How many of a sequence must be called again, at the least, for what is made in a pass to have room in both
    tiers at every step; all, where they are too few. By bisection as in `first_resident`."""
    room = room_nbytes(instance)
    if room is None:
        return 0
    homed = homed_nbytes(instance)
    found = _first(sequence, lambda chosen: held_nbytes(instance, flow, chosen) - homed <= room)
    return len(sequence) if found is None else found


def down_to_leanest(instance: Instance, flow: Flow, cuts: Sequence[Chosen]) -> list[Chosen]:
    """The first of nested cuts, up to that with which a pass holds least: what is made again needs inputs that wait for
    it, and beyond some point these are more than what is given up."""
    held = [held_nbytes(instance, flow, frozenset[str]().union(*cuts[:n])) for n in range(len(cuts) + 1)]
    return list(cuts[: held.index(min(held))])


def homed_nbytes(instance: Instance) -> int:
    """Bytes of what has a copy at home."""
    return sum(item.nbytes for item in instance.items if item.homed)


def room_nbytes(instance: Instance) -> int | None:
    """Bytes that both tiers have for what is made in a pass, while nothing that has a copy at home is above; None
    where the one below is taken to hold everything."""
    return None if instance.spill_nbytes is None else instance.capacity_nbytes + instance.spill_nbytes


def overflows(instance: Instance) -> bool:
    """Whether some step of this order waits for more than both tiers hold: then it has no plan, whatever moves."""
    room = room_nbytes(instance)
    return room is not None and instance.peak_of_all() - homed_nbytes(instance) > room


def _first(sequence: Sequence[Chosen], fits: Callable[[Chosen], bool]) -> int | None:
    """The least number of a sequence that fits, by bisection; None where all together do not."""

    def all_fit(k: int) -> bool:
        return fits(frozenset[str]().union(*sequence[:k]))

    if not all_fit(len(sequence)):
        return None
    low, high = -1, len(sequence)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if all_fit(middle) else (middle, high)
    return high
