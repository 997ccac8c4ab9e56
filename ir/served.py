"""Which steps read what a transfer brings. What only steps that are left out read need not come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .chains import holds, occurrence
from .graph import Graph
from .plan import Plan

PASSES = 3
"""A step reads what a transfer of its own pass brings, or one of the two before."""


@dataclass(frozen=True, slots=True)
class Served:
    """What transfer `index` of a plan brings, `step` reads `passes` passes later."""

    index: int
    step: int
    passes: int


def served(plan: Plan, graph: Graph) -> Iterator[Served]:
    """Every reading of what a transfer brings from where it is at home, by transfers in the plan's order."""
    period = len(plan.steps)
    readers: dict[str, list[int]] = {}
    for number, step in enumerate(plan.steps):
        for storage in graph.reads(graph.operator[step.op]):
            readers.setdefault(storage, []).append(number)
    for index, t in enumerate(plan.transfers):
        if t.origin != plan.home_tier or not graph.storage[t.storage].homed:
            continue
        stays = plan.residencies_of.get(t.storage, ())
        stay = next((r for r in stays if r.tier == t.target and holds(r, t, period, homed=True)), None)
        start = None if stay is None else occurrence(stay, t.after, period, homed=True)
        if stay is None or start is None:
            continue
        end = start + stay.end - stay.start
        for step in readers.get(t.storage, ()):
            for passes in range(PASSES):
                if t.before <= step + passes * period < end:
                    yield Served(index, step, passes)
