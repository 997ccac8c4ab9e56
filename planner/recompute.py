"""Recomputation and residency together: orders that call operators again, each planned by `stow`, the best kept.

Which operators are called again decides how much must be held or swapped at the turn of the pass (`recompute_orders`).
Candidates come from minimum cuts at rising prices of memory, from producers ranked by bytes per nanosecond, from
checkpointed segments, and from the joint linear program, its fractions and its prices. Each thought gives a sequence;
how much of it is worth while is found by a search over a coarse residency program (`recompute_score`). What scores best
is planned in full; the simulator has the last word, and the plan without recomputation is in the portfolio.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from ..ir.errors import InfeasibleError, TensorstowError, TimeLimitError
from ..ir.plan import Plan
from .instance import Instance, make_instance
from .recompute_bound import flow_of, joint_solution
from .recompute_choice import (
    Candidate,
    Chosen,
    by_share,
    checkpoints,
    closures_by_demand,
    closures_by_worth,
    hold_prices,
    price_cut,
    price_cuts,
    rounded,
    segment_counts,
)
from .recompute_orders import Flow, recompute_order
from .recompute_resident import first_resident, resident_plan
from .recompute_score import Outlook, outlook
from .stow import Stow
from .strategies import Effort, register

DUAL_FACTORS = (0.5, 0.9, 1.1, 2.0)
"""By how much the joint program's prices are scaled for cuts: at 1 holding and calling again often cost the same."""
WHOLE_STEPS, WHOLE_CALLS = 160, 500
"""Steps and operators up to which a program with whole choices is solved too."""


@register
@dataclass(frozen=True, slots=True)
class StowRecompute:
    """The best of `stow` without recomputation and on orders with it.

    `exponents`: prices of memory, as powers of two of the one at which recomputing everything costs what holding does.
    `halvings`: how often the search along a sequence halves its step. `joint_windows`: of the joint program (0: none).
    `plans`: how many candidates are planned in full, time permitting.
    """

    name: ClassVar[str] = "stow-recompute"
    exponents: tuple[float, ...] = (-3.0, -2.0, -1.0, -0.5, 0.0, 1.0, 2.0)
    halvings: int = 3
    joint_windows: int = 16
    plans: int = 8

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best simulated plan of the portfolio; the errors of `stow` where no candidate has one."""
        return _Search(self, instance, effort).run()


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate's order, posed, and what a pass of it may come to."""

    candidate: Candidate
    instance: Instance
    outlook: Outlook

    def expected_ns(self, friction: float) -> float:
        """What a plan of it will take when `friction` of the busier link's time is waited for beyond the least."""
        return self.outlook.least_ns + (friction * self.outlook.traffic_ns if friction else 0.0)


