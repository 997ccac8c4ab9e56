"""Passes that leave steps out: a decoder's passes after an encoder's, layers that are skipped.

What the last two passes both left out is no longer loaded. If a step comes after all whose bytes were left out, they
are read then and there: their place is theirs for as long as the plan says, whether they came or not. From then on
everything is loaded again, until two passes have left out the same once more.
"""

from __future__ import annotations

from collections.abc import Collection

from ...ir.served import PASSES, served
from ..passes import PlanMemory

Fill = tuple[str, int, int]
"""A job that fills what a step reads: its lane, its position there, and how many passes before the step it runs."""


class Skipping:
    """Which jobs may be left out. `active` says that some are, or were and have not been forgotten."""

    def __init__(self, memory: PlanMemory) -> None:
        self.active = False
        self._memory = memory
        self._fills: list[list[Fill]] = [[] for _ in memory.plan.steps]
        self._serves: dict[tuple[str, int], set[int]] = {}
        self._passed: set[int] = set()
        self._before: set[int] = set()
        self._left_out: dict[str, frozenset[int]] = {}
        if memory.device is None:
            self._find()

    def _find(self) -> None:
        """Jobs and the steps that read what they bring."""
        routes = self._memory.routes
        for one in served(self._memory.plan, self._memory.graph):
            route = routes[one.index]
            self._fills[one.step].append((route.lane, route.position, one.passes))
            self._serves.setdefault((route.lane, route.position), set()).add(one.step)

    def restart(self) -> None:
        """As before the first pass; the lanes have forgotten already."""
        self._passed, self._before, self._left_out, self.active = set(), set(), {}, False

    def passed(self, step: int) -> None:
        """The module has not used `step` in this pass."""
        self._passed.add(step)

    def turn(self) -> None:
        """A pass is over."""
        both = self._passed & self._before
        self._before, self._passed = self._passed, set()
        if not both and not self.active:
            return
        found: dict[str, set[int]] = {}
        for (lane, position), steps in self._serves.items():
            if steps <= both:
                found.setdefault(lane, set()).add(position)
        self._leave_out({lane: frozenset(positions) for lane, positions in found.items()})
        # Jobs of passes that are long over cannot be missed any more.
        remembered = self._memory.engine.forget(PASSES)
        self.active = bool(self._left_out) or remembered

    def _leave_out(self, positions: dict[str, frozenset[int]]) -> None:
        if positions != self._left_out:
            self._memory.engine.skip(positions)
            self._left_out = positions

    def need(self, step: int, turn: int) -> None:
        """`step` of pass `turn` begins: read what was left out of it. Raises ExecutionError where that fails."""
        engine = self._memory.engine
        missing: list[tuple[str, int]] = []
        for name, position, back in self._fills[step]:
            lane = engine.lanes[name]
            number = (turn - back) * len(lane.jobs) + position
            if number in lane.skipped:
                missing.append((name, number))
        if missing:
            self._before = set()
            self._leave_out({})
            for name, number in missing:
                engine.fetch(engine.lanes[name], number)

    @property
    def left_out(self) -> Collection[tuple[str, int]]:
        """Lane and position of the jobs that are left out now."""
        return [(lane, position) for lane, positions in self._left_out.items() for position in positions]
