"""What is left where nothing could be placed: more time for each candidate, more room given up, everything out."""

from __future__ import annotations

import time

from .one_way import removable_gaps
from .roundings import ways_of
from .search import PACKING_S, Search
from .stays import Decisions

INSISTING_S = 4 * PACKING_S
"""Seconds for the addresses of one candidate where nothing else could be placed."""

DESCENT_SHARE = 0.25
"""The part of the time limit that the descent may take when all of it is spent: what a baseline has for its addresses.
"""


def insist(search: Search) -> None:
    """All roundings of all cuts, the largest first, with more time for each, until there is a plan; for half of the
    time that is left."""
    until = time.monotonic() + search.left_s / 2
    for cut in sorted(search.cuts(), reverse=True):
        absent, stall_ns = search.relaxed(cut, until - time.monotonic())
        room = search.instance.capacity_nbytes - cut
        for make in ways_of(search.instance, room, absent, stall_ns, search.repairs).values():
            if search.best is not None or time.monotonic() > until:
                return
            decisions = make()
            if decisions is not None:
                search.scores[cut] = min(search.scores.get(cut, float("inf")), search.score(decisions, INSISTING_S))


def descend(search: Search) -> None:
    """When the time is over: a rounding of each cut, the largest first, as each is a better plan than the one before
    it, until one cannot be placed, or there is a plan and `DESCENT_SHARE` is spent, too."""
    until = time.monotonic() + DESCENT_SHARE * search.most_s
    for cut in sorted(search.cuts(), reverse=True):
        left_s = until - time.monotonic()
        if left_s <= 0 and search.best is not None:
            return
        absent, stall_ns = search.relaxed(cut, left_s)
        room = search.instance.capacity_nbytes - cut
        made = (make() for make in ways_of(search.instance, room, absent, stall_ns, search.repairs).values())
        decisions = next((d for d in made if d is not None), None)
        if decisions is None:
            continue
        search.scores[cut] = min(search.scores.get(cut, float("inf")), search.score(decisions))
        if search.scores[cut] == float("inf"):
            return


def everything(search: Search) -> None:
    """All that can leave leaves whenever it can: the last resort, with all the time that is left."""
    evicted = frozenset((g.item, g.before) for g in removable_gaps(search.instance))
    search.score(Decisions(evicted, {}), packing_time_s=max(search.left_s, PACKING_S))
