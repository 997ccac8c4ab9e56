"""One self-contained page about a plan: what it promises, where everything lies, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..ir.files import PlanFile
from ..ir.paths import write_atomic
from ..ir.sizes import format_seconds, format_size
from .boxes import Bar, Drawing, draw
from .charts import LABELLED, held_chart, memory_chart, time_axis, timeline_chart
from .costs import Cost, Progress, Upgrade, costs, upgrades
from .document import cards_of, document, figure_place, table

NONE = "-"
MOST = 10
"""Rows of the table of costs."""
SEEK = (
    '<div class="seek"><input id="seek" type="search" placeholder="find a tensor or an operator" '
    'aria-label="find a tensor or an operator"><span id="sought" class="soft" aria-live="polite"></span></div>'
)


def write_page(
    file: PlanFile, path: Path, *, measured: Sequence[Bar] = (), time_limit_s: float, progress: Progress
) -> None:
    """Write the page to `path`. `measured` are lanes of a run, drawn beneath the predicted ones; `time_limit_s` is for
    each program that tells what an upgrade would buy."""
    progress("drawing", 0.0)
    drawing = draw(file)
    better = upgrades(file, time_limit_s=time_limit_s, progress=progress) if file.plan.steps else ()
    write_atomic(path, page(drawing, better, measured).encode())


def page(drawing: Drawing, better: tuple[Upgrade, ...], measured: Sequence[Bar] = ()) -> str:
    """The page as text."""
    file = drawing.file
    fast = next((u.tier for u in file.machine.units if file.plan.steps and u.name == file.plan.steps[0].unit), "")
    tiers = sorted(drawing.memory, key=lambda tier: tier != fast)
    charts: dict[str, Any] = {}
    body = [_headline(file), _cards(file), SEEK if file.plan.steps else ""]
    for i, tier in enumerate(tiers):
        charts |= {f"map{i}": memory_chart(drawing, tier), f"held{i}": held_chart(drawing, tier)}
        body += [
            f"<h2>Memory of {escape(tier)}</h2>",
            f'<p class="soft">{_note(drawing, tier, first=not i)}</p>',
            figure_place(f"map{i}"),
            figure_place(f"held{i}"),
        ]
    if file.plan.steps:
        charts["time"] = timeline_chart(drawing, measured)
        beside = "; beneath, the same as a run measured it" if measured else ""
        body += [
            "<h2>Who works when</h2>",
            f'<p class="soft">One pass in the steady state, as simulated{beside}.</p>',
            figure_place("time"),
        ]
    body += [_flows(drawing), _cost_table(costs(file, drawing.timeline, fast, MOST)), _upgrade_table(file, better)]
    drawn = {"time": time_axis(drawing, measured), "charts": charts} if charts else None
    return document(f"{file.graph.name} on {file.machine.name}", [*body, _end(file)], charts=drawn)


def _headline(file: PlanFile) -> str:
    plan, c = file.plan, file.plan.certificate
    near = "this plan takes exactly that" if c.status == "optimal" else f"this plan is <b>{c.gap:.1%}</b> above it"
    proven = f"The proven bound is <b>{format_seconds(c.bound_s)}</b> ({escape(c.bound_kind)}); {near}."
    return (
        f"<h1>{escape(file.graph.name)} on {escape(file.machine.name)}</h1>"
        f'<p class="lead">A pass of {len(plan.steps)} steps takes <b>{format_seconds(c.simulated_s)}</b> '
        f"({escape(plan.strategy)}, {escape(plan.mode)}). {proven}</p>"
    )


def _cards(file: PlanFile) -> str:
    plan, c = file.plan, file.plan.certificate
    cards = [(format_seconds(c.simulated_s), "a pass, simulated"), (format_seconds(c.first_pass_s), "the first pass")]
    cards.append((f"{c.gap:.1%}", "above the proven bound"))
    for tier, peak in c.peak_nbytes.items():
        room = plan.capacity_nbytes.get(tier)
        cards.append((format_size(peak), f"peak of {tier}" + (f", of {format_size(room)}" if room else "")))
    if file.fixed_nbytes:
        cards.append((format_size(file.promised_peak_nbytes), "peak of the whole process"))
    cards += [(format_size(n), f"a pass {link}") for link, n in c.moved_nbytes.items() if n]
    return cards_of(cards)


def _note(drawing: Drawing, tier: str, *, first: bool) -> str:
    text = "Each rectangle is a stay of a tensor at its addresses."
    if first:
        text += (
            " Point at one, or tap it, to see why it is there; drag over a part to see it larger, in all the charts at "
            "once. Arrow keys go from one to the next."
        )
    more = len(drawing.memory[tier]) - LABELLED
    return text + (f" The {more} smallest of {more + LABELLED} are drawn without a text." if more > 0 else "")


def _flows(drawing: Drawing) -> str:
    """Bytes per link and pass, and how busy the lane of each is."""
    moved = {link: n for link, n in drawing.file.plan.certificate.moved_nbytes.items() if n}
    if not moved:
        return ""
    lane = {k.name: k.lane for k in drawing.file.machine.links}
    rows = ""
    for link, n in moved.items():
        busy = drawing.timeline.lane_busy_ns.get(lane.get(link, link), 0) / max(1, drawing.timeline.pass_ns)
        rows += (
            f'<div>{escape(link)}</div><div class="flow"><i style="width:{n / max(moved.values()):.2%}"></i>'
            f"<span>{format_size(n)}, lane {busy:.0%} busy</span></div>"
        )
    return f'<h2>What moves in a pass</h2><div class="flows">{rows}</div>'


def _cost_table(found: tuple[Cost, ...]) -> str:
    rows = [
        (
            c.name,
            c.kind.replace("_", " "),
            format_size(c.nbytes),
            format_seconds(c.wait_ns / 1e9) if c.wait_ns else NONE,
            format_size(c.moved_nbytes) if c.moved_nbytes else NONE,
            f"{100 * c.resident:.2g}%",
        )
        for c in found
    ]
    head = ("tensor", "kind", "size", "waited for it", "moved a pass", "share of the memory")
    return f"<h2>What costs most</h2>{table(head, rows)}" if rows else ""


def _upgrade_table(file: PlanFile, better: tuple[Upgrade, ...]) -> str:
    if not better:
        return ""
    now = file.plan.certificate.bound_s
    rows = [
        (u.change, format_seconds(u.bound_s), format_seconds(u.saved_s) if u.saved_s > 1e-4 * now else "nothing")
        for u in better
    ]
    note = '<p class="soft">The proven bound of a pass, solved anew for each machine.</p>'
    return f"<h2>What an upgrade would buy</h2>{note}{table(('change', 'bound', 'saves'), rows)}"


def _end(file: PlanFile) -> str:
    return (
        f'<p class="soft">{len(file.graph.operators)} operators, {len(file.graph.storages)} storages, '
        f"{format_size(file.graph.nbytes)}; graph {escape(file.plan.graph[:16])}, "
        f"machine {escape(file.plan.machine[:16])}.</p>"
    )