@dataclass
class _Search:
    options: StowRecompute
    instance: Instance
    effort: Effort
    best: Plan | None = None
    error: TensorstowError | None = None
    scored: dict[Chosen, Scored] = field(default_factory=dict[Chosen, Scored])
    orders: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    planned: int = 0
    plan_s: float = 0.0
    friction: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that remain."""
        return self.effort.time_limit_s - (time.monotonic() - self.began)

    @cached_property
    def flow(self) -> Flow:
        return flow_of(self.instance)

    def run(self) -> Plan:
        """What needs no transfers, quickly; plain stow; candidates of sequences; then those of the joint program."""
        once = len(set(self.instance.order)) == self.instance.steps
        useful = once and any(self.flow.awaited(s) for s in self.flow.maker)
        if useful and self.instance.peak_of_all() > self.instance.capacity_nbytes:
            self._of_resident()
            self._plan_resident()
        seconds = self._plan(self.instance, share=0.5 if useful else 1.0)
        if useful and not self._settled() and self.left_s > 0:
            self._learn(seconds, outlook(self.instance, time_limit_s=max(0.1, self.left_s / 4)))
            self._of_sequences()
            self._plan_resident()
            self._plan_best(until_s=self.effort.time_limit_s / 3)
            self._of_joint_program()
            self._plan_resident()
            self._plan_best(until_s=0.0)
        if self.best is None:
            raise self.error or TimeLimitError(f"'{self.options.name}' found no plan in {self.effort.time_limit_s:g} s")
        return self.best

    def _settled(self) -> bool:
        """Whether no recomputation can gain anything: calls alone take as long as the best plan."""
        return self.best is not None and self.best.certificate.simulated_s * 1e9 <= 1.001 * sum(
            self.instance.durations_ns
        )

    @cached_property
    def sequences(self) -> list[tuple[str, list[Chosen]]]:
        """By name: what to call again, the most worth while first; cuts, closures, segments."""
        cuts = [c.chosen for c in price_cuts(self.flow, self.options.exponents)]
        found = [("cut", closures_by_demand(self.flow, cuts)), ("closure", closures_by_worth(self.flow))]
        return found + [(f"segment of {n}", checkpoints(self.flow, n)) for n in segment_counts(self.flow)]

    def _of_resident(self) -> None:
        """Of each sequence as many as make transfers needless; of the segments and cuts, all as well."""
        for label, sequence in self.sequences:
            k = first_resident(self.instance, self.flow, sequence) if sequence else None
            if k is not None:
                self._score(Candidate(f"{k} of {len(sequence)}: {label}", frozenset().union(*sequence[:k])))

    def _of_sequences(self) -> None:
        for label, sequence in self.sequences:
            if self.left_s < 0.5 * self.effort.time_limit_s and label != "cut":
                return
            self._along(label, sequence)

    def _of_joint_program(self) -> None:
        windows = self.options.joint_windows
        if not windows or self.left_s < 0.25 * self.effort.time_limit_s or self._settled():
            return
        result = joint_solution(self.instance, time_limit_s=self.left_s / 2, windows=windows)
        if result.solution is None:
            return
        for candidate in rounded(self.flow, result.solution.repeated):
            self._score(candidate)
        self._along("joint program", by_share(self.flow, result.solution.repeated))
        prices = hold_prices(self.flow, result.solution)
        cuts = [price_cut(self.flow, factor, prices) for factor in DUAL_FACTORS]
        self._along("priced cut", closures_by_demand(self.flow, cuts))
        if self.instance.steps <= WHOLE_STEPS and len(self.flow.repeatable) <= WHOLE_CALLS:
            whole = joint_solution(self.instance, time_limit_s=self.left_s / 3, windows=2 * windows, whole=True)
            if whole.solution is not None:
                for candidate in rounded(self.flow, whole.solution.repeated):
                    self._score(Candidate(f"whole {candidate.label}", candidate.chosen))

    def _along(self, label: str, sequence: Sequence[Chosen]) -> None:
        """Score the first k of a sequence: at five places, and then around the best one in ever smaller steps."""
        if not sequence:
            return
        length = len(sequence)
        scores: dict[int, float] = {}

        def at(k: int) -> float:
            k = min(max(k, 1), length)
            if k not in scores:
                scores[k] = self._score(Candidate(f"{k} of {length}: {label}", frozenset().union(*sequence[:k])))
            return scores[k]

        resident = first_resident(self.instance, self.flow, sequence)
        if resident is not None:
            at(resident)
        last = resident or length  # to call more again than makes transfers needless is of no use
        for quarter in range(1, 5):
            at(last * quarter // 4)
        step = last // 4
        for _ in range(self.options.halvings):
            step = max(1, step // 2)
            best = min(scores, key=lambda k: (scores[k], k))
            for k in (best - step, best + step):
                if self.left_s > 0.4 * self.effort.time_limit_s:
                    at(k)

    def _score(self, candidate: Candidate) -> float:
        """About the least time of the candidate's order, nanoseconds; remembered."""
        known = self.scored.get(candidate.chosen)
        if known is None:
            order = recompute_order(self.flow, candidate.chosen)
            old = self.instance
            try:
                posed = make_instance(old.graph, old.machine, mode=old.mode, order=order)
            except InfeasibleError:  # calls at the very end, beside which not all outputs have room
                return float("inf")
            compute = float(sum(posed.durations_ns))
            worth = self.best is None or compute < self.best.certificate.simulated_s * 1e9
            if not worth:
                found = Outlook(compute, compute, float("inf"))
            elif posed.peak_of_all() <= posed.capacity_nbytes:
                found = Outlook(compute, compute, 0.0)
            else:
                found = outlook(posed, time_limit_s=max(0.1, self.left_s / 4))
            known = self.scored[candidate.chosen] = Scored(candidate, posed, found)
        return known.outlook.least_ns

    def _plan_best(self, until_s: float) -> None:
        """Plan candidates in full, the most promising first, until so many seconds are left or none may beat the best.

        The coarse program moves bytes at will; addresses and whole storages do not let all of that hide. What share of
        the traffic was waited for in the plans so far tells how much more may be called again to move less.
        """
        while self.left_s > until_s and self.planned <= self.options.plans and not self._settled():
            left = [s for s in self.scored.values() if s.instance.order not in self.orders]
            chosen = min(left, key=lambda s: s.expected_ns(self.friction), default=None)
            beaten = chosen is None or (
                self.best is not None and chosen.outlook.least_ns >= self.best.certificate.simulated_s * 1e9
            )
            if chosen is None or beaten or (self.best is not None and self.left_s - until_s < self.plan_s / 2):
                return
            self._learn(self._plan(chosen.instance, share=0.6), chosen.outlook)

    def _plan_resident(self) -> None:
        """Plan the candidates that need no transfers, the least computing first, until one has addresses: quickly done,
        and never worse than checkpointing segments or cutting alone."""
        still = [s for s in self.scored.values() if s.outlook.traffic_ns == 0.0 and s.instance.order not in self.orders]
        for scored in sorted(still, key=lambda s: s.outlook.compute_ns):
            worth = self.best is None or scored.outlook.compute_ns < self.best.certificate.simulated_s * 1e9
            if not worth or self._plan_without_moves(scored.instance):
                return

    def _plan_without_moves(self, instance: Instance) -> bool:
        limit_s = max(0.1, self.left_s / 8)
        plan = resident_plan(instance, self.options.name, packing_time_s=limit_s, seed=self.effort.seed)
        if plan is None:
            return False
        self.orders.add(instance.order)
        if self.best is None or plan.certificate.simulated_s < self.best.certificate.simulated_s:
            self.best = plan
        return True

    def _learn(self, seconds: float | None, expected: Outlook) -> None:
        """How much of the traffic a plan waited for beyond what the coarse program did."""
        if seconds is not None and 0 < expected.traffic_ns < float("inf"):
            waited = max(0.0, 1e9 * seconds - expected.least_ns)
            self.friction = max(self.friction / 2, waited / expected.traffic_ns)

    def _plan(self, instance: Instance, share: float) -> float | None:
        """Let stow plan an order in a share of what time is left; keep the plan if it is the best. Its seconds."""
        self.orders.add(instance.order)
        self.planned += 1
        began = time.monotonic()
        limit_s = max(0.1, self.left_s * share)
        try:
            plan = Stow().plan(instance, replace(self.effort, time_limit_s=limit_s))
        except (InfeasibleError, TimeLimitError) as error:
            self.error = self.error or error
            return None
        finally:
            self.plan_s = max(self.plan_s, time.monotonic() - began)
        if self.best is None or plan.certificate.simulated_s < self.best.certificate.simulated_s:
            self.best = replace(plan, strategy=self.options.name)
        return plan.certificate.simulated_s
