"""While a transfer may run its source and its place are there, nobody else writes either, and nobody reads its place.

The part of the checker that looks at what could come in another order than the plan counts on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from .chains import Wait, covers, holds, transfer_waits
from .follow import Bytes, Route
from .graph import Graph, Storage
from .machine import Machine
from .plan import Plan, Residency, Transfer
from .uses import Uses
from .violation import Violation


class Lanes:
    """In which order two transfers of a plan run, whatever they take: worked out when it is first asked for."""

    def __init__(self, plan: Plan, graph: Graph, machine: Machine) -> None:
        self._plan = plan
        self._graph = graph
        self._machine = machine

    @cached_property
    def _number(self) -> dict[int, int]:
        return {id(t): number for number, t in enumerate(self._plan.transfers)}

    @cached_property
    def _waits(self) -> tuple[tuple[Wait, ...], ...]:
        return transfer_waits(self._plan, self._graph)

    def follows(self, later: Transfer, earlier: Transfer, passes: int) -> bool:
        """Whether `later` starts only when `earlier` of `passes` passes before is complete: because it waits for it, or
        behind it in a lane that several links share. Transfers of one link may overlap a little in their lane."""
        a, b = self._number[id(earlier)], self._number[id(later)]
        link = self._machine.link
        shared = earlier.link != later.link and (
            link[earlier.origin, earlier.target].lane == link[later.origin, later.target].lane
        )
        return (shared and (passes > 0 or a < b)) or Wait(a, passes) in self._waits[b]


def check_windows(
    plan: Plan,
    storage: Storage,
    uses: Uses,
    stays: tuple[Residency, ...],
    moves: list[Transfer],
    unit_tier: dict[str, str],
) -> Iterator[Violation]:
    """While a transfer may run, its source and its place are there, and no step writes either."""
    total = len(plan.steps)
    for t in moves:
        window = f"transfer of '{storage.id}' in [{t.after}, {t.before})"
        for tier, kind, text in (
            (t.target, "no-place", f"has no place in '{t.target}'"),
            (t.origin, "no-source", f"outlives it in '{t.origin}'"),
        ):
            at_home = storage.homed and tier == plan.home_tier
            if not at_home and not any(r.tier == tier and holds(r, t, total, homed=storage.homed) for r in stays):
                yield Violation(kind, f"{window} {text}")
        if t.before > total and not storage.homed:
            yield Violation("interval", f"{window} of {total} reaches into the next pass, which begins without it")
        for w in uses.writes:
            writer = unit_tier[plan.steps[w].unit]
            during = t.after <= w < t.before or t.after <= w + total < t.before
            if during and writer in (t.origin, t.target):
                yield Violation("early", f"{window} runs while step {w} writes it in '{writer}'")
    if not storage.homed:
        for r in stays:
            if r.end > total:
                text = f"in steps [{r.start}, {r.end}) of {total}, beyond its pass"
                yield Violation("interval", f"'{storage.id}' is resident in '{r.tier}' {text}")


def check_races(part: Bytes, lanes: Lanes) -> Iterator[Violation]:
    """What may come to bytes while they are read, or while others come there or leave."""
    for number, route in enumerate(part.routes):
        yield from _check_readers(part, route)
        for other in range(len(part.routes)):
            for passes in (1, 0) if part.storage.homed else (0,):
                if other != number:
                    yield from _check_pair(part, other, number, passes, lanes)


def _check_readers(part: Bytes, route: Route) -> Iterator[Violation]:
    """No step reads the place of a transfer while that may come."""
    t, place = route.transfer, route.place
    if place is None:
        return
    for step in part.uses.reads:
        during = t.after <= step < t.before or t.after <= step + part.total < t.before
        if during and part.unit_tier_of(step) == place.tier and covers(place, step, part.total):
            window = f"transfer of '{part.storage.id}' in [{t.after}, {t.before})"
            yield Violation("early", f"{window} comes to '{place.tier}' while step {step} reads it there")


def _check_pair(part: Bytes, first: int, second: int, passes: int, lanes: Lanes) -> Iterator[Violation]:
    """Transfer `first`, of `passes` passes before, is complete before `second` may begin, which stands behind it, where
    one of them fills a place of the other. One that leaves a place waits for what comes there first (`chains`)."""
    a, b = part.routes[first].transfer, part.routes[second].transfer
    begins, ends = a.after - passes * part.total, a.before - passes * part.total
    if ends < b.after or (begins, first) >= (b.after, second):
        return
    fills = a.target == b.target and part.routes[first].place == part.routes[second].place
    leaves = a.origin == b.target and part.routes[first].source == part.routes[second].place
    if (fills and ends > b.after) or ((fills or leaves) and not lanes.follows(b, a, passes)):
        yield Violation(
            "race",
            f"'{part.storage.id}' moves over {a.link} in [{begins}, {ends}) and over {b.link} in [{b.after}, "
            f"{b.before}), which may come to the same bytes of '{b.target}' first",
        )
