"""The one truth of time: what a plan takes, step by step and transfer by transfer.

One lane per unit computes, one lane per link (or shared channel) moves bytes. A step starts when the step before it
is complete and every transfer that must be complete at its instant is. A transfer starts when its lane is free, its
instant `after` has come, and those that it must wait for are complete (`chains`); one that finds its lane idle also
takes the link's latency. Nothing else waits: the runtime follows the same rules, so predicted and measured time differ
only by the rates. While a link moves bytes that lends from what computes (`Link.contention`), steps take longer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .chains import Wait, transfer_waits
from .collecting import without_collecting
from .contention import Contention
from .errors import InputError
from .graph import Graph
from .machine import Link, Machine
from .plan import Plan, Residency
from .timeline import StepEvent, Timeline, TransferEvent

MOST_PASSES = 64
"""What has not come to repeat itself by then is averaged."""

AVERAGED_PASSES = 12
"""Over so many of the last passes: what waits in a circle may do the same every two, three or four passes only."""


class DeadlockError(InputError):
    """The plan makes a step wait for a transfer that waits for the step."""


def prefilled(plan: Plan, graph: Graph) -> tuple[Residency, ...]:
    """Residencies of homed storages that hold their bytes at instant 0; loaded before the first pass.

    Those that end at that very instant are among them if a transfer begins there: the first pass stores, too, what the
    pass before it would have left.
    """
    total = len(plan.steps)
    leaving = {(t.storage, t.origin) for t in plan.transfers if t.after == 0}

    def held(r: Residency) -> bool:
        return r.end > total or r.end - r.start == total or (r.end == total and (r.storage, r.tier) in leaving)

    return tuple(r for r in plan.residencies if r.tier != plan.home_tier and graph.storage[r.storage].homed and held(r))


@without_collecting()
def simulate(plan: Plan, graph: Graph, machine: Machine) -> Timeline:
    """Run `plan` in virtual time until it is in its steady state. Raises DeadlockError where a step can never start."""
    return _Simulation(plan, graph, machine).timeline(prefilled(plan, graph))


_NEVER = 1 << 62

_Queued = tuple[int, int, int, int, float, tuple[Wait, ...]]


@dataclass(slots=True)
class _Lane:
    """The queue of one lane, pass after pass: (transfer, after, duration, latency, contention, transfers to wait for).

    `allowed` is the instant from which its head may start, counted on over the passes.
    """

    name: str
    number: int
    queue: list[_Queued]
    head: int = 0
    turn: int = 0
    free_at: int = 0
    allowed: int = 0


@dataclass(slots=True)
class _Done:
    """When each transfer was complete in a pass, of which every other one is kept here."""

    turn: list[int]
    ns: list[int]


_Ran = list[tuple[int, int, int, int | None]]
"""Of each step of a pass: start, end, wait, and the transfer that came last."""


class _Simulation:
    def __init__(self, plan: Plan, graph: Graph, machine: Machine) -> None:
        self.plan = plan
        self.graph = graph
        self.machine = machine
        self.period = len(plan.steps)
        self.lanes = self._make_lanes()
        contended = any(entry[4] for lane in self.lanes for entry in lane.queue)
        self.contention = Contention(len(self.lanes)) if contended else None
        self.due: list[list[tuple[int, int]]] = [[] for _ in range(self.period + 1)]
        for index, t in enumerate(plan.transfers):
            wraps = 1 if t.before > self.period else 0
            self.due[t.before - wraps * self.period].append((index, wraps))
        count = len(plan.transfers)
        self.done = (_Done([-1] * count, [0] * count), _Done([-1] * count, [0] * count))
        self.instant_ns = [0]
        self.allowed = 0  # before this instant no lane's head may start
        self.moved: deque[tuple[int, str, int, int]] = deque(maxlen=2 * count or 1)  # as TransferEvent

    def _make_lanes(self) -> list[_Lane]:
        lanes: dict[str, _Lane] = {}
        waits = transfer_waits(self.plan, self.graph)
        links: dict[tuple[str, str], tuple[_Lane, Link, int]] = {}
        for ends in dict.fromkeys((t.origin, t.target) for t in self.plan.transfers):
            link = self.machine.link[ends]
            lane = lanes.setdefault(link.lane, _Lane(link.lane, len(lanes), []))
            links[ends] = lane, link, round(1e9 * link.latency_s)
        for index, t in enumerate(self.plan.transfers):
            lane, link, latency = links[t.origin, t.target]
            lane.queue.append((index, t.after, link.busy_ns(t.nbytes), latency, link.contention, waits[index]))
        for lane in lanes.values():
            lane.allowed = lane.queue[0][1]
        return list(lanes.values())

    def timeline(self, fill: tuple[Residency, ...]) -> Timeline:
        ends = [0]
        ran: _Ran = []
        state: object = None
        repeats = False
        while not repeats and len(ends) <= MOST_PASSES:
            number = len(ends) - 1
            ran = self._run_pass(number)
            ends.append(self.instant_ns[-1])
            before, state = state, self._state(number, ends[-2])
            repeats = state is not None and before == state
        averaged = 1 if repeats else AVERAGED_PASSES
        steady_ns = -((ends[-1 - averaged] - ends[-1]) // averaged)  # rounded up: never below a bound
        begin, end = ends[-2], ends[-1]
        busy = {lane.name: sum(entry[2] for entry in lane.queue) for lane in self.lanes}
        # What was loaded ahead of the first passes may outlast those that are averaged; what a lane moves does not.
        return Timeline(
            pass_ns=max(steady_ns, *busy.values(), 0),
            first_pass_ns=self._fill_ns(fill) + ends[1],
            compute_ns=sum(s.duration_ns for s in self.plan.steps),
            lane_busy_ns=busy,
            steps=tuple(StepEvent(i, s - begin, e - begin, wait, cause) for i, (s, e, wait, cause) in enumerate(ran)),
            transfers=tuple(
                TransferEvent(index, lane, s - begin, e - begin)
                for index, lane, s, e in self.moved
                if e > begin and s < end
            ),
        )

    def _state(self, number: int, begin: int) -> object:
        """All that the passes after pass `number`, which began at `begin`, depend on, relative to its number and end;
        None where that is not known yet. If a pass leaves what the one before it left, so will all that follow."""
        longest = max((wait.passes for lane in self.lanes for entry in lane.queue for wait in entry[5]), default=0)
        if number < max(1, longest) or any(lane.turn < number for lane in self.lanes):
            return None  # older instants still count, or passes before the first one
        end = self.instant_ns[-1]
        return (
            [ns - end for ns in self.instant_ns[number * self.period :]],
            begin - end,
            [(lane.head, lane.turn - number, lane.free_at - end) for lane in self.lanes],
            [
                [(turn - number, ns - end) for turn, ns in zip(done.turn, done.ns, strict=True)]
                for done in (self.done[number % 2], self.done[1 - number % 2])
            ],
            self.contention.after(end) if self.contention else (),
        )

    def _fill_ns(self, fill: tuple[Residency, ...]) -> int:
        return sum(
            self.machine.link[hop].transfer_ns(r.nbytes)
            for r in fill
            for hop in self.machine.path(self.plan.home_tier, r.tier)
        )

    def _run_pass(self, number: int) -> _Ran:
        ran: _Ran = []
        instant_ns = self.instant_ns
        ready, now = instant_ns[-1], number * self.period
        for due, call in zip(self.due, self.plan.steps, strict=False):
            if self.allowed <= now:
                self._advance(now)
            start, cause = self._last_of(number, due, ready) if due else (ready, None)
            # All that moves while this step computes has begun by its start, or stands behind what has: it is known.
            end = self.contention.end_ns(start, call.duration_ns) if self.contention else start + call.duration_ns
            ran.append((start, end, start - ready, cause))
            instant_ns.append(end)
            ready = end
            now += 1
        self._advance(now)
        instant_ns[-1], _ = self._last_of(number, self.due[self.period], ready)
        return ran

    def _last_of(self, number: int, due: list[tuple[int, int]], ready: int) -> tuple[int, int | None]:
        """When all of `due` is complete, and the transfer that came last; `ready` where all were before."""
        start, cause = ready, None
        for index, wraps in due:
            turn = number - wraps
            if turn < 0:
                continue  # loaded before the first pass
            done = self.done[turn % 2]
            if done.turn[index] != turn:
                t = self.plan.transfers[index]
                raise DeadlockError(
                    f"step {t.before - wraps * self.period} waits for transfer {index} of '{t.storage}' over {t.link}, "
                    "which stands in its lane behind a transfer that may start only later"
                )
            if done.ns[index] > start:
                start, cause = done.ns[index], index
        return start, cause

    def _advance(self, now: int) -> None:
        """On every lane, start what may start at or before instant `now`."""
        moved = True
        while moved:
            moved = False
            for lane in self.lanes:
                if lane.allowed <= now and self._run_lane(lane, now):
                    moved = True
        self.allowed = min((lane.allowed for lane in self.lanes), default=_NEVER)

    def _run_lane(self, lane: _Lane, now: int) -> bool:
        """Start from the head on what may start, up to one that waits for a transfer that has not run; whether any
        has started."""
        queue, head, turn, free_at, allowed = lane.queue, lane.head, lane.turn, lane.free_at, lane.allowed
        done, instant_ns, moved, began = self.done, self.instant_ns, self.moved, (lane.head, lane.turn)
        while allowed <= now:
            index, _, duration, latency, share, waits = queue[head]
            start = max(instant_ns[allowed], free_at)
            if waits:
                start = self._after(waits, turn, start)
                if start < 0:
                    break
            end = start + duration + (latency if start > free_at else 0)
            ran = done[turn % 2]
            ran.turn[index], ran.ns[index] = turn, end
            moved.append((index, lane.name, start, end))
            if self.contention:
                self.contention.add(lane.number, start, end, share)
            free_at = end
            head += 1
            if head == len(queue):
                head, turn = 0, turn + 1
            allowed = turn * self.period + queue[head][1]
        lane.head, lane.turn, lane.free_at, lane.allowed = head, turn, free_at, allowed
        return (head, turn) != began

    def _after(self, waits: tuple[Wait, ...], turn: int, start: int) -> int:
        """The time from `start` on at which all that a transfer of pass `turn` waits for has run; -1 where some has
        not begun."""
        for wait in waits:
            if turn < wait.passes:
                continue  # filled before the first pass
            source = self.done[(turn - wait.passes) % 2]
            if source.turn[wait.index] != turn - wait.passes:
                return -1
            start = max(start, source.ns[wait.index])
        return start
