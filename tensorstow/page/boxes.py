"""What there is to draw of a plan: rectangles of addresses and time, and of lanes and time. Data only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape, unescape

from ..ir.files import PlanFile
from ..ir.graph import StorageKind
from ..ir.plan import Plan, Residency, Transfer
from ..ir.simulate import simulate
from ..ir.sizes import format_seconds, format_size
from ..ir.timeline import Timeline

KEPT, STREAMED, ACTIVATION, STATE, GRADIENT, BOUNDARY = (
    "weight, stays",
    "weight, comes and goes",
    "activation",
    "optimizer state",
    "gradient",
    "input or output",
)
KINDS = (KEPT, STREAMED, ACTIVATION, STATE, GRADIENT, BOUNDARY)
COMPUTES, LOADS, STORES, COPIES, STALLS = ("computes", "loads", "stores", "copies", "waits")
LANE_KINDS = (COMPUTES, LOADS, STORES, COPIES, STALLS)

_BY_STORAGE = {
    StorageKind.ACTIVATION: ACTIVATION,
    StorageKind.GRADIENT: GRADIENT,
    StorageKind.INPUT: BOUNDARY,
    StorageKind.OUTPUT: BOUNDARY,
}


@dataclass(frozen=True, slots=True)
class Box:
    """`kind` occupies [`start_ns`, `end_ns`) of the pass and [`low`, `high`) of addresses; `text` says what and why."""

    kind: str
    start_ns: int
    end_ns: int
    low: int
    high: int
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """`kind` occupies `lane` in [`start_ns`, `end_ns`) of the pass. `count` events stand behind one another in it."""

    kind: str
    lane: str
    start_ns: int
    end_ns: int
    text: str
    count: int = 1


def plain_lines(text: str) -> list[str]:
    """The lines of a box's or bar's text without its markup: what it is first, then what there is to say of it."""
    return [unescape(line) for line in text.replace("<b>", "").replace("</b>", "").split("<br>")]


@dataclass(frozen=True)
class Drawing:
    """Everything that is drawn of a plan: memory by tier, lanes, and bytes held over time by tier.

    `held` has, by tier, (nanosecond, bytes held from then on) in order of time.
    """

    file: PlanFile
    timeline: Timeline
    memory: dict[str, tuple[Box, ...]]
    lanes: tuple[Bar, ...]
    held: dict[str, tuple[tuple[int, int], ...]]


def draw(file: PlanFile) -> Drawing:
    """What to draw of a plan, one pass in the steady state."""
    timeline = simulate(file.plan, file.graph, file.machine)
    clock = _Clock(timeline)
    tiers = dict.fromkeys(r.tier for r in file.plan.residencies)
    boxes = {tier: tuple(_memory(file, tier, clock)) for tier in tiers}
    lanes = tuple(_lanes(file.plan, timeline))
    return Drawing(file, timeline, boxes, lanes, {tier: _held(found) for tier, found in boxes.items()})


class _Clock:
    """When instants of the plan are: instant t is the start of step t, instant T the end of the pass."""

    def __init__(self, timeline: Timeline) -> None:
        self.starts = [s.start_ns for s in timeline.steps]
        self.pass_ns = max(timeline.pass_ns, 1)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The interval [start, end) of instants in nanoseconds of one pass; what wraps round comes in two pieces."""
        total = len(self.starts)
        if end - start >= total:
            yield 0, self.pass_ns
        elif end <= total:
            yield self.starts[start], self.pass_ns if end == total else self.starts[end]
        else:
            yield self.starts[start], self.pass_ns
            yield 0, self.starts[end - total]


def _memory(file: PlanFile, tier: str, clock: _Clock) -> Iterator[Box]:
    why = _Reasons(file)
    for r in file.plan.residencies:
        if r.tier == tier:
            kind, text = kind_of(file, r), why.of(r)
            for start_ns, end_ns in clock.pieces(r.start, r.end):
                yield Box(kind, start_ns, end_ns, r.offset, r.offset + r.nbytes, text)


def kind_of(file: PlanFile, r: Residency) -> str:
    """One of `KINDS`."""
    kind = file.graph.storage[r.storage].kind
    if kind in _BY_STORAGE:
        return _BY_STORAGE[kind]
    if kind is StorageKind.OPTIMIZER_STATE:
        return STATE
    return KEPT if r.end - r.start == len(file.plan.steps) else STREAMED


