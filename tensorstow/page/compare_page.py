"""Comparisons as a page: strategies as bars against the bound, and time against memory over several budgets."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.paths import write_atomic
from ..ir.sizes import format_seconds, format_size
from ..report_sweep import sweep_table
from .document import Figure, cards_of, document, figure_place, table
from .scales import COLORS, bytes_scale, seconds_scale

if TYPE_CHECKING:
    from ..planner.compare import Comparison
    from ..sweep import Sweep

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
"""After Okabe and Ito."""
DASHES = ("solid", "dot", "dashdot")
NONE = "-"


def write_comparison_page(title: str, comparison: Comparison, path: Path) -> None:
    """One comparison: bars and the table behind them."""
    write_atomic(path, comparison_page(title, comparison).encode())


def comparison_page(title: str, comparison: Comparison) -> str:
    """The page as text."""
    body = [f"<h1>{escape(title)}</h1>", _lead(comparison)]
    figures: dict[str, Figure] = {}
    if comparison.best is not None:
        figures["bars"] = _bars(comparison)
        body += ["<h2>A pass, by strategy</h2>", figure_place("bars")]
    rows = [
        (
            row.strategy,
            row.status,
            NONE if row.plan is None else format_seconds(row.plan.certificate.simulated_s),
            _gap(comparison.gap(row)),
            NONE if row.plan is None else format_size(sum(row.plan.certificate.moved_nbytes.values())),
            format_seconds(row.solve_s),
        )
        for row in comparison.ranked
    ]
    body += [
        "<h2>In numbers</h2>",
        table(("strategy", "status", "a pass", "above the bound", "moved a pass", "solved in"), rows),
    ]
    refused = [(row.strategy, row.reason) for row in comparison.ranked if row.reason]
    body += [f'<p class="soft"><b>{escape(name)}</b>: {escape(reason)}</p>' for name, reason in refused]
    return document(title, body, figures=figures)


def write_sweep_page(title: str, sweep: Sweep, path: Path) -> None:
    """Comparisons over budgets: time against memory."""
    write_atomic(path, sweep_page(title, sweep).encode())


def sweep_page(title: str, sweep: Sweep) -> str:
    """The page as text."""
    answered = [p.comparison for p in sweep.points if p.comparison is not None]
    names = list(dict.fromkeys(row.strategy for c in answered for row in c.rows))
    cards = [(format_size(sweep.peak_nbytes), f"of {sweep.tier} when nothing ever leaves")]
    cards += [(str(len(names)), "strategies"), (str(len(sweep.points)), "budgets")]
    body = [f"<h1>{escape(title)}</h1>", cards_of(cards)]
    figures: dict[str, Figure] = {}
    if answered:
        figures["pareto"] = _pareto(sweep, names)
        body += [
            "<h2>Time against memory</h2>",
            '<p class="soft">A pass under each budget; no plan of this order is below the bound.</p>',
            figure_place("pareto"),
        ]
    head, rows = sweep_table(sweep)
    body += ["<h2>In numbers</h2>", table(head, rows), '<p class="soft">*: the fastest under a budget.</p>']
    reasons = [(format_size(p.capacity_nbytes), p.reason) for p in sweep.points if p.reason]
    body += [f'<p class="soft">{size}: {escape(reason)}</p>' for size, reason in reasons]
    return document(title, body, figures=figures)


def _lead(comparison: Comparison) -> str:
    best, bound = comparison.best, comparison.bound
    proven = f"The bound for all of them is <b>{format_seconds(bound.seconds)}</b> ({escape(bound.kind)})."
    if best is None or best.plan is None:
        return f'<p class="lead">No strategy has a plan. {proven}</p>'
    took = format_seconds(best.plan.certificate.simulated_s)
    return f'<p class="lead"><b>{escape(best.strategy)}</b> is fastest: <b>{took}</b> a pass. {proven}</p>'


def _gap(gap: float | None) -> str:
    return NONE if gap is None else f"{gap:.1%}"


def _bars(comparison: Comparison) -> Figure:
    rows = [(r.strategy, r.plan.certificate.simulated_s) for r in comparison.ranked if r.plan is not None]
    scale, unit = seconds_scale(round(max(s for _, s in rows) * 1e9))
    bound = comparison.bound.seconds * 1e9 / scale
    best = comparison.best.strategy if comparison.best else ""
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": [name for name, _ in rows],
                "x": [s * 1e9 / scale for _, s in rows],
                "text": [format_seconds(s) for _, s in rows],
                "textposition": "auto",
                "hoverinfo": "skip",
                "marker": {"color": [COLORS["activation"] if n == best else COLORS["computes"] for n, _ in rows]},
            }
        ],
        "layout": {
            "height": 136 + 34 * len(rows),
            "showlegend": False,
            "margin": {"t": 52, "r": 16, "b": 44, "l": 16},  # the buttons above, the name of the bound beneath
            "xaxis": {"title": {"text": f"a pass, {unit}"}, "rangemode": "tozero"},
            "yaxis": {"automargin": True, "autorange": "reversed"},
            "shapes": [
                {"type": "line", "x0": bound, "x1": bound, "yref": "paper", "y0": 0, "y1": 1,
                 "line": {"color": COLORS["waits"], "dash": "dash", "width": 2}}
            ],
            "annotations": [
                {"x": bound, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False,
                 "text": f"bound {format_seconds(comparison.bound.seconds)}"}
            ],
        },
    }  # fmt: skip


def _pareto(sweep: Sweep, names: list[str]) -> Figure:
    points = [(p.capacity_nbytes, p.comparison) for p in sweep.points if p.comparison is not None]
    slowest = max(
        (r.plan.certificate.simulated_s for _, c in points for r in c.rows if r.plan is not None),
        default=max(c.bound.seconds for _, c in points),
    )
    (scale, unit), (size, size_unit) = seconds_scale(round(slowest * 1e9)), bytes_scale(points[0][0])

    def line(name: str, found: list[tuple[int, float]], style: Figure) -> Figure:
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [n / size for n, _ in found],
            "y": [s * 1e9 / scale for _, s in found],
            "hovertext": [f"{name}<br>{format_seconds(s)} in {format_size(n)}" for n, s in found],
            "hovertemplate": "%{hovertext}<extra></extra>",
            **style,
        }

    traces: list[Figure] = []
    for i, name in enumerate(names):
        found = [
            (n, r.plan.certificate.simulated_s)
            for n, c in points
            for r in c.rows
            if r.strategy == name and r.plan is not None
        ]
        if found:
            dash = DASHES[i // len(PALETTE) % len(DASHES)]
            traces.append(line(escape(name), found, {"line": {"color": PALETTE[i % len(PALETTE)], "dash": dash}}))
    bound = [(n, c.bound.seconds) for n, c in points]
    style = {"mode": "lines", "line": {"color": COLORS["waits"], "dash": "dash", "width": 2}}
    return {
        "data": [*traces, line("bound", bound, style)],
        "layout": {
            "height": 480,
            "hovermode": "closest",
            "margin": {"t": 10, "r": 16, "b": 48, "l": 16},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {"title": {"text": f"budget of {sweep.tier}, {size_unit}"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": f"a pass, {unit}"}, "rangemode": "tozero", "automargin": True},
        },
    }
