"""Recomputation and residency together: orders that call operators again, each planned by `stow`, the best kept.

Which operators are called again decides how much must be held or swapped at the turn of the pass (`recompute_orders`).
The joint linear program (`recompute_bound`) knows what a byte of memory, a byte moved and a call are worth to one
another; what it calls again for more than some share is a candidate. Bytes flow there at will, in a plan whole storages
need addresses in time: so it is asked about machines with less memory and slower links, from the machine as it is to
one on which nearly all is made again. Somewhere between, what suits such a machine leaves a plan for this one just the
room that it needs: there the search narrows, and at last it looks between the best order and its nearest neighbours,
half of what tells them apart at a time. Where the program has no answer in time, candidates are minimum cuts at rising
prices of memory.

The simulator has the last word. The portfolio holds what is published, too: checkpointed segments, minimum cuts,
PyTorch's knapsack, MEMO, Capuchin, Checkmate; and the plan without recomputation, unless a bound of its order proves
that it is slower.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import ClassVar

from ..ir.collecting import without_collecting
from ..ir.errors import TimeLimitError
from ..ir.plan import Plan
from ..solvers.residency.recompute import solve_recompute
from ..solvers.result import Status
from .instance import Instance
from .published.capuchin import Capuchin
from .published.checkmate import Checkmate
from .published.checkpointing import minimum_cuts, segmentations
from .published.memo import Memo
from .published.torch_knapsack import knapsacks
from .recompute_bound import flow_of, joint_solution
from .recompute_choice import Chosen, closures_by_demand, price_cuts, rounded
from .recompute_resident import first_resident
from .recompute_score import WINDOWS, order_problem
from .recompute_trials import Trial, Trials
from .stow import Stow
from .strategies import Effort, Strategy, register

WEAKEST = (0.2, 0.8)
"""Shares of the links' rates and of the capacity of that one."""
WEAK = 0.95
"""Beyond this strength there is nothing else to find."""
NARROWEST = 1 / 64
"""Strengths that are nearer to one another have the same answers."""
STALE = 2
"""After so many answers in a row without an order that is new, no more are asked for."""
AT_ONCE = 2
"""How many orders of one answer are planned."""
SHORT = 0.1
"""A second one only if the first took less than this share of the time limit."""
EXPONENTS = (-3.0, -2.0, -1.0, -0.5, 0.0, 1.0, 2.0)
"""Prices of memory, as powers of two of the one at which recomputing everything costs what holding does."""
HALVINGS = 3
"""How often the search along a sequence halves its step."""
NEAR = 1.02
"""Within this of computing alone the bound of the order without recomputation makes its plan worth a first look."""


