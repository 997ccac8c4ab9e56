"""Timelines in the Chrome trace format, which Perfetto and chrome://tracing open; and what a run measured, read back.

One process of the trace is the plan as simulated, the other a pass as measured; a thread of it is a unit or a lane.
Where requests of a lane overlap, it has several threads of its name: slices of one thread may not cross.
Times are in microseconds, as the format wants them (Trace Event Format, "Complete Events" and "Counter Events").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

from ..ir.errors import InputError
from ..ir.files import PlanFile
from ..ir.paths import write_atomic
from ..ir.sizes import format_seconds, format_size
from ..runtime.trace import Event
from .boxes import COMPUTES, COPIES, LANE_KINDS, LOADS, STALLS, STORES, Bar, draw, plain_lines

PREDICTED, MEASURED = 1, 2
WAIT = "wait"
"""The lane on which executors record waiting."""
PROCESSES = {PREDICTED: "predicted", MEASURED: "measured"}
MOST_NBYTES = 1 << 30
"""Of a trace that is read; one of a million events has about a tenth of that."""

Json = dict[str, Any]


def write_trace(file: PlanFile, path: Path, *, measured: Sequence[Bar] = ()) -> None:
    """The simulated pass, with bytes held in each tier as counters, and beside it what was measured."""
    drawing = draw(file)
    events = [*_process(PREDICTED, drawing.lanes)]
    for tier, held in drawing.held.items():
        events += [
            {"name": f"bytes in {tier}", "ph": "C", "pid": PREDICTED, "tid": 0, "ts": at / 1e3, "args": {"held": n}}
            for at, n in held
        ]
    if measured:
        events += _process(MEASURED, measured)
    write_atomic(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())


def _process(pid: int, bars: Iterable[Bar]) -> list[Json]:
    found: list[Json] = [{"name": "process_name", "ph": "M", "pid": pid, "args": {"name": PROCESSES[pid]}}]
    ends: dict[int, int] = {}
    threads: dict[str, list[int]] = {}
    for bar in sorted(bars, key=lambda bar: bar.start_ns):
        free = (t for t in threads.setdefault(bar.lane, []) if ends[t] <= bar.start_ns)
        thread = next(free, len(ends) + 1)
        if thread not in ends:
            threads[bar.lane].append(thread)
            found.append({"name": "thread_name", "ph": "M", "pid": pid, "tid": thread, "args": {"name": bar.lane}})
        ends[thread] = bar.end_ns
        lines = plain_lines(bar.text)
        found.append(
            {
                "name": lines[0],
                "cat": bar.kind,
                "ph": "X",
                "pid": pid,
                "tid": thread,
                "ts": bar.start_ns / 1e3,
                "dur": (bar.end_ns - bar.start_ns) / 1e3,
                "args": {"what": ", ".join(lines[1:])},
            }
        )
    return found


def read_measured(path: Path) -> tuple[Bar, ...]:
    """The measured lanes of a trace that `run --trace` wrote. Raises InputError for anything else."""
    events = _events(path)
    names: dict[int, str] = {}
    found: list[Bar] = []
    for event in events:
        if event.get("pid") != MEASURED:
            continue
        try:
            if event["ph"] == "M" and event["name"] == "thread_name":
                names[int(event["tid"])] = str(event["args"]["name"])
            elif event["ph"] == "X":
                start, length = float(event["ts"]) * 1e3, float(event["dur"]) * 1e3
                kind = event["cat"] if event["cat"] in LANE_KINDS else COMPUTES
                lane = f"{names.get(int(event['tid']), str(event['tid']))}, measured"
                text = f"<b>{escape(event['name'])}</b><br>{escape(event['args'].get('what', ''))}"
                found.append(Bar(kind, lane, round(start), round(start + length), text))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{path}: an event of it is not as `run --trace` writes them ({error!r})") from error
    if not found:
        raise InputError(f"{path} has no measured pass; make one: tensorstow run plan.json --trace {path.name}")
    return tuple(found)


def _events(path: Path) -> list[Json]:
    try:
        if path.stat().st_size > MOST_NBYTES:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, more than the {MOST_NBYTES} that a trace may have"
            )
        held: object = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no trace: {error}") from error
    events: object = cast("Json", held).get("traceEvents") if isinstance(held, dict) else None
    if not isinstance(events, list):
        raise InputError(f"{path} is no trace: it has no list 'traceEvents'")
    return [cast("Json", e) for e in cast("list[object]", events) if isinstance(e, dict)]


def measured_bars(file: PlanFile, events: Iterable[Event]) -> tuple[Bar, ...]:
    """A traced pass as lanes, from its own beginning; what was under way before is drawn from there on."""
    units = {u.name for u in file.machine.units}
    home = file.plan.home_tier
    taken = list(events)
    begin = min((e.start_ns for e in taken if e.lane in units or e.lane == WAIT), default=0)
    unit = next((s.unit for s in file.plan.steps), WAIT)
    found: list[Bar] = []
    for e in sorted(taken, key=lambda e: e.start_ns):
        kind = COMPUTES if e.lane in units else STALLS if e.lane == WAIT else _direction(e.lane, home)
        start, end = max(0, e.start_ns - begin), e.end_ns - begin
        if end > start:
            size = f"{format_size(e.nbytes)}, " if e.nbytes else ""
            took = format_seconds((e.end_ns - e.start_ns) / 1e9)
            text = f"<b>{escape(e.name)}</b><br>{size}{took}"
            found.append(Bar(kind, unit if e.lane == WAIT else e.lane, start, end, text))
    return tuple(found)


def _direction(lane: str, home: str) -> str:
    origin, _, target = lane.partition("->")
    return LOADS if origin == home else STORES if target == home else COPIES
