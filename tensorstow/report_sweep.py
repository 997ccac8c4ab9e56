"""A sweep over budgets for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from . import console
from .ir.sizes import format_seconds, format_size
from .report_compare import comparison_facts

if TYPE_CHECKING:
    from .sweep import Sweep


def sweep_facts(sweep: Sweep) -> dict[str, Any]:
    """The JSON object of `compare --sweep --json`: at each capacity that of a comparison, or the reason for none."""
    points: list[dict[str, Any]] = []
    for p in sweep.points:
        facts = {"reason": p.reason} if p.comparison is None else comparison_facts(p.comparison)
        points.append({"capacity_nbytes": p.capacity_nbytes, **facts})
    return {"tier": sweep.tier, "peak_nbytes": sweep.peak_nbytes, "sweep": points}


def sweep_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the bound, then a strategy each with the time of a pass under every budget; the best of a
    budget is marked."""
    names = dict.fromkeys(r.strategy for p in sweep.points if p.comparison for r in p.comparison.rows)
    head = ["strategy", *(format_size(p.capacity_nbytes) for p in sweep.points)]
    rows = [
        ["bound", *("-" if p.comparison is None else format_seconds(p.comparison.bound.seconds) for p in sweep.points)]
    ]
    for name in names:
        cells = [name]
        for p in sweep.points:
            row = next((r for r in p.comparison.rows if r.strategy == name), None) if p.comparison else None
            if p.comparison is None or row is None or row.plan is None:
                cells.append("-")
            else:
                mark = " *" if row is p.comparison.best else ""
                cells.append(f"{format_seconds(row.plan.certificate.simulated_s)}{mark}")
        rows.append(cells)
    return head, rows


def print_sweep(sweep: Sweep) -> None:
    """Times of a pass, budgets to the right."""
    head, rows = sweep_table(sweep)
    table = console.plain_table(*head)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.out.print(table)
    console.out.print(
        f"a pass under each budget of {escape(sweep.tier)}; nothing ever leaves at {format_size(sweep.peak_nbytes)}"
    )
    console.out.print("*: the fastest")
    for p in sweep.points:
        if p.reason:
            console.out.print(f"[dim]{format_size(p.capacity_nbytes)}: {escape(p.reason)}[/]")


def print_sweep_markdown(sweep: Sweep) -> None:
    """The same table alone on stdout, as Markdown."""
    console.print_markdown_table(*sweep_table(sweep))
