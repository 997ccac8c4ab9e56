"""Orders with recomputation that were looked at, what came of them, and quick plans of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..ir.errors import InfeasibleError, NotApplicableError, TensorstowError, TimeLimitError
from ..ir.plan import Plan
from .instance import Instance
from .recompute_choice import Chosen
from .recompute_orders import Flow, recompute_order
from .recompute_resident import held_nbytes, resident_plan
from .recompute_score import COARSE_STEPS, expected_ns, relax_coarsely
from .search import Search, warm_up
from .strategies import Effort, Strategy

SCORED_MARGIN = (0.9, 0.94)
"""Shares of the links' rates and of the capacity with which an order is scored."""
HIDDEN = 1.001
"""A plan that takes no longer than this many times its calls has nothing more to hide."""
PROMISING = 1.5
"""An order whose first plan is slower than this many times the best one is not planned by other fractions."""
TRIES = 3
"""How many cuts a quick plan tries, and how many roundings of the best. Of some thirty orders of training steps, the
first few gave what the whole search found, or nearly so; another order or other fractions gave more."""
QUICK_SHARE = 0.12
"""The part of the time limit after which a quick plan begins nothing more."""
FINE_STEPS = 1000
"""Orders of more steps are planned by the fractions of a coarse program alone: the whole one takes seconds. Where both
are quick, either may be the better one, by a few percent."""


@dataclass
class Trial:
    """An order: which operators it calls again, how long its calls take, about how long a pass does, and how long the
    best plan of it does (infinite before there is one)."""

    chosen: Chosen
    posed: Instance
    compute_ns: int
    expected_ns: float
    simulated_ns: float = float("inf")
    tried: bool = False

    @property
    def hidden(self) -> bool:
        """Whether its best plan waits for nothing worth speaking of."""
        return self.simulated_ns <= HIDDEN * self.compute_ns


