"""What a routing trace says, as pictures: hits of policies against Belady, and how local the routing is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import InputError
from ..ir.paths import write_atomic
from ..ir.sizes import format_size
from .compare_page import DASHES, PALETTE
from .document import Figure, cards_of, document, figure_place, table
from .picture import DOTS_PER_INCH, FORMATS, WIDTH_INCHES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

    from ..experts import Analysis

BELADY, LRU = "belady", "lru"
FUTURE_STYLE = "dash"


MOST_TICKS = 8
"""Of an axis on which each point has one; more would cover one another on a phone."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x, y) of what is called `name`; `dashed` is what knows the future."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over one axis."""

    key: str
    title: str
    about: str
    across: str
    up: str
    curves: tuple[Curve, ...]


def charts(found: Analysis) -> tuple[Chart, ...]:
    """What is drawn: hit rates over capacities, SRP and SCH over windows, the experts that windows use."""
    sized = found.trace.sizes is not None
    scale = 2.0**20 if sized else 1.0
    across = "cache of a layer, MiB" if sized else f"experts in a layer's cache, of {found.trace.experts}"
    names = dict.fromkeys(row.policy for row in found.rows)
    hits = tuple(
        Curve(
            name,
            tuple(sorted((row.cache / scale, row.hit_rate) for row in found.rows if row.policy == name)),
            not next(row.causal for row in found.rows if row.policy == name),
        )
        for name in names
    )
    windows = [w for w in found.windows if w.windows]
    caches = dict.fromkeys(row.cache for row in found.rows)
    local = [Curve("SRP", tuple((w.m, w.srp) for w in windows))]
    for c in caches:
        label = format_size(c) if sized else str(c)
        local.append(Curve(f"SCH, cache {label}", tuple((w.m, found.sch[w.m][c]) for w in windows)))
    used = [Curve("mean of the layers", tuple((w.m, w.working_set) for w in windows))]
    for word, pick in (("least of a layer", min), ("most of a layer", max)):
        used.append(Curve(word, tuple((w.m, pick(w.working_set_layers)) for w in windows), dashed=True))
    return (
        Chart("hits", "Hit rates", "Dashed policies know the future; Belady's is the best that loads on demand.",
              across, "hit rate", hits),
        Chart("local", "How steady the routing is", "SRP and SCH of windows (arXiv 2505.16056).", "tokens of a window",
              "share", tuple(local)),
        Chart("used", "Working set", f"Experts of a layer, of {found.trace.experts}, that a window asks for.",
              "tokens of a window", "experts", tuple(used)),
    )  # fmt: skip


def write_experts_page(title: str, found: Analysis, path: Path) -> None:
    """The page of an analysis."""
    write_atomic(path, experts_page(title, found).encode())


def experts_page(title: str, found: Analysis) -> str:
    """The page as text."""
    trace = found.trace
    cards = [(f"{trace.tokens:,}", "tokens"), (str(trace.layers), "layers"), (str(trace.experts), "experts of a layer")]
    cards.append((str(trace.top_k), "a token"))
    figures: dict[str, Figure] = {}
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(_lead(found))}</p>', cards_of(cards)]
    for chart in charts(found):
        figures[chart.key] = _figure(chart)
        about = f'<p class="soft">{escape(chart.about)}</p>'
        body += [f"<h2>{escape(chart.title)}</h2>", about, figure_place(chart.key)]
    head = ("policy", "cache", "hit rate", "LRU to Belady", "of Belady")
    rows = [
        (
            row.policy,
            format_size(row.cache) if trace.sizes is not None else str(row.cache),
            f"{row.hit_rate:.4f}",
            f"{row.gap_closed:.1%}",
            f"{row.of_belady:.4f}",
        )
        for row in found.rows
    ]
    return document(title, [*body, "<h2>In numbers</h2>", table(head, rows)], figures=figures)


def _lead(found: Analysis) -> str:
    """The best policy that does not know the future, at the first capacity."""
    first = found.rows[0].cache
    causal = [row for row in found.rows if row.cache == first and row.causal]
    if not causal:
        return "No policy was asked for that could be used: all know the future."
    best = max(causal, key=lambda row: row.hit_rate)
    size = format_size(first) if found.trace.sizes is not None else f"{first} of {found.trace.experts} experts"
    return (
        f"With {size} in each layer's cache {best.policy} hits {best.hit_rate:.1%}: {best.of_belady:.1%} of the best "
        f"that is possible on demand, {best.gap_closed:.0%} of the way there from LRU."
    )


def _ticks(chart: Chart) -> Figure:
    """A tick at each x that was asked for, where they are few; plotly's own on a logarithmic axis are single digits."""
    places = sorted({x for curve in chart.curves for x, _ in curve.points})
    windows = "window" in chart.across
    ticks: Figure = {"tickvals": places, "ticktext": [f"{x:g}" for x in places]} if len(places) <= MOST_TICKS else {}
    return {**ticks, **({"type": "log", "minor": {"showgrid": False}} if windows else {})}


def _figure(chart: Chart) -> Figure:
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": curve.name,
                "x": [x for x, _ in curve.points],
                "y": [y for _, y in curve.points],
                "line": {"color": color, "dash": FUTURE_STYLE if curve.dashed else dash},
                "hovertemplate": f"{curve.name}<br>%{{y:.4g}} at %{{x:.6g}}<extra></extra>",
            }
            for curve, color, dash in _styled(chart.curves)
        ],
        "layout": {
            "height": 420,
            "hovermode": "closest",
            "margin": {"t": 10, "r": 16, "b": 48, "l": 16},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {"title": {"text": chart.across}, **_ticks(chart)},
            "yaxis": {"title": {"text": chart.up}, "automargin": True},
        },
    }


def _styled(curves: Sequence[Curve]) -> list[tuple[Curve, str, str]]:
    return [
        (curve, PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]) for i, curve in enumerate(curves)
    ]


def write_experts_picture(title: str, found: Analysis, path: Path) -> None:
    """The three charts as one figure; the ending of `path` says the format. Raises InputError for another ending."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot draw {path}: its name must end in {', '.join(FORMATS)}")
    held = io.BytesIO()
    figure = experts_picture(charts(found), title)
    figure.savefig(held, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)
    write_atomic(path, held.getvalue())


def experts_picture(drawn: Sequence[Chart], title: str) -> Picture:
    """The charts beside one another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    figure = Picture(figsize=(WIDTH_INCHES * 1.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    styles = {"solid": "-", "dot": ":", "dashdot": "-."}
    for ax, chart in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for curve, color, dash in _styled(chart.curves):
            line = "--" if curve.dashed else styles[dash]
            ax.plot(*zip(*curve.points, strict=True), line, marker="o", ms=2.5, lw=1.1, color=color, label=curve.name)
        if "window" in chart.across:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        ax.set_title(chart.title, fontsize=8)
        ax.set_xlabel(chart.across, fontsize=7)
        ax.set_ylabel(chart.up, fontsize=7)
        ax.tick_params(labelsize=6.5)
        ax.legend(fontsize=5.5, frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure
