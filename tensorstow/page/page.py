"""One self-contained page about a plan: what it promises, where everything lies, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..ir.files import PlanFile
from ..ir.paths import write_atomic
from ..ir.sizes import format_seconds, format_size
from .boxes import Bar, Drawing, draw
from .costs import Cost, Progress, Upgrade, costs, upgrades
from .document import cards_of, document, figure_place, table
from .figures import LABELLED, Figure, held_figure, memory_figure, timeline_figure, traffic_figure

NONE = "-"
MOST = 10
"""Rows of the table of costs."""


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
    tiers = tuple(drawing.memory)
    fast = next((u.tier for u in file.machine.units if file.plan.steps and u.name == file.plan.steps[0].unit), "")
    figures: dict[str, Figure] = {}
    body = [_headline(file), _cards(file)]
    for i, tier in enumerate(tiers):
        figures |= {f"map{i}": memory_figure(drawing, tier), f"held{i}": held_figure(drawing, tier)}
        body += [
            f"<h2>Memory of {escape(tier)}</h2>",
            f'<p class="soft">{_note(drawing, tier)}</p>',
            figure_place(f"map{i}"),
            figure_place(f"held{i}"),
        ]
    if file.plan.steps:
        figures["time"] = timeline_figure(drawing, measured)
        beside = "; beneath, the same as a run measured it" if measured else ""
        body += [
            "<h2>Who works when</h2>",
            f'<p class="soft">One pass in the steady state, as simulated{beside}.</p>',
            figure_place("time"),
        ]
    if any(file.plan.certificate.moved_nbytes.values()):
        figures["traffic"] = traffic_figure(drawing)
        body += ["<h2>What moves</h2>", figure_place("traffic")]
    body += [_cost_table(costs(file, drawing.timeline, fast, MOST)), _upgrade_table(file, better), _end(file)]
    return document(f"{file.graph.name} on {file.machine.name}", body, figures)


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


def _note(drawing: Drawing, tier: str) -> str:
    boxes = drawing.memory[tier]
    more = len(boxes) - LABELLED
    text = "Each rectangle is a stay of a tensor at its addresses; point at one to see why it is there."
    return text + (f" The {more} smallest of {len(boxes)} are drawn without a text." if more > 0 else "")


def _cost_table(found: tuple[Cost, ...]) -> str:
    rows = [
        (
            c.name,
            c.kind,
            format_size(c.nbytes),
            format_seconds(c.wait_ns / 1e9) if c.wait_ns else NONE,
            format_size(c.moved_nbytes) if c.moved_nbytes else NONE,
            f"{c.resident:.1%}",
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
