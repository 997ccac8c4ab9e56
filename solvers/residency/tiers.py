"""Residency on a chain of tiers, three and more: the problem, its fluid solution, and bounds. DESIGN 4.1, "N tiers".

The tiers are numbered 0 (where operators compute) to N - 1 (the bottom, where what is homed lies). Cut k, for
k = 1..N-1, divides tiers 0..k-1, the *upper side*, from the rest. Across a cut a plan on N tiers is a plan on two: what
is used is above it, what is not above it throughout a gap is loaded across it before the gap ends, and what is dirty
and leaves the upper side is stored across it first. So each cut is a residency problem of two tiers, whose fast tier is
the upper side with the capacities of its tiers together, and the timeline of a plan satisfies the rows of all of them
with the same waits. What joins the cuts beyond the waits:

- what is above cut k throughout a gap is above cut k + 1, too: e of cut k >= e of cut k + 1;
- what is above cut k at an instant, for its next use, is above cut k + 1: kept + prefetched of k <= that of k + 1;
- transfers of one lane take turns, whichever cuts they cross.

None of it depends on when stores start, on whether a copy is left behind where a transfer comes from (inclusive) or not
(exclusive caching), on staging, or on which of several links a byte takes: a direction of a cut may move what all lanes
that cross it can move together, each at the rate of its fastest link. The capacity of a middle tier alone is left out:
a byte that is neither kept above nor prefetched may linger there, so only the room of the whole upper side limits what
rests in it. Hence the optimum is at most the time of every plan of this order, and with two tiers it is that of
`solve_residency`, row for row. Like there, what a plan stores before an item's first gap begins is left aside.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from ..linear import ENGINES, Floats, Highs, LinearAnswer, safe_bound
from ..result import Result, Status
from .bounds import compulsory_nbytes, round_down
from .lp import read_solution, trivial
from .problem import Gap, ResidencyProblem, ResidencySolution
from .tiers_model import Direction, Lanes, TieredModel, build_tiers, moved_cost

SECOND_OPINION = "glop"
"""The engine that is asked where another one calls a program infeasible."""

_TOLERANCE = 1e-6  # relative; as in `lp`
_MORE_WAITING = 1e-7  # mean steps for each step that the second program may wait longer than the first


@dataclass(frozen=True, slots=True)
class TierLink:
    """Bytes flow from tier `origin` to tier `target` at `bytes_per_s`; links that name one `channel` take turns."""

    origin: int
    target: int
    bytes_per_s: float
    channel: str | None = None

    @property
    def lane(self) -> str:
        """Its channel, or itself."""
        return self.channel or f"{self.origin}->{self.target}"


@dataclass(frozen=True, slots=True)
class TieredProblem:
    """N tiers, an order of T steps, and what may leave the fast tier between its uses.

    `capacities_nbytes` by tier, from the fast one down; None for a bottom without a limit. The other fields are those
    of `ResidencyProblem`.

    Raises:
        ValueError: fewer than two tiers, links between tiers that do not exist, and what `ResidencyProblem` raises.
    """

    durations_ns: tuple[int, ...]
    base_nbytes: tuple[int, ...]
    gaps: tuple[Gap, ...]
    capacities_nbytes: tuple[int | None, ...]
    links: tuple[TierLink, ...]
    periodic: bool

    def __post_init__(self) -> None:
        tiers = len(self.capacities_nbytes)
        if tiers < 2:
            raise ValueError(f"{tiers} tiers; give at least two")
        for k, capacity in enumerate(self.capacities_nbytes):
            if capacity is None and k < tiers - 1:
                raise ValueError(f"tier {k} has no capacity; only the bottom, tier {tiers - 1}, may be without a limit")
            if capacity is not None and capacity < 0:
                raise ValueError(f"tier {k}: negative capacity {capacity}")
        for link in self.links:
            if not (0 <= link.origin < tiers and 0 <= link.target < tiers) or link.origin == link.target:
                raise ValueError(f"a link joins tiers {link.origin} and {link.target} of {tiers}")
            if not 0 <= link.bytes_per_s < math.inf:
                raise ValueError(f"link {link.origin}->{link.target}: rate {link.bytes_per_s} is not a finite number")
        cut_problem(self, 1)  # checks the rest

    @property
    def cuts(self) -> range:
        """The numbers of the cuts: 1 to N - 1."""
        return range(1, len(self.capacities_nbytes))


@dataclass(frozen=True, slots=True)
class TieredSolution:
    """A fluid timeline for each cut, cut 1 first, all with the same waits.

    `sides`[k - 1] is the solution of `cut_problem(problem, k)`: its `absent` is what is below cut k at some time of
    the gap, its loads are what crosses the cut upwards.
    """

    sides: tuple[ResidencySolution, ...]

    @property
    def stall_ns(self) -> tuple[float, ...]:
        """Nanoseconds of waiting before each step."""
        return self.sides[0].stall_ns

    def resting(self, gap: int) -> tuple[float, ...]:
        """Fractions of a gap's item by the lowest tier that it rests in meanwhile, from the fast tier down; sum 1."""
        absent = (1.0, *(side.absent[gap] for side in self.sides), 0.0)
        return tuple(max(0.0, a - b) for a, b in pairwise(absent))


