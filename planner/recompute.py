"""Recomputation and residency together: orders that call operators again, each planned by `stow`, the best kept.

Which operators are called again decides how much must be held or swapped at the turn of the pass (`recompute_orders`).
The joint linear program (`recompute_bound`) knows what a byte of memory, a byte moved and a call are worth to one
another; what it calls again for more than some share is a candidate. Bytes flow there at will, in a plan whole storages
need addresses in time: so it is asked about machines with a little less memory and slower links as well, and what suits
them leaves a plan for this one the room that it needs. Where it has no answer in time, candidates are minimum cuts at
rising prices of memory, as many of their operators as a quick residency program likes best (`recompute_score`).

The joint program takes the tier below to hold whatever is spilled. Where that has room for a part only, orders that
wait for more than both tiers hold are dropped as they come, the sequence of cuts begins with the first that does not,
and checkpoints around segments are tried as well.

The simulator has the last word. The portfolio holds what is published, too: checkpointed segments, minimum cuts,
PyTorch's knapsack, MEMO, Capuchin, Checkmate; and the plan without recomputation, unless a bound of its order proves
that it is slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from ..ir.errors import InfeasibleError, NotApplicableError, TensorstowError, TimeLimitError
from ..ir.plan import Plan
from ..solvers.residency.recompute import solve_recompute
from ..solvers.result import Status
from .instance import Instance
from .published.capuchin import Capuchin
from .published.checkmate import Checkmate
from .published.checkpointing import minimum_cuts, segmentations
from .published.memo import Memo
from .published.torch_knapsack import TorchKnapsack
from .recompute_bound import flow_of, joint_solution
from .recompute_choice import Chosen, checkpoints, closures_by_demand, price_cuts, rounded
from .recompute_orders import Flow, recompute_order
from .recompute_resident import (
    down_to_leanest,
    first_resident,
    first_spilling_less,
    held_nbytes,
    homed_nbytes,
    overflows,
    resident_plan,
    room_nbytes,
)
from .recompute_score import WINDOWS, expected_ns, order_problem, relax_coarsely
from .stow import Stow
from .strategies import Effort, Strategy, register

MARGINS = ((0.9, 0.88), (0.75, 0.95), (0.9, 1.0), (1.0, 1.0), (0.9, 0.94), (0.6, 0.9))
"""Shares of the links' rates and of the capacity with which the joint program is asked, the likeliest first."""
SCORED_MARGIN = (0.9, 0.94)
"""And those with which an order is scored."""
EXPONENTS = (-3.0, -2.0, -1.0, -0.5, 0.0, 1.0, 2.0)
"""Prices of memory, as powers of two of the one at which recomputing everything costs what holding does."""
HALVINGS = 3
"""How often the search along a sequence halves its step."""
LAST_S = 2.0
"""Seconds in which a plan of thousands of operators can be found at all."""
LAST_TRIES = 3
"""Orders that are planned beyond the time limit, one after another, where no plan was found within it."""
LAST_SHARE = 0.2
"""And the share of the time limit that they may take beyond it, all together, where that is more than `LAST_S` each."""


