"""Residency and recomputation together: a linear program that no plan of a given order of first calls is below.

DESIGN 4.1, 'Recompute'. Time is cut into windows at some steps, the *checks*; window w lasts from the start of step c_w
to the start of step c_(w+1). What the program knows of a plan is, for each value, how much of it is in the fast tier at
each check; and for each window, what moves, which operators are called again, and how long nothing is called for the
first time. `model` in `recompute_model` lists the rows; the argument that they hold for every plan stands there.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from ..linear import Highs, safe_bound
from ..result import Result, Status
from .bounds import round_down
from .problem import Gap


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes that are made in a pass: at step `touches[0]`, or given then; `touches` are the steps that need them.

    `maker`: whether the operator of its first step may be called again to make it. What is at home and written is a
    value from each write to the next; its touches may reach into the next pass, T steps on, and none may make it again.
    """

    nbytes: int
    touches: tuple[int, ...]
    maker: bool


@dataclass(frozen=True, slots=True)
class RecomputeProblem:
    """An order of first calls on two tiers. Step t takes `durations_ns[t]`, reads `values` with the numbers `reads[t]`.

    `reads` matter for what is called again; leaving some out relaxes the problem. `gaps` are those of what is at home
    and never written, as in a periodic `ResidencyProblem`. `needed_nbytes[t]` are all operands and results of step t.

    Raises:
        ValueError: numbers that are negative or do not match one another.
    """

    durations_ns: tuple[int, ...]
    needed_nbytes: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    values: tuple[Value, ...]
    gaps: tuple[Gap, ...]
    capacity_nbytes: int
    load_bytes_per_s: float
    store_bytes_per_s: float
    shared_channel: bool = False

    def __post_init__(self) -> None:
        steps = len(self.durations_ns)
        if len(self.needed_nbytes) != steps or len(self.reads) != steps:
            raise ValueError(f"{steps} durations, {len(self.needed_nbytes)} steps' bytes, {len(self.reads)} reads")
        for word, rate in (("load", self.load_bytes_per_s), ("store", self.store_bytes_per_s)):
            if not 0 < rate < math.inf:
                raise ValueError(f"{word} rate {rate} is not a positive finite number of bytes per second")
        for number, value in enumerate(self.values):
            rising = all(a < b for a, b in pairwise((-1, *value.touches)))
            last = steps - 1 if value.maker else min(value.touches[:1] or (0,)) + steps
            if not value.touches or not rising or value.touches[0] >= steps or value.touches[-1] > last:
                raise ValueError(f"value {number}: touches {value.touches} are not rising within {steps} steps")
            if value.nbytes < 0:
                raise ValueError(f"value {number}: negative size {value.nbytes}")
        for t, read in enumerate(self.reads):
            for u in read:
                if not 0 <= u < len(self.values) or self.values[u].touches[0] > t:
                    raise ValueError(f"step {t} reads value {u}, which is not made before it")
        for number, gap in enumerate(self.gaps):
            within = 0 <= gap.start < steps and gap.start < gap.end <= gap.start + steps
            if not gap.clean or not within or gap.nbytes < 0:
                raise ValueError(f"gap {number}, {gap}: not clean, of negative size, or not within {steps} steps")


@dataclass(frozen=True, slots=True)
class RecomputeSolution:
    """What the program would do. `repeated[t]`: how often the operator of step t is called again, as a fraction.

    `price[w]` is what one more byte at check `checks[w]` alone would save, in nanoseconds per byte, `load_price[w]` and
    `store_price[w]` what one byte less to move in the window would, `call_price[w]` a nanosecond less of calls in it;
    `waited_ns[w]` is the time of window w beyond the first calls.
    """

    checks: tuple[int, ...]
    repeated: tuple[float, ...]
    price: tuple[float, ...]
    load_price: tuple[float, ...]
    store_price: tuple[float, ...]
    call_price: tuple[float, ...]
    waited_ns: tuple[float, ...]


def solve_recompute(
    problem: RecomputeProblem, *, windows: int = 48, time_limit_s: float = 30.0, whole: bool = False
) -> Result[RecomputeSolution]:
    """The least time of a pass over all plans that keep the order of first calls, nanoseconds, with a proven bound.

    `windows`: into how many the steps are cut; with as many as steps the bound is tightest, with fewer it is faster and
    never wrong. `whole`: each operator is called again once or not at all, by branch and bound, for the search for
    plans; the bound is then only the durations' sum. Else it comes from the duals by weak duality
    (`linear.safe_bound`).

    INFEASIBLE: a step needs more than the capacity. UNKNOWN: time ran out before there was a solution; the bound is at
    least the durations' sum.
    """
    from .recompute_model import build

    began = time.monotonic()
    compute = sum(problem.durations_ns)
    method = f"recomputation LP of {min(windows, len(problem.durations_ns))} windows"
    worst = max(problem.needed_nbytes, default=0)
    if worst > problem.capacity_nbytes:
        detail = f"a step needs {worst} bytes, the capacity is {problem.capacity_nbytes}"
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, method, detail)
    model = build(problem, choose_checks(problem, windows), whole=whole)
    if model is None:
        return Result(Status.OPTIMAL, None, float(compute), float(compute), time.monotonic() - began, method)
    highs = Highs(model.program)
    if whole:
        highs.option("mip_rel_gap", 0.01)
    else:
        highs.option("solver", "ipm")
        highs.option("run_crossover", "off")
    answer = highs.solve(time_limit_s - (time.monotonic() - began))
    usable = answer.duals is not None and len(answer.duals)
    least = safe_bound(model.program, model.mended(answer.duals)) if usable and answer.duals is not None else 0.0
    bound = round_down(compute + Fraction(max(0.0, least)) * Fraction(model.ns_unit))
    seconds = time.monotonic() - began
    if answer.values is None:
        status = answer.status if answer.status in (Status.INFEASIBLE, Status.ERROR) else Status.UNKNOWN
        return Result(status, None, None, bound, seconds, method, answer.detail)
    solution = model.read(answer.values, answer.duals)
    objective = max(compute + math.fsum(solution.waited_ns), bound)
    status = Status.OPTIMAL if objective <= bound * (1 + 1e-4) else Status.FEASIBLE
    return Result(status, solution, objective, bound, seconds, method, answer.detail)


def choose_checks(problem: RecomputeProblem, windows: int) -> tuple[int, ...]:
    """Steps at which memory is looked at: step 0, and in each of `windows` parts of equal duration the step at which
    most bytes exist."""
    steps = len(problem.durations_ns)
    if windows >= steps:
        return tuple(range(steps))
    alive = np.array(problem.needed_nbytes, dtype=np.float64)
    change = np.zeros(steps + 1)
    for value in problem.values:
        first, last = value.touches[0], value.touches[-1]
        change[first] += value.nbytes
        change[min(last + 1, steps)] -= value.nbytes
        change[0] += value.nbytes * (last >= steps)
        change[max(last + 1 - steps, 0)] -= value.nbytes * (last >= steps)
        for t in value.touches:
            alive[t % steps] -= value.nbytes
    alive += np.cumsum(change)[:steps]
    ends = np.cumsum(np.maximum(problem.durations_ns, 1))
    part = np.minimum(((ends - 1) * windows) // ends[-1], windows - 1)
    found = {0}
    for w in range(windows):
        own = np.flatnonzero(part == w)
        if len(own):
            found.add(int(own[np.argmax(alive[own])]))
    return tuple(sorted(found))
