"""Figures as plotly describes them: plain dictionaries, which the page's script draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..ir.sizes import format_seconds, format_size
from .boxes import KINDS, LANE_KINDS, Bar, Box, Drawing
from .merge import largest, merge_bars, merge_boxes

COLORS = {
    "weight, stays": "#0072B2",
    "weight, comes and goes": "#E69F00",
    "activation": "#009E73",
    "optimizer state": "#CC79A7",
    "gradient": "#D55E00",
    "input or output": "#999999",
    "computes": "#0072B2",
    "loads": "#E69F00",
    "stores": "#CC79A7",
    "copies": "#009E73",
    "waits": "#D55E00",
}
"""After Okabe and Ito: told apart by colour-blind people as well."""

LABELLED = 1000
"""Rectangles with a text of their own: few enough that a browser draws them at once (`bench/page.py`)."""
COLUMNS, ROWS = 1500, 600
"""What is shorter than this share of the pass, or of the addresses, is joined to its neighbours: a screen has as many
points."""

Figure = dict[str, Any]
Scale = tuple[float, str]


def seconds_scale(pass_ns: int) -> Scale:
    """Nanoseconds of the unit in which times of a pass are best read, and its name."""
    for scale, name in ((1e9, "s"), (1e6, "ms")):
        if pass_ns >= scale:
            return scale, name
    return 1e3, "us"


def bytes_scale(nbytes: int) -> Scale:
    """The same for bytes."""
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            return float(1024**power), name
    return 1.0, "bytes"


def memory_figure(drawing: Drawing, tier: str) -> Figure:
    """Addresses of a tier over the time of a pass."""
    boxes = drawing.memory[tier]
    time, size = seconds_scale(drawing.timeline.pass_ns), bytes_scale(max((b.high for b in boxes), default=1))
    labelled, others = largest(boxes, LABELLED)
    others = merge_boxes(others, drawing.timeline.pass_ns // COLUMNS, max((b.high for b in boxes), default=0) // ROWS)
    traces: list[Figure] = []
    for kind in KINDS:
        some = [b for b in labelled if b.kind == kind]
        rest = [b for b in others if b.kind == kind]
        if rest:
            traces.append(_outlines(rest, kind, time, size, shown=not some))
        if some:
            traces.append(_rectangles(some, kind, time, size))
    return {"data": traces, "layout": _layout(f"addresses, {size[1]}", time, drawing, height=460)}


def _rectangles(boxes: Sequence[Box], kind: str, time: Scale, size: Scale) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "base": [b.start_ns / time[0] for b in boxes],
        "x": [(b.end_ns - b.start_ns) / time[0] for b in boxes],
        "y": [(b.low + b.high) / 2 / size[0] for b in boxes],
        "width": [(b.high - b.low) / size[0] for b in boxes],
        "hovertext": [b.text for b in boxes],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"color": COLORS[kind], "opacity": 0.85, "line": {"width": 0.4, "color": "rgba(127,127,127,0.6)"}},
    }


def _outlines(boxes: Iterable[Box], kind: str, time: Scale, size: Scale, *, shown: bool) -> Figure:
    """All of them as one path, which a browser draws at once; without texts."""
    x: list[float | None] = []
    y: list[float | None] = []
    for b in boxes:
        left, right, low, high = b.start_ns / time[0], b.end_ns / time[0], b.low / size[0], b.high / size[0]
        x += [left, right, right, left, left, None]
        y += [low, low, high, high, low, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "name": kind,
        "showlegend": shown,
        "legendgroup": kind,
        "x": x,
        "y": y,
        "hoverinfo": "skip",
        "fillcolor": COLORS[kind],
        "opacity": 0.6,
        "line": {"width": 0, "color": COLORS[kind]},
    }


def held_figure(drawing: Drawing, tier: str) -> Figure:
    """Bytes held in a tier over the time of a pass, beneath its capacity."""
    plan, held = drawing.file.plan, drawing.held[tier]
    room = plan.capacity_nbytes.get(tier, 0) - plan.workspace_nbytes.get(tier, 0)
    time, size = seconds_scale(drawing.timeline.pass_ns), bytes_scale(max((n for _, n in held), default=1))
    end = drawing.timeline.pass_ns
    points = [*held, (end, held[-1][1] if held else 0)]
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "held",
            "x": [at / time[0] for at, _ in points],
            "y": [n / size[0] for _, n in points],
            "line": {"shape": "hv", "color": COLORS["computes"], "width": 1.5},
            "fill": "tozeroy",
            "hovertext": [format_size(n) for _, n in points],
            "hovertemplate": "%{hovertext} at %{x:.4g} " + time[1] + "<extra></extra>",
        }
    ]
    if room > 0:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"room, {format_size(room)}",
                "x": [0, end / time[0]],
                "y": [room / size[0]] * 2,
                "line": {"dash": "dash", "color": COLORS["waits"], "width": 1.5},
                "hoverinfo": "skip",
            }
        )
    return {"data": traces, "layout": _layout(f"bytes held, {size[1]}", time, drawing, height=240)}


def timeline_figure(drawing: Drawing, measured: Sequence[Bar] = ()) -> Figure:
    """Units and links over the time of a pass, stalls in their own colour; `measured` lanes below the predicted."""
    length = max(drawing.timeline.pass_ns, max((b.end_ns for b in measured), default=0), 1)
    bars = merge_bars([*drawing.lanes, *measured], length // COLUMNS)
    time = seconds_scale(length)
    traces: list[Figure] = []
    for kind in LANE_KINDS:
        some = [b for b in bars if b.kind == kind]
        if some:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": kind,
                    "base": [b.start_ns / time[0] for b in some],
                    "x": [(b.end_ns - b.start_ns) / time[0] for b in some],
                    "y": [b.lane for b in some],
                    "hovertext": [b.text for b in some],
                    "hovertemplate": "%{hovertext}<extra></extra>",
                    "marker": {"color": COLORS[kind], "line": {"width": 0}},
                }
            )
    lanes = list(dict.fromkeys(b.lane for b in bars))
    layout = _layout("", time, drawing, height=110 + 44 * len(lanes))
    layout["xaxis"]["range"] = [0, length / time[0]]
    layout["yaxis"] = {"type": "category", "categoryarray": lanes[::-1], "categoryorder": "array", "automargin": True}
    return {"data": traces, "layout": layout}


def traffic_figure(drawing: Drawing) -> Figure:
    """Bytes per link and pass, and how busy the lane of each is."""
    plan, timeline = drawing.file.plan, drawing.timeline
    moved = plan.certificate.moved_nbytes
    size = bytes_scale(max(moved.values(), default=1))
    lane = {k.name: k.lane for k in drawing.file.machine.links}
    names = [name for name, n in moved.items() if n]
    busy = [timeline.lane_busy_ns.get(lane.get(name, name), 0) / max(1, timeline.pass_ns) for name in names]
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                "x": [moved[n] / size[0] for n in names],
                "text": [
                    f"{format_size(moved[n])}, lane {share:.0%} busy" for n, share in zip(names, busy, strict=True)
                ],
                "textposition": "auto",
                "hoverinfo": "skip",
                "marker": {"color": COLORS["loads"]},
            }
        ],
        "layout": {
            "height": 90 + 46 * max(1, len(names)),
            "showlegend": False,
            "margin": {"t": 10, "r": 16, "b": 40, "l": 16},
            "xaxis": {"title": {"text": f"{size[1]} a pass"}},
            "yaxis": {"automargin": True},
        },
    }


def _layout(vertical: str, time: Scale, drawing: Drawing, *, height: int) -> Figure:
    length = drawing.timeline.pass_ns
    return {
        "height": height,
        "barmode": "overlay",
        "bargap": 0.25,
        "hovermode": "closest",
        "dragmode": "zoom",
        "margin": {"t": 10, "r": 16, "b": 44, "l": 16},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {
            "title": {"text": f"time in the pass, {time[1]} (a pass takes {format_seconds(length / 1e9)})"},
            "range": [0, length / time[0]],
        },
        "yaxis": {"title": {"text": vertical}, "rangemode": "tozero", "automargin": True},
    }
