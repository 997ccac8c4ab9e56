"""Windows of a plan that stall more than the fluid optimum, decided anew by a small integer program.

Rounding looks at one gap after another. Where a plan waits longer than the residency LP says it must, the gaps around
are set free, all others stay as the plan has them, and branch and bound finds which of the free ones to evict so that
the pass waits least: a program of a few dozen whole columns. What it answers is a candidate like any other: it is
placed and simulated, and kept if it is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from ..ir.plan import Plan
from ..ir.simulate import simulate
from ..solvers.residency.lp import FINE_SIZE
from ..solvers.residency.mip import improve_residency
from .instance import Instance
from .stays import Decisions

LENGTHS = (0.05, 0.15)
"""Lengths of windows, as shares of the pass in steps."""

WINDOWS = 3
"""Windows of each length, those that stall most, that are worked on."""

MOST_FREE = 400
"""Gaps that are set free at most; of more, those that the LP or the plan evicts, the largest first."""


def stalling_windows(waits_ns: Sequence[float], expected_ns: Sequence[float], length: int) -> list[tuple[int, int]]:
    """Step ranges [first, end) of `length` steps, disjoint, that wait most beyond what is expected; the worst first."""
    steps = len(waits_ns)
    length = max(1, min(length, steps))
    beyond = [0.0, *accumulate(w - e for w, e in zip(waits_ns, expected_ns, strict=True))]
    ranked = sorted(range(steps - length + 1), key=lambda a: beyond[a] - beyond[a + length])
    found: list[tuple[int, int]] = []
    for a in ranked:
        if len(found) == WINDOWS or beyond[a + length] - beyond[a] <= 0:
            break
        if all(a >= end or a + length <= first for first, end in found):
            found.append((a, a + length))
    return found


def redecided(
    instance: Instance, plan: Plan, decisions: Decisions, cut_nbytes: int, time_limit_s: float
) -> Iterator[Decisions]:
    """Decisions that differ from those of `plan` in one window each, with `cut_nbytes` of the room left free."""
    result = instance.relax(instance.capacity_nbytes, time_limit_s=time_limit_s)
    if result.solution is None or instance.steps + len(instance.solver_gaps) > FINE_SIZE:
        return
    waits = [float(e.wait_ns) for e in simulate(plan, instance.graph, instance.machine).steps]
    problem = instance.residency_problem(instance.capacity_nbytes - cut_nbytes)
    evicted = [(g.item, g.before) in decisions.evicted for g in instance.gaps]
    for share in LENGTHS:
        for window in stalling_windows(waits, result.solution.stall_ns, max(2, round(share * instance.steps))):
            free = _free(instance, window, result.solution.absent, evicted)
            decided = {g: out for g, out in enumerate(evicted) if g not in free}
            found = improve_residency(
                problem, result, time_limit_s=time_limit_s, engine=instance.engine, decided=decided, relative_gap=1e-4
            )
            if found.solution is None:
                continue
            chosen = {g for g, out in enumerate(evicted) if (found.solution.absent[g] > 0.5 if g in free else out)}
            keys = frozenset((instance.gaps[g].item, instance.gaps[g].before) for g in chosen)
            if keys == decisions.evicted:
                continue
            kept = {key: nbytes for key, nbytes in decisions.kept_nbytes.items() if key in keys}
            stalls = tuple(round(q) for q in found.solution.stall_ns)
            yield replace(decisions, evicted=keys, kept_nbytes=kept, stall_ns=stalls, reserved=frozenset())


def _free(
    instance: Instance, window: tuple[int, int], absent: Sequence[float], evicted: Sequence[bool]
) -> frozenset[int]:
    """Gaps that lie in the window or reach into it, of this pass or of the one before."""
    first, end = window
    steps = instance.steps
    near = [
        g
        for g, gap in enumerate(instance.gaps)
        if (gap.start < end and gap.end > first) or (gap.start - steps < end and gap.end - steps > first)
    ]
    near.sort(key=lambda g: (not (evicted[g] or absent[g] > 0), -instance.items[instance.gaps[g].item].nbytes, g))
    return frozenset(near[:MOST_FREE])
