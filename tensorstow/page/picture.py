"""The map of the memory and the timeline as a figure for a paper."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import InputError
from ..ir.files import PlanFile
from ..ir.paths import write_atomic
from ..ir.sizes import format_seconds, format_size
from .boxes import KINDS, LANE_KINDS, Drawing, draw
from .merge import merge_bars
from .scales import COLORS, COLUMNS, bytes_scale, seconds_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
WIDTH_INCHES = 7.2
"""A page's text block is about that wide."""
DOTS_PER_INCH = 200


def write_picture(file: PlanFile, path: Path) -> None:
    """Draw a plan to `path`, whose ending says the format. Raises InputError for another ending, and for a plan without
    steps."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot draw {path}: its name must end in {', '.join(FORMATS)}")
    if not file.plan.steps:
        raise InputError("the plan has no steps; there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = draw(file)
    tiers = tuple(drawing.memory)
    figure = Figure(figsize=(WIDTH_INCHES, 2.6 * len(tiers) + 1.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(tiers) + 1, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2.6] * len(tiers) + [1.4]}
    )[:, 0]
    for tier, ax in zip(tiers, axes[:-1], strict=True):
        _memory(ax, drawing, tier)
    _lanes(axes[-1], drawing)
    c = file.plan.certificate
    took = f"{format_seconds(c.simulated_s)} a pass, {c.gap:.1%} above the bound"
    figure.suptitle(f"{file.graph.name} on {file.machine.name}: {took}", fontsize=9)
    held = io.BytesIO()
    figure.savefig(held, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)
    write_atomic(path, held.getvalue())


def _memory(ax: Axes, drawing: Drawing, tier: str) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes = drawing.memory[tier]
    top = max((b.high for b in boxes), default=1)
    time, size = seconds_scale(drawing.timeline.pass_ns), bytes_scale(top)
    for kind in KINDS:
        some = [
            Rectangle(
                (b.start_ns / time[0], b.low / size[0]), (b.end_ns - b.start_ns) / time[0], (b.high - b.low) / size[0]
            )
            for b in boxes
            if b.kind == kind
        ]
        if some:
            ax.add_collection(PatchCollection(some, facecolor=COLORS[kind], edgecolor="white", linewidth=0.1))
            ax.plot([], [], "s", color=COLORS[kind], label=kind)
    ax.set_ylim(0, top / size[0])
    ax.set_ylabel(f"{tier}, {size[1]}", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=6.5, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    if room := drawing.file.plan.capacity_nbytes.get(tier):
        ax.annotate(
            f"budget {format_size(room)}", (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=6.5
        )


def _lanes(ax: Axes, drawing: Drawing) -> None:
    length = max(1, drawing.timeline.pass_ns)
    time = seconds_scale(length)
    bars = merge_bars(drawing.lanes, length // COLUMNS)
    lanes = list(dict.fromkeys(b.lane for b in bars))[::-1]
    for kind in LANE_KINDS:
        for i, lane in enumerate(lanes):
            spans = [
                (b.start_ns / time[0], (b.end_ns - b.start_ns) / time[0])
                for b in bars
                if b.kind == kind and b.lane == lane
            ]
            if spans:
                ax.broken_barh(spans, (i - 0.38, 0.76), facecolor=COLORS[kind], linewidth=0)
        if any(b.kind == kind for b in bars):
            ax.plot([], [], "s", color=COLORS[kind], label=kind)
    ax.set_yticks(range(len(lanes)), lanes, fontsize=7)
    ax.set_ylim(-0.6, len(lanes) - 0.4)
    ax.set_xlim(0, length / time[0])
    ax.set_xlabel(f"time in the pass, {time[1]}", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=6.5, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
