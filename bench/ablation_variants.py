"""Variants of `stow` that only the ablation asks for: what was tried and left out, and what the product always does."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

from tensorstow.ir.errors import TimeLimitError
from tensorstow.ir.plan import Plan
from tensorstow.ir.simulate import simulate
from tensorstow.planner.instance import Instance
from tensorstow.planner.round import to_decisions
from tensorstow.planner.search import Search, warm_up
from tensorstow.planner.stays import Decisions
from tensorstow.planner.strategies import Effort
from tensorstow.solvers.residency.mip import improve_residency


def searched(instance: Instance, effort: Effort, share: float) -> Search:
    """A search that has scored a rounding of each cut, for a share of the time."""
    warm_up()
    search = Search(instance, "stow", effort.seed, share * effort.time_limit_s, effort.time_limit_s, 0.001)
    for cut in search.cuts():
        search.try_cut(cut, roundings=2)
    return search


@dataclass(frozen=True, slots=True)
class OnePass:
    """Roundings of each cut as `stow` has them, but nothing stays from one pass to the next: all wrap gaps evicted."""

    name: ClassVar[str] = "one pass"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best of the candidates; TimeLimitError where none could be placed."""
        found = [decisions for _, decisions, _ in searched(instance, effort, 0.3).found]
        wraps = frozenset((g.item, g.before) for g in instance.gaps if g.end >= instance.steps)
        search = Search(instance, "stow", effort.seed, effort.time_limit_s, effort.time_limit_s, 0.001)
        for decisions in found:
            kept = {gap: nbytes for gap, nbytes in decisions.kept_nbytes.items() if gap not in wraps}
            search.score(replace(decisions, evicted=decisions.evicted | wraps, kept_nbytes=kept))
        if search.best is None:
            raise TimeLimitError("nothing could be placed with all weights gone at the end of the pass")
        return search.best


@dataclass(frozen=True, slots=True)
class Windows:
    """Roundings of each cut, and then integer programs for the parts of the best plan that wait longest: all gaps that
    do not touch the part are as the plan has them. `parts` of a pass; each program takes `program_s` at most."""

    name: ClassVar[str] = "windows"
    parts: int = 8
    program_s: float = 3.0

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best plan; TimeLimitError where none could be placed."""
        began = time.monotonic()
        search = searched(instance, effort, 0.3)
        tried: set[int] = set()
        while search.unsplit is not None and time.monotonic() - began < effort.time_limit_s - self.program_s:
            _, decisions = search.unsplit
            part = self._longest(instance, search, decisions, tried)
            if part is None:
                break
            tried.add(part)
            changed = self._decide(instance, decisions, part)
            if changed is not None:
                search.score(changed)
        if search.best is None:
            raise TimeLimitError("nothing could be placed")
        return search.best

    def _longest(self, instance: Instance, search: Search, decisions: Decisions, tried: set[int]) -> int | None:
        """The part that waits longest of those not tried, in the plan of `decisions`."""
        plan = next((p for _, d, p in search.found if d == decisions), None)
        if plan is None:
            return None
        waits = [0] * self.parts
        for event in simulate(plan, instance.graph, instance.machine).steps:
            waits[event.step * self.parts // instance.steps] += event.wait_ns
        left = [p for p in range(self.parts) if p not in tried and waits[p] > 0]
        return max(left, key=lambda p: waits[p], default=None)

    def _decide(self, instance: Instance, decisions: Decisions, part: int) -> Decisions | None:
        """The decisions with the gaps decided anew that begin or end in a part; None without an answer."""
        problem = instance.residency_problem(instance.capacity_nbytes)
        relaxed = instance.relax(instance.capacity_nbytes, time_limit_s=self.program_s)
        decided: dict[int, bool] = {}
        for g, gap in enumerate(instance.gaps):
            if part not in {t % instance.steps * self.parts // instance.steps for t in (gap.start, gap.end)}:
                decided[g] = (gap.item, gap.before) in decisions.evicted
        found = improve_residency(problem, relaxed, time_limit_s=self.program_s, decided=decided)
        if found.solution is None:
            return None
        evicted = {g for g, e in enumerate(found.solution.absent[: len(instance.gaps)]) if e > 0.5}
        made = to_decisions(instance, evicted, {}, found.solution.stall_ns)
        return replace(made, landing=decisions.landing)