class _Reasons:
    """Why a residency is there: who brings it or makes it, and for whom."""

    def __init__(self, file: PlanFile) -> None:
        self.file = file
        self.loads: dict[str, list[Transfer]] = {}
        for t in file.plan.transfers:
            self.loads.setdefault(t.storage, []).append(t)
        self.users: dict[str, list[int]] = {}
        self.makers: dict[str, list[int]] = {}
        operators = file.graph.operator
        for i, step in enumerate(file.plan.steps):
            op = operators[step.op]
            for storage in file.graph.reads(op):
                self.users.setdefault(storage, []).append(i)
            for storage in file.graph.writes(op):
                self.makers.setdefault(storage, []).append(i)

    def of(self, r: Residency) -> str:
        """A few lines: name, size, kind, steps, origin, next use."""
        plan, total = self.file.plan, len(self.file.plan.steps)
        storage = self.file.graph.storage[r.storage]
        part = "" if r.nbytes == storage.nbytes else f", bytes {r.lo} to {r.hi} of {storage.nbytes}"
        lines = [f"<b>{escape(r.storage)}</b>", f"{format_size(r.nbytes)} {storage.kind.value}{part}"]
        if r.end - r.start >= total:
            return "<br>".join([*lines, "stays for the whole pass"])
        lines.append(f"steps {r.start} to {(r.end - 1) % total}" + (" of the next pass" if r.end > total else ""))
        made = [i for i in self.makers.get(r.storage, ()) if r.start <= i < r.end]
        brought = [t for t in self.loads.get(r.storage, ()) if t.target == r.tier and t.after == r.start]
        if brought:
            lines.append(f"from {brought[0].origin}, due at step {brought[0].before % total}")
        elif made:
            lines.append(f"made by {escape(plan.steps[made[0]].op)}")
        used = [i for i in self.users.get(r.storage, ()) if r.start <= i < r.end or r.start <= i + total < r.end]
        if used:
            first = min(used, key=lambda i: (i - r.start) % total)
            more = f" and {len(used) - 1} more" if len(used) > 1 else ""
            lines.append(f"for {escape(plan.steps[first].op)}{more}")
        gone = [t for t in self.loads.get(r.storage, ()) if t.origin == r.tier and t.before % total == r.end % total]
        if gone:
            lines.append(f"then to {gone[0].target}")
        return "<br>".join(lines)


def _lanes(plan: Plan, timeline: Timeline) -> Iterator[Bar]:
    for event in timeline.steps:
        step = plan.steps[event.step]
        if event.wait_ns > 0:
            cause = plan.transfers[event.waited_for] if event.waited_for is not None else None
            what = f"{cause.link} of {escape(cause.storage)}" if cause else "the lane"
            text = f"<b>{escape(step.op)}</b> waits {format_seconds(event.wait_ns / 1e9)}<br>for {what}"
            yield Bar(STALLS, step.unit, event.start_ns - event.wait_ns, event.start_ns, text)
        text = f"<b>{escape(step.op)}</b><br>step {event.step}, {format_seconds((event.end_ns - event.start_ns) / 1e9)}"
        yield Bar(COMPUTES, step.unit, event.start_ns, event.end_ns, text)
    for event in timeline.transfers:
        t = plan.transfers[event.index]
        kind = LOADS if t.origin == plan.home_tier else STORES if t.target == plan.home_tier else COPIES
        took = format_seconds((event.end_ns - event.start_ns) / 1e9)
        text = (
            f"<b>{escape(t.storage)}</b><br>{format_size(t.nbytes)} {t.link}, {took}"
            f"<br>may start at step {t.after}, due at step {t.before % max(1, len(plan.steps))}"
        )
        for start_ns, end_ns in _wrapped(event.start_ns, event.end_ns, max(1, timeline.pass_ns)):
            yield Bar(kind, event.lane, start_ns, end_ns, text)


def _wrapped(start_ns: int, end_ns: int, pass_ns: int) -> Iterator[tuple[int, int]]:
    """What lies before or after the pass is drawn where the pass before or after does the same."""
    length = min(end_ns - start_ns, pass_ns)
    start_ns %= pass_ns
    yield start_ns, min(start_ns + length, pass_ns)
    if start_ns + length > pass_ns:
        yield 0, start_ns + length - pass_ns


def _held(boxes: tuple[Box, ...]) -> tuple[tuple[int, int], ...]:
    change: dict[int, int] = {}
    for box in boxes:
        change[box.start_ns] = change.get(box.start_ns, 0) + box.high - box.low
        change[box.end_ns] = change.get(box.end_ns, 0) - (box.high - box.low)
    held, found = 0, list[tuple[int, int]]()
    for at in sorted(change):
        held += change[at]
        found.append((at, held))
    return tuple(found[:-1])  # at the end of the pass everything is as at its beginning
