"""How far a module is in its plan: instants on and on, pass after pass, advanced by whoever needs a weight.

What a module calls, and in which order, is known only when it happens. But every use names a weight, and the plan says
in which steps that weight is where. So a use advances the clock to the next such step, at or after the present one.
Any sequence of uses is then a subsequence of the periodic plan: what is skipped has been loaded in vain, never wrongly,
and what is skipped again and again is not loaded any more (`Skipping`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter_ns

from ...ir.errors import ExecutionError
from ..directio import never
from ..passes import PlanMemory
from ..trace import Event
from .skipping import Skipping

STILL = -2
"""The step in which a clock rests whose plan moves nothing: all weights are where they are, always."""


class Clock:
    """The present step. Only one thread at a time may call it.

    `step` is the step of the pass whose weights may be used now, -1 while there is none: before the first use, between
    passes, and after anything went wrong in the middle of an advance. It is -1 from before the engine hears of an
    instant until all that is due then is complete, so an exception anywhere leaves it right. Where nothing ever moves
    (`still`) it is STILL from the first use on, and nobody has to advance it; unless steps are recorded.
    """

    def __init__(self, memory: PlanMemory) -> None:
        self.step = -1
        self.ready = False
        self.stopped_ns = 0  # what is not part of the time of `freeze`
        self._memory = memory
        self._period = len(memory.plan.steps)
        self._at = -1  # the instant that the engine has heard of, or is about to
        self._first = 0  # instant of the present pass
        waits, marks = memory.waits, memory.marks
        self._quiet = [step > 0 and not waits[step] and step not in marks for step in range(self._period)]
        self.still = not memory.engine.lanes and not marks
        self._frozen = False
        self._begin_ns = 0  # of the present step, for its event
        self.skipping = Skipping(memory)

    def load(self) -> int:
        """Go back before the first pass; the bytes read for what is resident then."""
        self.step, self.ready, self._frozen = -1, False, False
        nbytes = self._memory.restart()
        self._at, self._first = -1, 0
        self.skipping.restart()
        self.ready = True
        return nbytes

    def seek(self, steps: Sequence[int]) -> int:
        """Advance to the next of `steps` (ascending, not empty) at or after the present one, and return it.

        Loads first where that was not done, or a transfer has failed since. Raises ExecutionError where one fails.
        """
        step, engine = steps[0], self._memory.engine
        if self.still and self.ready and not self._frozen and engine.events is None:
            self.step = STILL
            return STILL
        quiet = self.step == step - 1 and self.ready and self._quiet[step] and engine.events is None
        if quiet and not self.skipping.active:  # mostly: the next step, for which nothing is due
            self._at = instant = self._first + step
            self.step = -1
            engine.arrive(instant)
            self.step = step
            return step
        if self._frozen:
            return self._pass_frozen(steps)
        if not self.ready:
            self.load()
        try:
            self._advance(self._next(steps), used=True)
        except ExecutionError:
            self.ready = False
            raise
        return self.step

    def _next(self, steps: Sequence[int]) -> int:
        """The first instant at or after the present one at which one of `steps` begins."""
        turn, step = divmod(max(self._at, 0), self._period)
        found = bisect_left(steps, step)
        if found == len(steps):
            turn, found = turn + 1, 0
        return turn * self._period + steps[found]

    def finish(self) -> None:
        """The pass is over: what comes next may be loaded. Nothing where no step of it was used."""
        if self.step == STILL or self._frozen or not self.ready or not self._period:
            return
        if self._at < 0 or (self.step < 0 and self._at % self._period == 0):
            return
        turn = self._at // self._period
        try:
            self._advance((turn + 1) * self._period - 1, used=False)
            self.step, self._at = -1, (turn + 1) * self._period
            self._arrive()
        except ExecutionError:
            self.ready = False
            raise

    def rouse(self) -> None:
        """Advance step by step from now on, for as long as steps are recorded."""
        if self.step == STILL:
            self.step = -1

    def _advance(self, instant: int, *, used: bool) -> None:
        """To `instant`; whether its step is `used`, or over when it begins."""
        if self.step < 0 and 0 <= self._at <= instant:
            self._enter(self._at, used=used and self._at == instant)  # again: it was not completed
        while self._at < instant:
            self._enter(self._at + 1, used=used and self._at + 1 == instant)

    def _enter(self, instant: int, *, used: bool) -> None:
        self.step = -1
        self._at = instant
        self._arrive()
        turn, step = divmod(instant, self._period)
        engine = self._memory.engine
        for lane, count, jobs in self._memory.waits[step]:
            if lane.done < count + turn * jobs:
                engine.wait(lane, count + turn * jobs)
        if not used:
            self.skipping.passed(step)
        elif self.skipping.active:
            self.skipping.need(step, turn)
        if engine.events is not None:
            self._begin_ns = perf_counter_ns()
        self.step = step

    def _arrive(self) -> None:
        """Tell the engine of the present instant; at the end of a pass, when what is due then is complete."""
        engine = self._memory.engine
        if engine.events is not None:
            self._record(engine.events)
        turn, step = divmod(self._at, self._period)
        if step == 0:
            if self._at != self._first:
                self.skipping.turn()
            self._first = self._at
            for lane, count, jobs in self._memory.waits[self._period]:
                engine.wait(lane, count + (turn - 1) * jobs)
        mark = self._memory.marks.get(step)
        if mark is not None:
            mark()
        engine.arrive(self._at)

    def _record(self, events: list[Event]) -> None:
        """The step before the present instant is over."""
        if self._begin_ns:
            step = self._memory.plan.steps[(self._at - 1) % self._period]
            events.append(Event(step.unit, step.op, self._begin_ns, perf_counter_ns()))
            self._begin_ns = 0

    def freeze(self) -> None:
        """From now on nothing moves and nothing waits, and weights are stale, until `load`. Only what is not of
        floating point comes in time, which is timed in `stopped_ns`: a kernel would fail on wrong indices."""
        self.step, self.ready = -1, False
        self._memory.restart(lambda storage: storage.id in self._memory.exact)
        self._at, self._frozen, self.stopped_ns = -1, True, 0

    @property
    def frozen(self) -> bool:
        """Whether `freeze` is in force."""
        return self._frozen

    def thaw(self) -> None:
        """End `freeze`: the next use loads."""
        self.step, self.ready, self._frozen = -1, False, False

    def _pass_frozen(self, steps: Sequence[int]) -> int:
        """As `seek`, with nothing moved but what is exact."""
        target = self._next(steps)
        begin = perf_counter_ns()
        if self._memory.exact_moves:
            for instant in range(self._at + 1, target + 1):
                for move in self._memory.exact_moves.get(instant % self._period, ()):
                    move(never)
        self.stopped_ns += perf_counter_ns() - begin
        self._at = target
        self.step = target % self._period
        return self.step
