"""The one truth of time: what a plan takes, step by step and transfer by transfer.

One lane per unit computes, one lane per link (or shared channel) moves bytes. A step starts when the step before it
is complete and every transfer that must be complete at its instant is. A transfer starts when its lane is free, its
instant `after` has come, and the transfers that bring its bytes to where it takes them from are complete (`chains`);
one that finds its lane idle also takes the link's latency. Nothing else waits: the runtime follows the same rules, so
predicted and measured time differ only by the rates.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .chains import Wait, transfer_waits
from .errors import InputError
from .graph import Graph
from .machine import Machine
from .plan import Plan, Residency

WARM_UP_PASSES = 3
AVERAGED_PASSES = 4


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Step `step` ran in [start_ns, end_ns) after `wait_ns` of waiting, at last for transfer `waited_for`."""

    step: int
    start_ns: int
    end_ns: int
    wait_ns: int
    waited_for: int | None


@dataclass(frozen=True, slots=True)
class TransferEvent:
    """Transfer `index` of the plan occupied `lane` in [start_ns, end_ns)."""

    index: int
    lane: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """One pass in the steady state, from its own beginning; transfers for it may have begun before, at negative times.

    `pass_ns` is the mean over passes in the steady state, `first_pass_ns` the first pass with the fill before it.
    """

    pass_ns: int
    first_pass_ns: int
    compute_ns: int
    lane_busy_ns: dict[str, int]
    steps: tuple[StepEvent, ...]
    transfers: tuple[TransferEvent, ...]

    @property
    def wait_ns(self) -> int:
        """Nanoseconds of the pass in which nothing computes."""
        return sum(s.wait_ns for s in self.steps)


class DeadlockError(InputError):
    """The plan makes a step wait for a transfer that waits for the step."""


def prefilled(plan: Plan, graph: Graph) -> tuple[Residency, ...]:
    """Residencies of homed storages that hold their bytes at instant 0; loaded before the first pass."""
    total = len(plan.steps)
    return tuple(
        r
        for r in plan.residencies
        if r.tier != plan.home_tier and graph.storage[r.storage].homed and (r.end > total or r.end - r.start == total)
    )


def simulate(plan: Plan, graph: Graph, machine: Machine) -> Timeline:
    """Run `plan` in virtual time until it is in its steady state. Raises DeadlockError where a step can never start."""
    return _Simulation(plan, graph, machine).timeline(prefilled(plan, graph))


@dataclass(slots=True)
class _Lane:
    """The queue of one lane, pass after pass: (transfer, after, duration, latency, transfers to wait for)."""

    name: str
    queue: list[tuple[int, int, int, int, tuple[Wait, ...]]]
    head: int = 0
    turn: int = 0
    free_at: int = 0


@dataclass(slots=True)
class _Clock:
    """What has happened so far: the time of every instant, and when each transfer of a recent pass was complete."""

    instant_ns: list[int] = field(default_factory=lambda: [0])
    done: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    events: deque[TransferEvent] = field(default_factory=deque[TransferEvent])


