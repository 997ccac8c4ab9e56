"""How good an order with recomputation may become, quickly: the residency program over a few long steps.

DESIGN 4.1, 'Scale': steps are merged into parts of equal duration, gaps into gaps between parts. What rests in a part
in which it is used counts as present in all of it, so the value is near the finer program's, but no bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..solvers.residency.lp import solve_residency
from ..solvers.residency.problem import Gap, ResidencyProblem
from .instance import Instance

PARTS = 48
"""Long steps of a pass: enough to tell twelve layers, forward and backward, apart."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a pass of an order may come to: its calls, about the least time in all, and how long the busier link is busy
    then. Nanoseconds; infinite where nothing fits or time ended."""

    compute_ns: float
    least_ns: float
    traffic_ns: float


def outlook(instance: Instance, *, parts: int = PARTS, time_limit_s: float = 5.0) -> Outlook:
    """The outlook of the instance's order, by the coarse program and what it moves."""
    compute = float(sum(instance.durations_ns))
    problem = coarse_problem(instance, parts)
    result = solve_residency(problem, time_limit_s=time_limit_s)
    if result.objective is None or result.solution is None:
        return Outlook(compute, float("inf"), float("inf"))
    answer = result.solution
    loaded = sum(e * g.nbytes for e, g in zip(answer.absent, problem.gaps, strict=True))
    stored = sum((z + y) * g.nbytes for z, y, g in zip(answer.stored, answer.ahead, problem.gaps, strict=True))
    load_ns, store_ns = 1e9 * loaded / problem.load_bytes_per_s, 1e9 * stored / problem.store_bytes_per_s
    traffic = load_ns + store_ns if problem.shared_channel else max(load_ns, store_ns)
    return Outlook(compute, max(compute, float(result.objective)), traffic)


def coarse_problem(instance: Instance, parts: int) -> ResidencyProblem:
    """The instance's residency problem with its steps merged into at most `parts`, of about equal duration."""
    steps = instance.steps
    durations = np.maximum(np.asarray(instance.durations_ns, dtype=np.int64), 1)
    ends = np.cumsum(durations)
    part = np.minimum(((ends - 1) * parts) // max(int(ends[-1]), 1), parts - 1)
    _, part = np.unique(part, return_inverse=True)
    count = int(part[-1]) + 1
    change = np.zeros(steps + 1, dtype=np.int64)
    gaps: list[Gap] = []
    for g in instance.gaps:
        begin, end = int(part[g.start]), int(part[g.end % steps]) + (count if g.end >= steps else 0)
        nbytes = instance.items[g.item].nbytes
        first, last = _end_of(part, begin), _begin_of(part, end % count) + (steps if end >= count else 0)
        if end > begin + 1:
            gaps.append(Gap(g.item, nbytes, begin, end, g.clean))
            _add(change, g.start + 1, first, nbytes, steps)
            _add(change, last, g.end, nbytes, steps)
        else:
            _add(change, g.start + 1, g.end, nbytes, steps)
    present = np.asarray(instance.base_nbytes, dtype=np.int64) + np.cumsum(change)[:steps]
    base = np.zeros(count, dtype=np.int64)
    np.maximum.at(base, part, np.minimum(present, instance.capacity_nbytes))
    sums = np.zeros(count, dtype=np.int64)
    np.add.at(sums, part, np.asarray(instance.durations_ns, dtype=np.int64))
    link = instance.machine.link
    load, store = link[instance.home.name, instance.fast.name], link.get((instance.fast.name, instance.home.name))
    return ResidencyProblem(
        durations_ns=tuple(int(d) for d in sums),
        base_nbytes=tuple(int(b) for b in base),
        gaps=tuple(gaps),
        capacity_nbytes=instance.capacity_nbytes,
        load_bytes_per_s=load.bytes_per_s,
        store_bytes_per_s=store.bytes_per_s if store else load.bytes_per_s / 1e6,
        periodic=True,
        shared_channel=store is not None and store.lane == load.lane,
    )


def _begin_of(part: np.ndarray, number: int) -> int:
    return int(np.searchsorted(part, number, side="left"))


def _end_of(part: np.ndarray, number: int) -> int:
    return int(np.searchsorted(part, number, side="right"))


def _add(change: np.ndarray, first: int, end: int, nbytes: int, steps: int) -> None:
    """`nbytes` more in the steps [first, end), which may reach into the next pass."""
    for a, b in ((first, min(end, steps)), (max(first - steps, 0), end - steps)):
        if b > a >= 0 and a < steps:
            change[a] += nbytes
            change[b] -= nbytes
