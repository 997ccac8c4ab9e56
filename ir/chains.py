"""Which transfers a transfer must wait for: those that bring its bytes to where it takes them from, and those that
take others away from where it puts them.

Of two transfers that may begin at the same instant, the one that stands first in the plan counts as the earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Graph
from .plan import Plan, Residency, Transfer


@dataclass(frozen=True, slots=True)
class Wait:
    """Transfer `index` of the plan, as run `passes` passes earlier."""

    index: int
    passes: int


def occurrence(r: Residency, instant: int, total: int, *, homed: bool) -> int | None:
    """The start of the turn of `r` that lasts at `instant`, counted on over passes of `total` steps; None if none does.

    Both ends count: a transfer may begin at the instant a residency starts, and must be complete when it ends. Of two
    turns that meet at the instant the later one is meant. What is not homed has one turn, in its own pass.
    """
    start = r.start + (instant - r.start) // total * total if homed else r.start
    return start if start <= instant <= start + r.end - r.start else None


def permanent(r: Residency, total: int) -> bool:
    """Whether it never ends: its turns follow one another without a pause."""
    return r.end - r.start == total


def covers(r: Residency, step: int, total: int) -> bool:
    """Whether `r` lasts throughout `step`, of this pass or as step of the next one."""
    return r.start <= step < r.end or r.start <= step + total < r.end


def holds(r: Residency, t: Transfer, total: int, *, homed: bool) -> bool:
    """Whether `r` covers the bytes of `t` from instant `t.after` through `t.before`."""
    if not (r.lo <= t.lo and t.hi <= r.hi):
        return False
    if homed and permanent(r, total):
        return True
    start = occurrence(r, t.after, total, homed=homed)
    return start is not None and t.before <= start + r.end - r.start


def source_of(plan: Plan, graph: Graph, t: Transfer) -> Residency | None:
    """The residency that holds what `t` moves, from instant `t.after` through `t.before`; None where there is none."""
    homed = graph.storage[t.storage].homed
    stays = plan.residencies_of.get(t.storage, ())
    return next((r for r in stays if r.tier == t.origin and holds(r, t, len(plan.steps), homed=homed)), None)


def transfer_waits(plan: Plan, graph: Graph) -> tuple[tuple[Wait, ...], ...]:
    """For each transfer of the plan, those it must wait for beyond the order of its lane and the instants.

    That are the last ones before it into its source, one for each range of bytes, and those that must have left its
    place by the very instant at which it may start: later, a step has waited for them.
    """
    filled = _transfers_into(plan)
    leaving = _transfers_leaving(plan, graph)
    found: list[tuple[Wait, ...]] = []
    for own, t in enumerate(plan.transfers):
        waits = _waits_for_content(plan, graph, own, filled.get((t.storage, t.origin), []))
        waits += _waits_for_room(plan, graph, t, leaving.get((t.target, t.after), []))
        found.append(tuple(waits))
    return tuple(found)


def _transfers_into(plan: Plan) -> dict[tuple[str, str], list[tuple[int, Transfer]]]:
    """Transfers with their indices, by storage and target."""
    found: dict[tuple[str, str], list[tuple[int, Transfer]]] = {}
    for index, t in enumerate(plan.transfers):
        found.setdefault((t.storage, t.target), []).append((index, t))
    return found


def _transfers_leaving(plan: Plan, graph: Graph) -> dict[tuple[str, int], list[tuple[int, Transfer, Residency]]]:
    """Transfers out of a residency that ends when they must be complete, by tier and that instant of the pass."""
    total = len(plan.steps)
    found: dict[tuple[str, int], list[tuple[int, Transfer, Residency]]] = {}
    for index, t in enumerate(plan.transfers):
        if t.origin == plan.home_tier and graph.storage[t.storage].homed:
            continue
        source = source_of(plan, graph, t)
        if source is not None and source.end % total == t.before % total:
            found.setdefault((t.origin, t.before % total), []).append((index, t, source))
    return found


def _waits_for_content(plan: Plan, graph: Graph, own: int, into: list[tuple[int, Transfer]]) -> list[Wait]:
    if not into:
        return []
    t, total = plan.transfers[own], len(plan.steps)
    since = _content_since(plan, graph, t)
    latest: dict[tuple[int, int], tuple[int, int]] = {}
    for index, f in into:
        after = f.after + (t.after - f.after) // total * total
        if f.lo < t.hi and t.lo < f.hi and since <= after and (after < t.after or index < own):
            latest[f.lo, f.hi] = max(latest.get((f.lo, f.hi), (after, index)), (after, index))
    return [Wait(i, (plan.transfers[i].after - after) // total) for after, i in sorted(latest.values())]


def _waits_for_room(
    plan: Plan, graph: Graph, t: Transfer, leaving: list[tuple[int, Transfer, Residency]]
) -> list[Wait]:
    if not leaving:
        return []
    total, homed = len(plan.steps), graph.storage[t.storage].homed
    places = [
        r
        for r in plan.residencies_of.get(t.storage, ())
        if r.tier == t.target and r.start == t.after and holds(r, t, total, homed=homed)
    ]
    return [
        Wait(index, (u.before - t.after) // total)
        for index, u, source in leaving
        if any(r.offset < source.offset + source.nbytes and source.offset < r.offset + r.nbytes for r in places)
    ]


def _content_since(plan: Plan, graph: Graph, t: Transfer) -> int:
    """The instant before which nothing moved into the source of `t` concerns it: an earlier content lay there."""
    total = len(plan.steps)
    homed = graph.storage[t.storage].homed
    for_ever = t.after - total if homed else 0
    source = None if homed and t.origin == plan.home_tier else source_of(plan, graph, t)
    if source is None or (homed and permanent(source, total)):
        return for_ever
    start = occurrence(source, t.after, total, homed=homed)
    return for_ever if start is None else max(start, for_ever)
