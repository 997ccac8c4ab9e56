"""Our strategy: the residency LP for the bound and the fractions, rounding, placement, and the simulator's choice.

The LP lets bytes flow; addresses and whole tensors do not. How much room must be left to them is found by search: a
share of what the LP keeps is evicted as well, evenly over the order, the result rounded, placed, simulated; shares are
tried coarsely and then between the best neighbours. Every candidate is a plan that the simulator has scored. (Posing
the LP again under less capacity gave no better plans and took most of the time.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import ClassVar

from ..ir.errors import TimeLimitError
from ..ir.plan import Plan
from ..ir.simulate import simulate
from ..ir.sizes import format_size
from .instance import Instance
from .place import place
from .realise import realise
from .round import diffuse, fill, fluid, largest_first, repair, spread_evictions, threshold, to_decisions
from .spread import PART_NBYTES
from .stays import Decisions, Landing, live_peak, stays_of
from .strategies import Effort, register

TRANSFER_NBYTES = 256 << 10
"""What one transfer weighs, in bytes moved, where plans are equal in time."""

FEW_MORE_BYTES = 1.05
"""Moving up to this many times the bytes of the LP is not worth more search."""

FRUITLESS_ROUNDS = 4
LATE_NS = 1000


@register
@dataclass(frozen=True, slots=True)
class Stow:
    """Gaps by linear programming (DESIGN 4.1), rounded, placed, simulated; the best of a portfolio.

    `cuts`: shares of the capacity above the largest working set that are left to addresses and whole tensors, tried
    first. `refinements`: how often the best cut's neighbourhood is halved. `search_s`: seconds for all of it once there
    is an answer. `good_enough`: differences of time below this share are none; fewer bytes decide then, and a plan that
    is as near to the bound and moves hardly more than the LP ends the search.
    """

    name: ClassVar[str] = "stow"
    cuts: tuple[float, ...] = (0.03, 0.06, 0.0, 0.12, 0.25, 0.5, 0.75, 1.0)
    refinements: int = 4
    search_s: float = 3.0
    good_enough: float = 0.001

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best simulated plan of the portfolio."""
        search = _Search(self, instance, effort)
        for cut in self.cuts:
            search.try_cut(cut)
            if search.finished or search.falling_behind():
                break
        for _ in range(self.refinements):
            for cut in search.between_best():
                if not search.finished:
                    search.try_cut(cut)
        search.favour()
        search.exchange()
        if search.best is None:
            raise TimeLimitError(
                f"no addresses were found inside {format_size(instance.fast.usable_nbytes)} of tier "
                f"'{instance.fast.name}' in {effort.time_limit_s:g} s; the largest working set takes "
                f"{format_size(max(instance.base_nbytes) + instance.workspace_nbytes)}; give it more memory or time"
            )
        return search.best


def _moved(plan: Plan) -> int:
    return sum(plan.certificate.moved_nbytes.values())


def _burden(plan: Plan) -> int:
    """Bytes moved, and a constant for each transfer, as a thread that wakes takes a core from the kernels."""
    return _moved(plan) + TRANSFER_NBYTES * len(plan.transfers)


