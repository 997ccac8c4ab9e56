"""Charts of a plan as plain dictionaries, which the script of the page draws (`charts.js`).

Times are nanoseconds and heights are bytes, both whole numbers; `scale` says by how much an axis divides them. The
texts of rectangles are plain lines: the script never takes them for markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..ir.sizes import format_seconds, format_size
from .boxes import KINDS, LANE_KINDS, Bar, Box, Drawing, plain_lines
from .merge import largest, merge_bars, merge_boxes
from .scales import COLORS, COLUMNS, ROWS, bytes_scale, seconds_scale

LABELLED = 20_000
"""Rectangles of a chart with a text of their own: a browser draws and searches as many at once (`bench/page.py`)."""
LEAST_MAP, LEAST_LANES = 0.7, 0.25
"""Pixels that the smallest rectangle takes: in the map none vanishes; in a lane the many short ones leave the share of
the time that they take."""

Chart = dict[str, Any]


def time_axis(drawing: Drawing, measured: Sequence[Bar] = ()) -> Chart:
    """The axis that all charts of a page share: one pass, or the measured one where that took longer."""
    length = max(drawing.timeline.pass_ns, max((b.end_ns for b in measured), default=0), 1)
    scale, unit = seconds_scale(length)
    took = format_seconds(drawing.timeline.pass_ns / 1e9)
    return {"end": length, "scale": scale, "unit": unit, "label": f"time in the pass, {unit} (a pass takes {took})"}


def memory_chart(drawing: Drawing, tier: str) -> Chart:
    """Addresses of a tier over the time of a pass."""
    boxes = drawing.memory[tier]
    top = max((b.high for b in boxes), default=1)
    scale, unit = bytes_scale(top)
    labelled, others = largest(boxes, LABELLED)
    faint = merge_boxes(others, drawing.timeline.pass_ns // COLUMNS, top // ROWS)
    kinds = [_kind(kind, [b for b in (*faint, *labelled) if b.kind == kind]) for kind in KINDS]
    return {
        "about": f"Map of the memory of {tier}: addresses over time.",
        "label": f"addresses, {unit}",
        "height": 440,
        "least": LEAST_MAP,
        "top": top,
        "scale": scale,
        "kinds": [kind for kind in kinds if kind["start"]],
    }


def _kind(name: str, boxes: Iterable[Box]) -> Chart:
    found = list(boxes)
    return {
        "name": name,
        "color": COLORS[name],
        "start": [b.start_ns for b in found],
        "end": [b.end_ns for b in found],
        "low": [b.low for b in found],
        "high": [b.high for b in found],
        "text": [_plain(b.text) for b in found],
    }


def _plain(text: str) -> str:
    return "\n".join(plain_lines(text)) if text else ""


def held_chart(drawing: Drawing, tier: str) -> Chart:
    """Bytes held in a tier over the time of a pass, beneath what the budget leaves for them."""
    plan, held = drawing.file.plan, drawing.held[tier] or ((0, 0),)
    room = max(0, plan.capacity_nbytes.get(tier, 0) - plan.workspace_nbytes.get(tier, 0))
    most = max(n for _, n in held)
    scale, unit = bytes_scale(max(most, 1))
    lines: list[Chart] = [{"name": "held", "color": COLORS["computes"]}]
    if room:
        lines.append({"name": f"room, {format_size(room)}", "color": COLORS["waits"], "line": True})
    return {
        "about": f"Bytes held in {tier} over time.",
        "label": f"bytes held, {unit}",
        "height": 210,
        # A budget far above what is held would flatten the line: it is in the picture where it is near.
        "top": 1.06 * max(most, room if room <= 2 * most else 0, 1),
        "scale": scale,
        "unit": unit,
        "end": drawing.timeline.pass_ns,
        "at": [at for at, _ in held],
        "nbytes": [n for _, n in held],
        "room": room,
        "lines": lines,
    }


def timeline_chart(drawing: Drawing, measured: Sequence[Bar] = ()) -> Chart:
    """Units and links over the time of a pass, stalls in their own colour; `measured` lanes below the predicted."""
    bars: Sequence[Bar] = (*drawing.lanes, *measured)
    if len(bars) > LABELLED:
        bars = merge_bars(bars, time_axis(drawing, measured)["end"] // COLUMNS)
    lanes = list(dict.fromkeys(b.lane for b in bars))
    foot = {lane: len(lanes) - 1 - i for i, lane in enumerate(lanes)}
    return {
        "about": "Units and links over time.",
        "label": "",
        "height": 80 + 42 * len(lanes),
        "least": LEAST_LANES,
        "top": len(lanes),
        "lanes": lanes,
        "kinds": [
            {
                "name": kind,
                "color": COLORS[kind],
                "start": [b.start_ns for b in some],
                "end": [b.end_ns for b in some],
                "low": [foot[b.lane] + 0.12 for b in some],
                "high": [foot[b.lane] + 0.88 for b in some],
                "text": [_plain(b.text) for b in some],
            }
            for kind in LANE_KINDS
            if (some := [b for b in bars if b.kind == kind])
        ],
    }