class _Simulation:
    def __init__(self, plan: Plan, graph: Graph, machine: Machine) -> None:
        self.plan = plan
        self.graph = graph
        self.machine = machine
        self.period = len(plan.steps)
        self.lanes = self._make_lanes()
        self.due: list[list[tuple[int, int]]] = [[] for _ in range(self.period + 1)]
        for index, t in enumerate(plan.transfers):
            wraps = 1 if t.before > self.period else 0
            self.due[t.before - wraps * self.period].append((index, wraps))
        self.clock = _Clock(events=deque(maxlen=2 * len(plan.transfers) or 1))

    def _make_lanes(self) -> list[_Lane]:
        lanes: dict[str, _Lane] = {}
        waits = transfer_waits(self.plan, self.graph)
        for index, t in enumerate(self.plan.transfers):
            link = self.machine.link[t.origin, t.target]
            lane = lanes.setdefault(link.lane, _Lane(link.lane, []))
            latency = round(1e9 * link.latency_s)
            lane.queue.append((index, t.after, link.busy_ns(t.nbytes), latency, waits[index]))
        return list(lanes.values())

    def timeline(self, fill: tuple[Residency, ...]) -> Timeline:
        ends, durations = [0], list[int]()
        steps: list[StepEvent] = []
        for number in range(WARM_UP_PASSES + AVERAGED_PASSES):
            steps = self._run_pass(number)
            ends.append(self.clock.instant_ns[-1])
            durations.append(ends[-1] - ends[-2])
            if number >= WARM_UP_PASSES and len(set(durations[-3:])) == 1:
                break
        steady = durations[-1:] if len(set(durations[-3:])) == 1 else durations[WARM_UP_PASSES:]
        begin, end = ends[-2], ends[-1]
        busy = {lane.name: sum(duration for _, _, duration, _, _ in lane.queue) for lane in self.lanes}
        # What was loaded ahead of the first passes may outlast those that are averaged; what a lane moves does not.
        return Timeline(
            pass_ns=max(round(sum(steady) / len(steady)), *busy.values(), 0),
            first_pass_ns=self._fill_ns(fill) + durations[0],
            compute_ns=sum(s.duration_ns for s in self.plan.steps),
            lane_busy_ns=busy,
            steps=tuple(
                StepEvent(e.step, e.start_ns - begin, e.end_ns - begin, e.wait_ns, e.waited_for) for e in steps
            ),
            transfers=tuple(
                TransferEvent(e.index, e.lane, e.start_ns - begin, e.end_ns - begin)
                for e in self.clock.events
                if e.end_ns > begin and e.start_ns < end
            ),
        )

    def _fill_ns(self, fill: tuple[Residency, ...]) -> int:
        return sum(
            self.machine.link[hop].transfer_ns(r.nbytes)
            for r in fill
            for hop in self.machine.path(self.plan.home_tier, r.tier)
        )

    def _run_pass(self, number: int) -> list[StepEvent]:
        events: list[StepEvent] = []
        for step, call in enumerate(self.plan.steps):
            ready = self.clock.instant_ns[-1]
            start, cause = self._wait(number, step, ready)
            end = start + call.duration_ns
            events.append(StepEvent(step, start, end, start - ready, cause))
            self.clock.instant_ns.append(end)
        self.clock.instant_ns[-1], _ = self._wait(number, self.period, self.clock.instant_ns[-1])
        return events

    def _wait(self, number: int, instant: int, ready: int) -> tuple[int, int | None]:
        """When everything that is due at this instant is complete, and the transfer that came last."""
        self._advance(number * self.period + instant)
        start, cause = ready, None
        for index, wraps in self.due[instant]:
            turn = number - wraps
            if turn < 0:
                continue  # loaded before the first pass
            end = self.clock.done.get((index, turn))
            if end is None:
                t = self.plan.transfers[index]
                raise DeadlockError(
                    f"step {instant} waits for transfer {index} of '{t.storage}' over {t.link}, which stands in its "
                    "lane behind a transfer that may start only later"
                )
            if end > start:
                start, cause = end, index
        return start, cause

    def _advance(self, now: int) -> None:
        """On every lane, start what may start at or before instant `now`."""
        moved = True
        while moved:
            moved = False
            for lane in self.lanes:
                while self._start_head(lane, now):
                    moved = True

    def _start_head(self, lane: _Lane, now: int) -> bool:
        index, after, duration, latency, waits = lane.queue[lane.head]
        allowed = lane.turn * self.period + after
        if allowed > now:
            return False
        start = max(lane.free_at, self.clock.instant_ns[allowed])
        for wait in waits:
            turn = lane.turn - wait.passes
            if turn < 0:
                continue  # filled before the first pass
            arrived = self.clock.done.get((wait.index, turn))
            if arrived is None:
                return False
            start = max(start, arrived)
        end = start + duration + (latency if start > lane.free_at else 0)
        done = self.clock.done
        done[index, lane.turn] = end
        done.pop((index, lane.turn - 2), None)
        self.clock.events.append(TransferEvent(index, lane.name, start, end))
        lane.free_at = end
        lane.head += 1
        if lane.head == len(lane.queue):
            lane.head, lane.turn = 0, lane.turn + 1
        return True