@register
@dataclass(frozen=True, slots=True)
class StowRecompute:
    """The best of `stow` without recomputation and on orders with it.

    `windows`: of the joint program (0: it is not asked). `published`: the share of the time left to published
    strategies and to the plan without recomputation.
    """

    name: ClassVar[str] = "stow-recompute"
    windows: int = 8
    published: float = 0.25

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best simulated plan of the portfolio; the errors of `stow` where no candidate has one."""
        return _Search(self, instance, effort).run()


@dataclass(frozen=True, slots=True)
class Scored:
    """An order, posed, and about how long a pass of it takes."""

    instance: Instance
    compute_ns: int
    expected_ns: float


@dataclass
class _Search:
    options: StowRecompute
    instance: Instance
    effort: Effort
    best: Plan | None = None
    error: TensorstowError | None = None
    scored: dict[tuple[str, ...], Scored] = field(default_factory=dict[tuple[str, ...], Scored])
    planned: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that remain."""
        return self.effort.time_limit_s - (time.monotonic() - self.began)

    @property
    def best_ns(self) -> float:
        """Nanoseconds of the best plan; infinite without one."""
        return float("inf") if self.best is None else self.best.certificate.simulated_s * 1e9

    @cached_property
    def flow(self) -> Flow:
        return flow_of(self.instance)

    def run(self) -> Plan:
        """Candidates of the joint program, planned as they come; the plan without recomputation; what is published."""
        once = len(set(self.instance.order)) == self.instance.steps
        crowded = self.instance.peak_of_all() > self.instance.capacity_nbytes
        if once and crowded and any(self.flow.awaited(s) for s in self.flow.maker):
            alone_ns = self._bound_without()
            for_others_s = self.options.published * self.effort.time_limit_s
            short_below = overflows(self.instance)
            if short_below or not self._of_joint_program(until_s=for_others_s):
                self._of_resident(minimum_cuts(self.flow))  # a plan soon, before what takes long
                self._of_cuts(until_s=for_others_s)
            self._plan_best(until_s=for_others_s)
            if short_below:
                self._of_joint_program(until_s=for_others_s)
                self._plan_best(until_s=for_others_s)
            if self.best_ns > alone_ns and not short_below:
                self._plan(self.instance)
            self._of_published()
            self._plan_best(until_s=0.0)
            self._beyond_time()
        else:
            self._plan(self.instance)
        if self.best is None:
            raise self.error or TimeLimitError(f"'{self.options.name}' found no plan in {self.effort.time_limit_s:g} s")
        return self.best

    def _settled(self) -> bool:
        """Whether nothing can gain anything: calls alone take as long as the best plan."""
        return self.best_ns <= 1.001 * sum(self.instance.durations_ns)

    def _of_joint_program(self, until_s: float) -> bool:
        """Ask the joint program with one margin after another, and plan what it calls again each time; whether it
        answered at all."""
        answered, took_s = False, 0.0
        for margin in MARGINS if self.options.windows else ():
            if self._settled() or self.left_s - until_s < took_s:
                break
            began = time.monotonic()
            limit_s = max(0.1, (self.left_s - until_s) * (1.0 if answered else 0.7))
            result = joint_solution(self.instance, time_limit_s=limit_s, windows=self.options.windows, margin=margin)
            took_s = max(took_s, time.monotonic() - began)
            if result.solution is None:
                break
            answered = True
            scores = [self._score(chosen) for chosen in rounded(self.flow, result.solution.repeated)]
            if overflows(self.instance) and min(scores, default=float("inf")) == float("inf"):
                return False  # what it moves has no room below
            self._plan_best(until_s=until_s, most=1)
        return answered

    def _of_cuts(self, until_s: float) -> None:
        """Along the operators of minimum cuts, those of the lowest price first."""
        cuts = list(price_cuts(self.flow, EXPONENTS))
        if overflows(self.instance):
            cuts = down_to_leanest(self.instance, self.flow, cuts)
        self._along(closures_by_demand(self.flow, cuts), until_s)
        if overflows(self.instance):
            self._of_segments(until_s)

    def _of_segments(self, until_s: float) -> None:
        """Checkpoints around ever more segments: in a chain, of which a cut makes all or nothing again, these wait for
        less than both tiers hold."""
        room = room_nbytes(self.instance) or 0
        awaited = sum(self.flow.awaited(s) for s in self.flow.maker)
        for doubled in range(awaited.bit_length()):
            chosen = frozenset[str]().union(*checkpoints(self.flow, 1 << doubled))
            late = self.left_s <= until_s and any(s.expected_ns < float("inf") for s in self.scored.values())
            if not late and held_nbytes(self.instance, self.flow, chosen) - homed_nbytes(self.instance) <= room:
                self._score(chosen)

    def _along(self, sequence: Sequence[Chosen], until_s: float) -> None:
        """Score the first k of a sequence: at five places, and then around the best one in ever smaller steps."""
        if not sequence:
            return
        scores: dict[int, float] = {}
        resident = first_resident(self.instance, self.flow, sequence)
        last = resident or len(sequence)  # to call more again than makes transfers needless is of no use
        first = max(1, min(last, first_spilling_less(self.instance, self.flow, sequence)))

        def at(k: int) -> None:
            k = min(max(k, first), last)
            if k not in scores and (self.left_s - until_s > 0.5 * self.effort.time_limit_s or not scores):
                scores[k] = self._score(frozenset().union(*sequence[:k]))

        for quarter in (4, 2, 3, 1):
            at(first - 1 + (last - first + 1) * quarter // 4)
        step = (last - first + 1) // 4
        for _ in range(HALVINGS):
            step = max(1, step // 2)
            best = min(scores, key=lambda k: (scores[k], k))
            at(best - step)
            at(best + step)

    def _beyond_time(self) -> None:
        """Where time is over and there is no plan: one of an order that was scored, and if none has one, of an order
        that there was no time to score. The most promising are tried, and the one that holds least. All together have
        a `LAST_SHARE` of the limit, half of what is left of that each, and `LAST_S` each at the least."""
        until = time.monotonic() + LAST_SHARE * self.effort.time_limit_s
        tried = set[tuple[str, ...]]()
        for unscored in (False, True):
            if self.best is None and unscored:
                self._of_cuts(until_s=float("-inf"))
            # Infinite is also what there was no time to score.
            ranked = sorted(self.scored.values(), key=lambda s: (s.expected_ns, s.compute_ns))
            leanest = sorted(ranked, key=lambda s: s.instance.peak_of_all())
            for scored in (*ranked[:LAST_TRIES], *leanest[:1]):
                if self.best is None and scored.instance.order not in tried:
                    tried.add(scored.instance.order)
                    limit_s = max(LAST_S, (until - time.monotonic()) / 2)
                    relax_coarsely(scored.instance, time_limit_s=limit_s / 4)
                    self._run(Stow(), scored.instance, limit_s)

    def _score(self, chosen: Chosen) -> float:
        """About the time of a pass in the order with these operators called again, nanoseconds; remembered."""
        order = recompute_order(self.flow, chosen)
        if order not in self.scored:
            try:
                posed = self.instance.reordered(order)
            except InfeasibleError:  # calls at the very end, beside which not all outputs have room
                return float("inf")
            if overflows(posed):
                return float("inf")
            compute = sum(posed.durations_ns)
            limit_s = max(0.1, self.left_s / 4)
            expected = expected_ns(posed, SCORED_MARGIN, time_limit_s=limit_s) if compute < self.best_ns else compute
            self.scored[order] = Scored(posed, compute, expected)
        return self.scored[order].expected_ns

    def _plan_best(self, until_s: float, most: int = 1 << 30) -> None:
        """Plan the most promising of the scored orders, until so many seconds are left or none can beat the best."""
        for scored in sorted(self.scored.values(), key=lambda s: s.expected_ns):
            if most == 0 or self.left_s <= until_s or self._settled():
                return
            if scored.compute_ns < self.best_ns and scored.instance.order not in self.planned:
                most -= 1
                self._plan(scored.instance, until_s=until_s)

    def _plan(self, instance: Instance, until_s: float = 0.0) -> None:
        """Let stow plan an order in what time is left; keep the plan if it is the best."""
        self.planned.add(instance.order)
        if instance.order != self.instance.order:
            limit_s = max(0.1, self.left_s - until_s)
            resident = resident_plan(instance, self.options.name, packing_time_s=limit_s / 8, seed=self.effort.seed)
            if resident is not None:
                self._keep(resident)
                return
            relax_coarsely(instance, time_limit_s=limit_s / 4)
        self._run(Stow(), instance, self.left_s - until_s)

    def _run(self, strategy: Strategy, instance: Instance, limit_s: float) -> None:
        try:
            self._keep(strategy.plan(instance, replace(self.effort, time_limit_s=max(0.1, limit_s))))
        except NotApplicableError:
            return
        except (InfeasibleError, TimeLimitError) as error:
            self.error = self.error or error

    def _keep(self, plan: Plan) -> None:
        if plan.certificate.simulated_s * 1e9 < self.best_ns and not self.instance.spills_too_much(plan):
            self.best = replace(plan, strategy=self.options.name)

    def _of_published(self) -> None:
        """What others would do here, where it may be faster than the best."""
        self._of_resident(minimum_cuts(self.flow))
        for strategy in (TorchKnapsack(), Memo(), Capuchin(), Checkmate()):
            if self.left_s > 0 and not self._settled():
                self._run(strategy, self.instance, self.left_s / 2)
        self._of_resident(segmentations(self.flow))

    def _of_resident(self, candidates: Iterable[Chosen]) -> None:
        """Of candidates that need no transfers the one that computes least and for which addresses are found."""
        if homed_nbytes(self.instance) > self.instance.capacity_nbytes:
            return
        flow, fitting = self.flow, list[tuple[int, Chosen]]()
        for chosen in candidates:
            compute = sum(flow.duration_of(op) for op in recompute_order(flow, chosen))
            if compute < self.best_ns and held_nbytes(self.instance, flow, chosen) <= self.instance.capacity_nbytes:
                fitting.append((compute, chosen))
            if self.left_s <= 0:
                break
        for _, chosen in sorted(fitting, key=lambda f: f[0]):
            before, posed = self.best, self.instance.reordered(recompute_order(flow, chosen))
            found = resident_plan(posed, self.options.name, packing_time_s=max(0.1, self.left_s / 8), seed=0)
            if found is not None:
                self._keep(found)
            if self.left_s <= 0 or self.best is not before:
                return

    def _bound_without(self) -> float:
        """Nanoseconds that no plan without recomputation takes less than."""
        problem = order_problem(self.instance)
        result = solve_recompute(problem, windows=WINDOWS, time_limit_s=self.effort.time_limit_s / 4)
        return float("inf") if result.status == Status.INFEASIBLE else result.bound or 0.0