@dataclass
class _Search:
    """What has been tried: the simulated seconds of the best plan of each cut."""

    options: Stow
    instance: Instance
    effort: Effort
    best: Plan | None = None
    best_decisions: Decisions | None = None
    last: Plan | None = None
    scores: dict[float, float] = field(default_factory=dict[float, float])
    began: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> bool:
        """Good enough, or out of time."""
        spent = time.monotonic() - self.began
        if self.best is None:
            return spent > self.effort.time_limit_s
        bound = self.instance.relax(self.instance.capacity_nbytes, time_limit_s=1.0).bound or 0
        near = self.best.certificate.simulated_s <= bound / 1e9 * (1 + self.options.good_enough)
        lean = _moved(self.best) <= FEW_MORE_BYTES * self.relaxed_nbytes
        return (near and lean) or spent > min(self.effort.time_limit_s, self.options.search_s)

    def falling_behind(self) -> bool:
        """Whether the last two cuts were worse than the best by more than a little: larger ones will be, too."""
        scores = list(self.scores.values())
        return self.best is not None and len(scores) > 3 and min(scores[-2:]) > 1.02 * min(scores)

    def between_best(self) -> list[float]:
        """The middles between the best cut and its neighbours."""
        tried = sorted(self.scores)
        at = tried.index(min(self.scores, key=lambda c: (self.scores[c], c)))
        return [(a + b) / 2 for a, b in zip(tried[max(at - 1, 0) : at + 1], tried[max(at, 1) : at + 2], strict=False)]

    def try_cut(self, cut: float) -> None:
        """Score every rounding of the LP's fractions, with what the cut takes from what they keep."""
        instance = self.instance
        least = max(instance.base_nbytes, default=0)
        cut_nbytes = int(cut * (instance.capacity_nbytes - least))
        result = instance.relax(instance.capacity_nbytes, time_limit_s=self.effort.time_limit_s)
        self.scores[cut] = float("inf")
        if result.solution is None:
            return
        absent = spread_evictions(instance, result.solution.absent[: len(instance.gaps)], cut_nbytes)
        for decisions in _roundings(instance, instance.capacity_nbytes - cut_nbytes, absent, result.solution.stall_ns):
            if self.finished:
                return
            self.scores[cut] = min(self.scores[cut], self.score(decisions))

    def score(self, decisions: Decisions) -> float:
        """Simulated seconds of a pass under `decisions`, remembered if best; infinite where nothing fits."""
        instance = self.instance
        stays = stays_of(instance, decisions)
        if live_peak(instance, stays) > instance.capacity_nbytes:
            return float("inf")
        placed = place(instance, stays, decisions, packing_time_s=1.0, seed=self.effort.seed)
        if placed is None:
            return float("inf")
        plan = self.last = realise(instance, placed, self.options.name)
        if self.best is None or self._better(plan, self.best):
            self.best, self.best_decisions = plan, decisions
        return plan.certificate.simulated_s

    def _better(self, plan: Plan, best: Plan) -> bool:
        """Faster; or as fast with a lighter burden: what hides behind computing still takes bandwidth and wake-ups."""
        new, old = plan.certificate.simulated_s, best.certificate.simulated_s
        if abs(new - old) <= self.options.good_enough * old:
            return (_burden(plan), new) < (_burden(best), old)
        return new < old

    @cached_property
    def relaxed_nbytes(self) -> float:
        """Bytes that the LP moves in a pass."""
        instance = self.instance
        solution = instance.relax(instance.capacity_nbytes, time_limit_s=1.0).solution
        if solution is None:
            return 0.0
        shares = zip(solution.absent, solution.stored, instance.gaps, strict=False)
        return sum((absent + stored) * instance.items[g.item].nbytes for absent, stored, g in shares)

    def favour(self) -> None:
        """Give the loads that came late place and time before the others, round after round, as long as it helps: what
        squeaks gets the oil (Joslin and Clements, JAIR 10, 1999)."""
        fruitless = 0
        decisions, score = self.best_decisions, float("inf")
        while decisions is not None and self.best is not None and fruitless < FRUITLESS_ROUNDS and not self.finished:
            late = self._late_loads(decisions)
            if not late - decisions.reserved:
                return
            decisions = replace(decisions, reserved=decisions.reserved | late)
            before, score = score, self.score(decisions)
            fruitless = 0 if score < min(before, self.best.certificate.simulated_s) else fruitless + 1

    def _late_loads(self, decisions: Decisions) -> frozenset[tuple[int, int]]:
        """(item, step) of the loads that made a step wait longer than the LP expects, under the plan scored last."""
        if self.last is None:
            return frozenset()
        plan, steps = self.last, self.instance.steps
        index = {item.storage: i for i, item in enumerate(self.instance.items)}
        stall_ns = decisions.stall_ns or (0,) * steps
        late = [
            (event, plan.transfers[event.waited_for])
            for event in simulate(plan, self.instance.graph, self.instance.machine).steps
            if event.waited_for is not None and event.wait_ns > stall_ns[event.step] + LATE_NS
        ]
        loads = [(e, t) for e, t in late if t.target == self.instance.fast.name]
        return frozenset((index[t.storage], e.step) for e, t in loads)

    def exchange(self) -> None:
        """Hill climbing from the best plan while there is time: evict one more item, keep one more, or one for another.
        On small graphs this settles what rounding left open; on large ones time ends it early."""
        gaps = [(g.item, g.before) for g in self.instance.gaps]
        improved = True
        while improved and self.best is not None and self.best_decisions is not None:
            start, score = self.best_decisions, self.best.certificate.simulated_s
            singles = [frozenset({g}) for g in gaps]
            pairs = (frozenset({a, b}) for a in gaps if a in start.evicted for b in gaps if b not in start.evicted)
            improved = False
            for change in chain(singles, pairs):
                if self.finished:
                    return
                changed = replace(start, evicted=start.evicted ^ change, kept_nbytes={})
                if self.score(changed) < score * (1 - self.options.good_enough):
                    improved = True
                    break


def _roundings(
    instance: Instance, capacity: int, absent: Sequence[float], stall_ns: Sequence[float]
) -> Iterator[Decisions]:
    """Decisions near the fractions `absent`. What is dirty follows them by halves: each of its gaps costs a store, and
    which ones are worth it the LP knows; weights may stand for one another."""
    gaps = instance.gaps
    dirty = {g for g in threshold(instance, absent) if not gaps[g].clean}
    seen: set[frozenset[int]] = set()
    for chosen in (
        threshold(instance, absent),
        largest_first(instance, absent),
        diffuse(instance, absent, 0.5),
        diffuse(instance, absent, 1.0),
    ):
        evicted = dirty | {g for g in chosen if gaps[g].clean}
        if not repair(instance, absent, evicted, capacity) or frozenset(evicted) in seen:
            continue
        seen.add(frozenset(evicted))
        decisions = to_decisions(instance, evicted, fill(instance, absent, evicted, capacity), stall_ns)
        yield decisions
        yield replace(decisions, landing=Landing.LOWEST)
    evicted, kept = fluid(instance, absent, PART_NBYTES)
    yield to_decisions(instance, evicted, kept, stall_ns)
