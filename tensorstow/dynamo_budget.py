"""One budget for all graphs that one call of `torch.compile` makes: which of their arenas are there at a time.

Another form of batch, or another block, is another graph with a plan and an arena of its own, and every plan may take
the whole budget. So an arena is given back when another graph needs its room and no step is under way in it, and made
anew when its graph runs again. Where several steps are under way at a time that does not go, and a warning says so.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .ir.files import PlanFile

if TYPE_CHECKING:
    from .runtime.training.executor import TrainingExecutor
    from .runtime.training.joint_graph import Gradients, Joint, Sections


class Budget:
    """Of `capacity_nbytes`, for the graphs that are planned inside it."""

    def __init__(self, capacity_nbytes: int) -> None:
        self.capacity_nbytes = capacity_nbytes
        self._open: list[weakref.ref[PlannedGraph]] = []
        self._exceeded = False

    def admit(self, graph: PlannedGraph) -> None:
        """`graph` is about to run: others give their arenas back, the longest unused first, until all that are there go
        into the budget. Where they do not the user is warned, once, and arenas stay from then on."""
        others = [g for g in self.admitted if g is not graph]
        if not self._exceeded:
            self._make_room(others, graph)
            if self._nbytes([*others, graph]) > self.capacity_nbytes:
                gc.collect()  # a forward that was dropped in a cycle of references is under way no more
                self._make_room(others, graph)
            self._warn([*others, graph])
        self._open = [g.own_reference for g in (*others, graph)]

    def _make_room(self, others: list[PlannedGraph], graph: PlannedGraph) -> None:
        """Close some of `others`, and take them out of it."""
        for other in list(others):
            if self._nbytes([*others, graph]) > self.capacity_nbytes and not other.in_flight:
                other.close()
                others.remove(other)

    @property
    def admitted(self) -> list[PlannedGraph]:
        """The graphs that have an arena, the longest unused first."""
        return [g for g in (ref() for ref in self._open) if g is not None]

    @staticmethod
    def _nbytes(graphs: list[PlannedGraph]) -> int:
        """What they take together: parameters and the like are the same ones for all of them."""
        return sum(g.nbytes - g.kept_nbytes for g in graphs) + max(g.kept_nbytes for g in graphs)

    def _warn(self, graphs: list[PlannedGraph]) -> None:
        nbytes = self._nbytes(graphs)
        self._exceeded = nbytes > self.capacity_nbytes
        if self._exceeded:
            warnings.warn(
                f"steps of {len(graphs)} graphs are under way at a time, which were planned one by one: together they "
                f"take {nbytes} bytes of a budget of {self.capacity_nbytes}. Compile what is trained as one graph, or "
                "give a smaller budget",
                stacklevel=2,
            )


class PlannedGraph:
    """Forward and backward of `joint` by the plan in `file`, in an arena that is there while `budget` has room."""

    def __init__(self, file: PlanFile, joint: Joint, budget: Budget) -> None:
        assert file.training is not None
        tier = file.machine.units[0].tier
        self.kept_nbytes = file.training.kept_nbytes
        self.nbytes = file.plan.arena_nbytes.get(tier, 0) + file.plan.workspace_nbytes.get(tier, self.kept_nbytes)
        self.own_reference = weakref.ref(self)
        self._file, self._joint, self._budget = file, joint, budget
        self._running: tuple[TrainingExecutor, Sections] | None = None
        self._flights: weakref.WeakSet[_Flight] = weakref.WeakSet()

    @property
    def in_flight(self) -> bool:
        """Whether a forward waits for its backward."""
        return any(not flight.landed for flight in self._flights)

    def sections(self) -> Sections:
        """What runs it. Raises as `TrainingExecutor` and its `build`."""
        from .runtime.training.joint_graph import Sections

        return Sections(self._forward, self._backward, self._opened().read)

    def close(self) -> None:
        """Give the arena back; the next forward makes it anew."""
        if self._running is not None:
            self._running[0].close()
            self._running = None

    def _opened(self) -> Sections:
        from .runtime.training.executor import TrainingExecutor

        self._budget.admit(self)
        if self._running is None:
            executor = TrainingExecutor(self._file, torch.nn.Module())
            self._running = executor, executor.build(self._joint)
        return self._running[1]

    def _forward(self, primals: list[Any]) -> tuple[list[Any], object]:
        sections = self._opened()
        outputs, state = sections.forward(primals)
        flight = _Flight(sections, state)
        self._flights.add(flight)
        return outputs, flight

    def _backward(self, flight: object, tangents: list[Any]) -> Gradients:
        assert isinstance(flight, _Flight)
        try:
            return flight.sections.backward(flight.state, tangents)
        finally:
            flight.landed = True


class _Flight:
    """A forward whose backward may come."""

    def __init__(self, sections: Sections, state: object) -> None:
        self.sections, self.state = sections, state
        self.landed = False


_budgets: list[tuple[Mapping[str, Any], weakref.ref[Budget]]] = []
"""Budgets in use, by the options that `torch.compile` was given: it hands the same object over for every graph."""


def budget_of(options: Mapping[str, Any] | None, capacity_nbytes: int) -> Budget:
    """The budget that was made for these very `options`, or a new one."""
    _budgets[:] = [(key, ref) for key, ref in _budgets if ref() is not None]
    found = next((b for key, ref in _budgets if key is options and (b := ref()) is not None), None)
    if found is None:
        found = Budget(capacity_nbytes)
        if options is not None:
            _budgets.append((options, weakref.ref(found)))
    return found