def cut_problem(problem: TieredProblem, cut: int) -> ResidencyProblem:
    """The two-tier problem across `cut`: the tiers above it as one, all links that cross it as one each way."""
    above = sum(c or 0 for c in problem.capacities_nbytes[:cut])
    up, down = lanes_across(problem, cut, upwards=True), lanes_across(problem, cut, upwards=False)
    return ResidencyProblem(
        durations_ns=problem.durations_ns,
        base_nbytes=problem.base_nbytes,
        gaps=problem.gaps,
        capacity_nbytes=above,
        load_bytes_per_s=sum(up.values()),
        store_bytes_per_s=sum(down.values()),
        periodic=problem.periodic,
        shared_channel=len(up) == 1 and up.keys() == down.keys(),
    )


def lanes_across(problem: TieredProblem, cut: int, *, upwards: bool) -> dict[str, float]:
    """Bytes per second of each lane that crosses `cut` in this direction: those of its fastest link that does."""
    rates: dict[str, float] = {}
    for link in problem.links:
        crosses = link.target < cut <= link.origin if upwards else link.origin < cut <= link.target
        if crosses and link.bytes_per_s > 0:
            rates[link.lane] = max(rates.get(link.lane, 0.0), link.bytes_per_s)
    return rates


def compulsory_tiers_bound(problem: TieredProblem) -> float:
    """Largest of compute time and of what each lane must move at least, over its rate. Nanoseconds.

    Across each cut the argument of `compulsory_bound` holds. Where one lane is all that crosses several cuts, or one
    cut in both directions, its times add up, as a transfer of it that crosses two cuts at once is one whose link goes
    past a tier: then the lane's times are not added, but the largest is taken. Infinite where bytes cannot move.
    """
    lanes: dict[str, list[Fraction]] = {}
    least = Fraction(sum(problem.durations_ns))
    for cut in problem.cuts:
        needed = compulsory_nbytes(cut_problem(problem, cut))
        for upwards, nbytes in zip((True, False), needed, strict=True):
            rates = lanes_across(problem, cut, upwards=upwards)
            if nbytes and not rates:
                return math.inf
            if nbytes:
                took = nbytes * 10**9 / sum(map(Fraction, rates.values()), Fraction(0))
                least = max(least, took)
                if len(rates) == 1:
                    lanes.setdefault(next(iter(rates)), []).append(took)
    for lane, times in lanes.items():
        if not skips(problem, lane):
            least = max(least, sum(times, Fraction(0)))
    return round_down(least)


def skips(problem: TieredProblem, lane: str) -> bool:
    """Whether a link of the lane goes past a tier: one transfer of it crosses several cuts."""
    return any(abs(k.origin - k.target) > 1 for k in problem.links if k.lane == lane)