@dataclass
class Trials:
    """The best plan so far, and every order that was looked at. `name` is what plans are called."""

    instance: Instance
    flow: Flow
    name: str
    effort: Effort
    best: Plan | None = None
    error: TensorstowError | None = None
    known: dict[tuple[str, ...], Trial | None] = field(default_factory=dict[tuple[str, ...], "Trial | None"])
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that remain."""
        return self.effort.time_limit_s - (time.monotonic() - self.began)

    @property
    def best_ns(self) -> float:
        """Nanoseconds of the best plan; infinite without one."""
        return float("inf") if self.best is None else self.best.certificate.simulated_s * 1e9

    @property
    def settled(self) -> bool:
        """Whether nothing can gain anything: calls alone take as long as the best plan."""
        return self.best_ns <= HIDDEN * sum(self.instance.durations_ns)

    @property
    def all(self) -> list[Trial]:
        """Every order that can be planned at all, those first that compute least."""
        return sorted((t for t in self.known.values() if t is not None), key=lambda t: t.compute_ns)

    def look_at(self, chosen: Chosen) -> Trial | None:
        """The order that calls these again, scored; remembered. None where it has no plan, as calls at the very end
        leave no room to all outputs."""
        order = recompute_order(self.flow, chosen)
        if order not in self.known:
            self.known[order] = self._scored(chosen, order)
        return self.known[order]

    def _scored(self, chosen: Chosen, order: tuple[str, ...]) -> Trial | None:
        try:
            posed = self.instance if order == self.instance.order else self.instance.reordered(order)
        except InfeasibleError:
            return None
        compute = sum(posed.durations_ns)
        expected = float(compute)
        if compute < self.best_ns:
            expected = expected_ns(posed, SCORED_MARGIN, time_limit_s=max(0.1, self.left_s / 4))
        return Trial(chosen, posed, compute, expected)

    def attempt(self, trial: Trial, until_s: float) -> None:
        """Plan an order quickly, once: without transfers if it can be, else by a coarse program's fractions, and where
        waits remain, by those of the whole one, which are others; a long order by the former alone."""
        if trial.tried or trial.compute_ns >= self.best_ns:
            return
        if trial.expected_ns >= self.best_ns:  # at a margin; without one it may still be better
            trial.expected_ns = expected_ns(trial.posed, time_limit_s=max(0.1, (self.left_s - until_s) / 4))
            if trial.expected_ns >= self.best_ns:
                return
        trial.tried = True
        posed, limit_s = trial.posed, max(0.1, self.left_s - until_s)
        plan = resident_plan(posed, self.name, packing_time_s=limit_s / 8, seed=self.effort.seed)
        self._take(trial, plan)
        if plan is not None:
            return
        others_ns = self.best_ns
        if posed.steps >= COARSE_STEPS:
            relax_coarsely(posed, time_limit_s=limit_s / 2)
            fine = posed.steps <= FINE_STEPS
            self._take(trial, self._quickly(posed, limit_s, tries=1 if fine else TRIES))
            if trial.hidden or not fine or (PROMISING * others_ns < trial.simulated_ns < float("inf")):
                return
            posed = posed.reordered(posed.order)  # it has not seen the coarse answer
        limit_s = self.left_s - until_s
        if limit_s > 0:
            self._take(trial, self._quickly(posed, limit_s, tries=TRIES))

    def _quickly(self, posed: Instance, limit_s: float, *, tries: int) -> Plan | None:
        quick_s = QUICK_SHARE * self.effort.time_limit_s
        return quick_plan(posed, self.name, time_s=quick_s, most_s=limit_s, seed=self.effort.seed, tries=tries)

    def _take(self, trial: Trial, plan: Plan | None) -> None:
        if plan is not None:
            trial.simulated_ns = min(trial.simulated_ns, plan.certificate.simulated_s * 1e9)
            self.keep(plan)

    def keep(self, plan: Plan) -> None:
        """Keep a plan if it is the best."""
        if plan.certificate.simulated_s * 1e9 < self.best_ns and not self.instance.spills_too_much(plan):
            self.best = replace(plan, strategy=self.name)

    def run(self, strategy: Strategy, instance: Instance, limit_s: float) -> None:
        """Keep what a whole strategy finds, if it is the best; remember why it finds nothing."""
        try:
            self.keep(strategy.plan(instance, replace(self.effort, time_limit_s=max(0.1, limit_s))))
        except NotApplicableError:
            return
        except (InfeasibleError, TimeLimitError) as error:
            self.error = self.error or error

    def without_transfers(self, candidates: Iterable[Chosen]) -> None:
        """Of candidates that need no transfers the one that computes least and for which addresses are found."""
        flow, fitting = self.flow, list[tuple[int, int, tuple[str, ...]]]()
        for number, chosen in enumerate(candidates):
            order = recompute_order(flow, chosen)
            compute = sum(flow.duration_of(op) for op in order)
            if compute < self.best_ns and held_nbytes(self.instance, flow, chosen) <= self.instance.capacity_nbytes:
                fitting.append((compute, number, order))
            if self.left_s <= 0:
                break
        for compute, _, order in sorted(fitting):
            if compute >= self.best_ns or self.left_s <= 0:
                return
            posed = self.instance.reordered(order)
            found = resident_plan(posed, self.name, packing_time_s=max(0.1, self.left_s / 8), seed=self.effort.seed)
            if found is not None:
                self.keep(found)
                return


def quick_plan(
    instance: Instance, name: str, *, time_s: float, most_s: float, seed: int, tries: int = TRIES
) -> Plan | None:
    """A plan of the instance's order by the few likeliest cuts of stow's search; None where there is none in `most_s`.

    It ends with the first that hides all transfers, and begins nothing once it has a plan and `time_s` are over.
    """
    warm_up()
    enough_s = HIDDEN * sum(instance.durations_ns) / 1e9
    search = Search(instance, name, seed, time_s, most_s, HIDDEN - 1)

    def enough() -> bool:
        return search.best is not None and search.best.certificate.simulated_s <= enough_s

    none, *some = search.cuts()[:tries] or [0]
    # To leave half of the largest item's bytes is right more often than to leave none.
    for cut in (*some[:1], none, *some[1:]):
        if not enough():
            search.try_cut(cut, roundings=1)
    if search.best is None:
        search.insist()
    for cut in search.best_cuts(1):
        if not enough():
            search.try_cut(cut, roundings=tries)
    return search.best