@register
@dataclass(frozen=True, slots=True)
class StowRecompute:
    """The best of `stow` without recomputation and on orders with it.

    `windows`: of the joint program (0: it is not asked). `deepened`: the share of the time left to the whole search of
    `stow` over the best orders; `published`: to published strategies, and to the plan without recomputation.
    """

    name: ClassVar[str] = "stow-recompute"
    windows: int = 8
    deepened: float = 0.25
    published: float = 0.25

    @without_collecting()
    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best simulated plan of the portfolio; the errors of `stow` where no candidate has one."""
        return _Search(self, instance, effort).run()


@dataclass(frozen=True, slots=True)
class Reached:
    """What the orders of one answer came to: nanoseconds of the best plan, and whether the likeliest one waits for
    nothing."""

    best_ns: float
    hidden: bool


@dataclass
class _Search:
    options: StowRecompute
    instance: Instance
    effort: Effort
    trials: Trials = field(init=False)

    def run(self) -> Plan:
        """What needs no transfers; orders of the joint program; those between them; what is published."""
        instance, name = self.instance, self.options.name
        once = len(set(instance.order)) == instance.steps
        crowded = instance.peak_of_all() > instance.capacity_nbytes
        flow = flow_of(instance) if once and crowded else None
        if flow is None or not any(flow.awaited(s) for s in flow.maker):
            return replace(Stow().plan(instance, self.effort), strategy=name)
        trials = self.trials = Trials(instance, flow, name, self.effort)
        others_s = self.options.published * self.effort.time_limit_s
        deep_s = others_s + self.options.deepened * self.effort.time_limit_s
        alone_ns = self._bound_without()
        trials.without_transfers(chain(segmentations(flow), minimum_cuts(flow), knapsacks(flow)))
        self._of_published((Memo(), Capuchin()), others_s / 2)
        if alone_ns < min(trials.best_ns, NEAR * sum(instance.durations_ns)):
            self._plan(frozenset(), others_s)
        if not self._of_joint_program(deep_s):
            self._of_cuts(deep_s)
        self._between(deep_s)
        self._deepen(others_s)
        self._of_published((Checkmate(),), trials.left_s / 3)
        if trials.best_ns > alone_ns and not trials.settled and trials.left_s > 0:
            trials.run(Stow(), instance, trials.left_s)
        self._between(0.0)
        if trials.best is None:
            raise trials.error or TimeLimitError(f"'{name}' found no plan in {self.effort.time_limit_s:g} s")
        return trials.best

    def _plan(self, chosen: Chosen, until_s: float) -> Trial | None:
        """Plan the order that calls these again, quickly."""
        trial = self.trials.look_at(chosen)
        if trial is not None and self.trials.left_s > until_s:
            self.trials.attempt(trial, until_s)
        return trial

    def _of_joint_program(self, until_s: float) -> bool:
        """Ask the joint program about one machine after another, and plan what it calls again each time; whether it
        answered at all."""
        trials, reached, took_s, old = self.trials, dict[float, Reached](), 0.0, 0
        while self.options.windows and not trials.settled and trials.left_s - until_s > took_s:
            began, strength, known = time.monotonic(), next_strength(reached), len(trials.known)
            if strength is None or old == STALE:
                break
            margin = (1 - strength * (1 - WEAKEST[0]), 1 - strength * (1 - WEAKEST[1]))
            limit_s = max(0.1, (trials.left_s - until_s) * (1.0 if reached else 0.7))
            result = joint_solution(self.instance, time_limit_s=limit_s, windows=self.options.windows, margin=margin)
            if result.solution is None:
                break
            reached[strength] = self._best_of(list(rounded(trials.flow, result.solution.repeated)), until_s)
            took_s = max(took_s, time.monotonic() - began)
            old = old + 1 if len(trials.known) == known else 0
        return bool(reached)

    def _best_of(self, candidates: list[Chosen], until_s: float) -> Reached:
        """Plan the most promising of some orders; without any, the one without recomputation."""
        before_s = self.trials.left_s
        looked = (self.trials.look_at(chosen) for chosen in candidates or [frozenset[str]()])
        ranked = sorted((t for t in looked if t is not None), key=lambda t: t.expected_ns)
        for trial in ranked[:AT_ONCE]:
            if self.trials.left_s > until_s:
                self.trials.attempt(trial, until_s)
            if self.trials.left_s < before_s - SHORT * self.effort.time_limit_s:
                break
        # What computes longer than the best plan takes needs no more calls, either.
        hidden = bool(ranked) and (ranked[0].hidden or ranked[0].compute_ns >= self.trials.best_ns)
        return Reached(min((t.simulated_ns for t in ranked), default=float("inf")), hidden)

    def _between(self, until_s: float) -> None:
        """Orders half way between the best one and the nearest others, as long as there are any and there is time."""
        seen: set[Chosen] = set()
        while self.trials.left_s > until_s and not self.trials.settled:
            middle = next((m for m in self._middles() if m not in seen), None)
            if middle is None:
                return
            seen.add(middle)
            self._plan(middle, until_s)

    def _deepen(self, until_s: float) -> None:
        """The whole search of stow over the orders whose plans wait, best first, each for half of the time left."""
        trials = self.trials
        for trial in sorted((t for t in trials.all if t.tried), key=lambda t: t.simulated_ns)[:AT_ONCE]:
            left_s = trials.left_s - until_s
            if left_s > 0 and not trial.hidden and trial.compute_ns < trials.best_ns:
                trials.run(Stow(), trial.posed, left_s / 2)

    def _middles(self) -> list[Chosen]:
        """The best order with the first, or the last half changed of what tells it from another one, nearest first.

        Only others whose calls take less than the best plan: more calls than that cannot be better.
        """
        trials = self.trials
        best = min((t for t in trials.all if t.tried), key=lambda t: t.simulated_ns, default=None)
        if best is None:
            return []
        step = trials.flow.step
        differences = [
            sorted(other.chosen ^ best.chosen, key=lambda op: step[op])
            for other in trials.all
            if other is not best and other.compute_ns < best.simulated_ns
        ]
        found: list[Chosen] = []
        for difference in sorted(differences, key=len):
            half = len(difference) // 2
            if half:
                found += [best.chosen ^ frozenset(difference[:half]), best.chosen ^ frozenset(difference[half:])]
        return found

    def _of_cuts(self, until_s: float) -> None:
        """Along the operators of minimum cuts, those of the lowest price first: the first k of them, at five places,
        and then around the best one in ever smaller steps; then plans of the most promising."""
        trials, flow = self.trials, self.trials.flow
        sequence = closures_by_demand(flow, list(price_cuts(flow, EXPONENTS)))
        if not sequence:
            return
        scores: dict[int, float] = {}
        # To call more again than makes transfers needless is of no use.
        last = first_resident(self.instance, flow, sequence) or len(sequence)

        def at(k: int) -> None:
            k = min(max(k, 1), last)
            if k not in scores and (trials.left_s - until_s > 0.5 * self.effort.time_limit_s or not scores):
                trial = trials.look_at(frozenset().union(*sequence[:k]))
                scores[k] = float("inf") if trial is None else trial.expected_ns

        for quarter in (4, 2, 3, 1):
            at(last * quarter // 4)
        step = last // 4
        for _ in range(HALVINGS):
            step = max(1, step // 2)
            best = min(scores, key=lambda k: (scores[k], k))
            at(best - step)
            at(best + step)
        for trial in sorted(trials.all, key=lambda t: t.expected_ns):
            if trials.left_s > until_s and not trials.settled:
                trials.attempt(trial, until_s)

    def _of_published(self, others: Sequence[Strategy], limit_s: float) -> None:
        """What others would do here with transfers, each in this time, where it may be faster than the best."""
        for strategy in others:
            if self.trials.left_s > 0 and not self.trials.settled:
                self.trials.run(strategy, self.instance, limit_s)

    def _bound_without(self) -> float:
        """Nanoseconds that no plan without recomputation takes less than."""
        problem = order_problem(self.instance)
        result = solve_recompute(problem, windows=WINDOWS, time_limit_s=self.effort.time_limit_s / 4)
        return float("inf") if result.status == Status.INFEASIBLE else result.bound or 0.0


def next_strength(reached: dict[float, Reached]) -> float | None:
    """Where between the machine as it is (0) and the weakest (1) to ask next; None where all is near.

    In the middle of what waits and what does not, as there the fewest calls are that leave no waits; without one of
    these, towards the end where it should be; at last, between the best and its farther neighbour.
    """
    if not reached:
        return 0.5
    waits = max((s for s, r in reached.items() if not r.hidden), default=None)
    hidden = min((s for s, r in reached.items() if r.hidden), default=None)
    if waits is None and 0.0 not in reached:
        return 0.0
    if hidden is None and (following := (max(reached) + 1) / 2) < WEAK:
        return following
    if waits is not None and hidden is not None and hidden - waits > NARROWEST:
        return (waits + hidden) / 2
    best = min(reached, key=lambda s: (reached[s].best_ns, s))
    ends = [max((s for s in reached if s < best), default=0.0), min((s for s in reached if s > best), default=1.0)]
    other = max(ends, key=lambda s: abs(s - best))
    return (best + other) / 2 if abs(best - other) > 2 * NARROWEST else None