def solve_tiers(problem: TieredProblem, *, time_limit_s: float = 60.0, engine: str = "highs") -> Result[TieredSolution]:
    """The least time of a pass by linear programming, and the solution that keeps the links busy least in that time.

    Objective and bound are nanoseconds a pass. The bound holds for every plan of this order (the argument stands at
    the head of this module); it is formed from the duals by weak duality and keeps within rounding. `engine` is one of
    `linear.ENGINES`. INFEASIBLE: a step's base exceeds the fast tier, what lives at a step exceeds all tiers together,
    or bytes must cross a cut that no link crosses. UNKNOWN: time ran out before there was a solution.

    Raises:
        ValueError: an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; choose one of {', '.join(sorted(ENGINES))}")
    began = time.monotonic()
    method = f"LP of {len(problem.cuts)} cuts by {engine}"
    parts = [cut_problem(problem, cut) for cut in problem.cuts]
    for part in parts:
        early = trivial(part, method, began)
        if early is not None and early.solution is None:
            return Result(early.status, None, None, None, early.seconds, method, early.detail)
        if early is not None and early.solution is not None:
            sides = (early.solution,) * len(parts)
            return Result(early.status, TieredSolution(sides), early.objective, early.bound, early.seconds, method)
    full = _overfull(problem)
    if full:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, method, full)
    model = build_tiers(parts, _shared_lanes(problem))
    first, second = _two_stages(model, engine, began + time_limit_s)
    seconds = time.monotonic() - began
    if first.status == Status.INFEASIBLE and engine != SECOND_OPINION:
        # A step without any room to spare is a row that an engine's tolerance may call infeasible: another one decides.
        again = solve_tiers(problem, time_limit_s=time_limit_s, engine=SECOND_OPINION)
        return replace(again, seconds=time.monotonic() - began)
    if first.status == Status.INFEASIBLE:
        return Result(first.status, None, None, None, seconds, method, f"{engine}: {first.detail or 'infeasible'}")
    bound = max(compulsory_tiers_bound(problem), _bound_ns(problem, model, first.duals))
    chosen = second if second is not None and second.values is not None else first
    if chosen.values is None:
        return Result(first.status, None, None, bound, seconds, method, first.detail)
    solution = _read(parts, model, chosen.values, first.duals)
    objective = max(float(sum(problem.durations_ns)) + math.fsum(solution.stall_ns), bound)
    # Time is counted in whole nanoseconds: less than one is no difference.
    allowed_ns = max(_MORE_WAITING * len(problem.durations_ns) * model.ns_unit, 1.0)
    proven = objective <= bound * (1 + _TOLERANCE) + allowed_ns
    status = Status.OPTIMAL if proven else (Status.ERROR if first.status == Status.ERROR else Status.FEASIBLE)
    return Result(status, solution, objective, bound, seconds, method, "" if proven else first.detail)


def _overfull(problem: TieredProblem) -> str:
    """What lives must be somewhere: a bottom with a limit, and the tiers above it, hold it at every step."""
    limits = [c for c in problem.capacities_nbytes if c is not None]
    if len(limits) < len(problem.capacities_nbytes):
        return ""
    for t, base in enumerate(problem.base_nbytes):
        alive = base + sum(gap.nbytes for gap in problem.gaps if gap.start >= 0 and problem_covers(problem, gap, t))
        if alive > sum(limits):
            return f"{alive} bytes live at step {t}, all tiers together hold {sum(limits)}"
    return ""


def problem_covers(problem: TieredProblem, gap: Gap, step: int) -> bool:
    """Whether the gap's item is unused and alive throughout `step`."""
    return gap.start < step < gap.end or (problem.periodic and gap.start < step + len(problem.durations_ns) < gap.end)


def _shared_lanes(problem: TieredProblem) -> Lanes:
    """Lanes that are all that crosses several cuts, with the directions that take turns on each."""
    found: dict[str, list[Direction]] = {}
    for cut in problem.cuts:
        for upwards in (True, False):
            rates = lanes_across(problem, cut, upwards=upwards)
            if len(rates) == 1:
                lane, rate = next(iter(rates.items()))
                found.setdefault(lane, []).append(Direction(cut - 1, upwards, rate))
    return [d for lane, d in sorted(found.items()) if len({x.side for x in d}) > 1 and not skips(problem, lane)]


def _two_stages(model: TieredModel, engine: str, deadline: float) -> tuple[LinearAnswer, LinearAnswer | None]:
    """First the least waiting; then, no more than that, the least time on the links, if there is time for it."""
    program = model.program
    highs = Highs(program) if engine == "highs" else None
    left = deadline - time.monotonic()
    first = highs.solve(left) if highs else ENGINES[engine](program, left)
    if first.status != Status.OPTIMAL or first.values is None or time.monotonic() >= deadline:
        return first, None
    waits = float(first.values[model.waits].sum())
    ceiling = waits + _MORE_WAITING * (len(model.waits) + waits)
    left = deadline - time.monotonic()
    if highs:
        highs.set_row_upper(model.ceiling, ceiling)
        highs.set_cost(moved_cost(model))
        return first, highs.solve(left)
    row_upper = program.row_upper.copy()
    row_upper[model.ceiling] = ceiling
    return first, ENGINES[engine](replace(program, cost=moved_cost(model), row_upper=row_upper), left)


def _bound_ns(problem: TieredProblem, model: TieredModel, duals: Floats | None) -> float:
    least = safe_bound(model.program, duals) if duals is not None and len(duals) else 0.0
    waiting = Fraction(max(0.0, least)) * Fraction(model.ns_unit)
    return round_down(sum(problem.durations_ns) + waiting)


def _read(parts: list[ResidencyProblem], model: TieredModel, values: Floats, duals: Floats | None) -> TieredSolution:
    sides: list[ResidencySolution] = []
    for part, side, columns, rows in zip(parts, model.sides, model.columns, model.rows, strict=True):
        own = duals[rows] if duals is not None and len(duals) else None
        sides.append(read_solution(part, side, values[columns], own))
    return TieredSolution(tuple(sides))
