"""Ways from the fractions of the residency LP to decisions that can be placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from .instance import Instance
from .round import (
    diffuse,
    fill,
    fluid,
    kept_profile,
    largest_first,
    repair,
    spare_small,
    threshold,
    to_decisions,
    worth_moving,
)
from .stays import Decisions, Landing


def ways_of(
    instance: Instance, capacity: int, absent: Sequence[float], stall_ns: Sequence[float], repairs: bool
) -> dict[str, Callable[[], Decisions | None]]:
    """Ways to decisions near the fractions `absent`, by name; None where one finds none, or what another has found.

    What is dirty follows the fractions by halves: each of its gaps costs a store, and which ones are worth it the LP
    knows; weights may stand for one another.
    """
    gaps = instance.gaps
    dirty = {g for g in threshold(instance, absent) if not gaps[g].clean}
    whole: dict[str, Decisions | None] = {}

    def rounded(name: str, landing: Landing) -> Decisions | None:
        if name not in whole:
            evicted = spare_small(instance, dirty | {g for g in chosen[name]() if gaps[g].clean})
            fits = int(kept_profile(instance, evicted).max(initial=0)) <= capacity
            fits = fits or (repairs and repair(instance, absent, evicted, capacity))
            kept = fill(instance, absent, evicted, capacity) if fits else {}
            made = to_decisions(instance, evicted, kept, stall_ns) if fits else None
            known = made is not None and any(d is not None and d.evicted == made.evicted for d in whole.values())
            whole[name] = None if known else made
        made = whole[name]
        return None if made is None else replace(made, landing=landing)

    def flowing() -> Decisions:
        evicted, kept = fluid(instance, absent, worth_moving(instance))
        return to_decisions(instance, evicted, kept, stall_ns)

    chosen: dict[str, Callable[[], set[int]]] = {
        "halves": lambda: threshold(instance, absent),
        "largest": lambda: largest_first(instance, absent),
        "even": lambda: diffuse(instance, absent, 0.5),
        "late": lambda: diffuse(instance, absent, 1.0),
    }
    ways: dict[str, Callable[[], Decisions | None]] = {}
    for name in chosen:
        for landing in (Landing.RING, Landing.LOWEST):
            ways[f"{name} {landing.value}"] = partial(rounded, name, landing)
    return ways | {"as they are": flowing}
