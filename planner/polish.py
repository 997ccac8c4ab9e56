"""What makes good candidates of `stow` better: loads that come late go first, and evictions are exchanged."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain

from ..ir.plan import Plan
from ..ir.simulate import simulate
from .one_way import removable_gaps
from .place import too_many
from .search import Search
from .stays import Decisions, stays_of

FAVOURED = 8
"""How many of the best candidates are worked on."""

FRUITLESS_ROUNDS = 5
LATE_NS = 1000


def favour(search: Search) -> None:
    """Give the loads that came late place and time before the others, as long as it helps: what squeaks gets the
    oil (Joslin and Clements, JAIR 10, 1999). All at once, or half of them, and so on down to each by itself; for
    half of the time that is left. Where everything is placed at once, nothing is placed before the others."""
    spent = time.monotonic() - search.began
    until = search.began + spent + max(0.0, search.time_s - spent) / 2
    for score, decisions, plan in list(search.found[:FAVOURED]):
        if search.finished:
            return
        if too_many(search.instance, stays_of(search.instance, decisions), decisions):
            continue
        fruitless, tried = 0, frozenset[tuple[int, int]]()
        late = _late_loads(search, plan, decisions)
        number = len(late)
        while number and fruitless < FRUITLESS_ROUNDS and not search.finished and time.monotonic() < until:
            chosen = frozenset(late[:number])
            changed = replace(decisions, reserved=decisions.reserved | chosen)
            new = search.score(changed)
            if new < score and search.last is not None:
                decisions, score, plan, fruitless = changed, new, search.last, 0
            elif number == 1:
                tried, fruitless = tried | chosen, fruitless + 1
            late = [x for x in _late_loads(search, plan, decisions) if x not in tried and x not in decisions.reserved]
            number = min(len(late), max(1, number // 2)) if new >= score else len(late)


def _late_loads(search: Search, plan: Plan, decisions: Decisions) -> list[tuple[int, int]]:
    """(item, step) of the loads that made a step wait longer than the LP expects, in the order of the pass."""
    index = {(item.storage, t): i for i, item in enumerate(search.instance.items) for t in item.touches}
    stall_ns = decisions.stall_ns or (0,) * search.instance.steps
    late = [
        (event.step, plan.transfers[event.waited_for])
        for event in simulate(plan, search.instance.graph, search.instance.machine).steps
        if event.waited_for is not None and event.wait_ns > stall_ns[event.step] + LATE_NS
    ]
    return [(index[t.storage, step], step) for step, t in late if t.target == search.instance.fast.name]


def exchange(search: Search) -> None:
    """Hill climbing from the best plan that moves whole items while there is time: evict one more item, keep one
    more, or one for another. On small graphs this settles what rounding left open; on large ones time ends it
    early."""
    gaps = [(g.item, g.before) for g in removable_gaps(search.instance)]
    improved = search.unsplit is not None
    while improved and search.unsplit is not None:
        score, start = search.unsplit
        singles = [frozenset({g}) for g in gaps]
        pairs = (frozenset({a, b}) for a in gaps if a in start.evicted for b in gaps if b not in start.evicted)
        improved = False
        for change in chain(singles, pairs):
            if search.finished:
                return
            changed = replace(start, evicted=start.evicted ^ change, kept_nbytes={}, reserved=frozenset())
            if search.score(changed) < score * (1 - search.good_enough):
                improved = True
                break
