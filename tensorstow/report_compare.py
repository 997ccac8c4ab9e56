"""A comparison for people and for programs: a table, Markdown, CSV, and the JSON object of the contract."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from shutil import get_terminal_size
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from . import console
from .ir.errors import InputError
from .ir.sizes import format_seconds as seconds
from .ir.sizes import format_size

if TYPE_CHECKING:
    from .ir.machine import Machine
    from .ir.plan import Certificate
    from .planner.bounds import Bound
    from .planner.compare import Comparison, Row, Run

HEADINGS = ("strategy", "status", "pass", "gap", "peak", "moved", "solved in")
WORDS = 2
"""The first columns hold words: strategy and status."""
LONGEST_REASON = 220
"""Characters of it in the table: some lines of a terminal."""

CSV_COLUMNS = (
    "strategy", "status", "best", "simulated_s", "gap", "bound_s", "bound_kind", "own_bound_s", "own_bound_kind",
    "peak_nbytes", "moved_nbytes", "solve_s", "runs", "simulated_min_s", "simulated_median_s", "simulated_max_s",
    "reason",
)  # fmt: skip


def comparison_facts(comparison: Comparison) -> dict[str, Any]:
    """The JSON object of `compare --json`. `gap` is above the common `bound_s`; a row's own bound stands in the row.
    `hooked` is there where a training step runs by hooks only, and says why."""
    best = comparison.best
    return {
        "bound_s": comparison.bound.seconds,
        "bound_kind": comparison.bound.kind,
        "bounds": [_bound_facts(b) for b in comparison.bounds],
        "best": best.strategy if best else None,
        "rows": [_row_facts(comparison, row) for row in comparison.rows],
        **({"hooked": comparison.hooked} if comparison.hooked is not None else {}),
    }


def _bound_facts(bound: Bound) -> dict[str, Any]:
    return {"name": bound.name, "kind": bound.kind, "seconds": bound.seconds, "nbytes": dict(bound.nbytes)}


def _row_facts(comparison: Comparison, row: Row) -> dict[str, Any]:
    certificate = row.plan.certificate if row.plan else None
    low, middle, high = row.spread_s or (None, None, None)
    return {
        "strategy": row.strategy,
        "status": row.status,
        "reason": row.reason,
        "best": row is comparison.best,
        "simulated_s": certificate.simulated_s if certificate else None,
        "gap": comparison.gap(row),
        "bound_s": row.bound.seconds if row.bound else None,
        "bound_kind": row.bound.kind if row.bound else None,
        "own_gap": certificate.gap if certificate else None,
        "peak_nbytes": certificate.peak_nbytes if certificate else None,
        "moved_nbytes": certificate.moved_nbytes if certificate else None,
        "solve_s": row.solve_s,
        "simulated_min_s": low,
        "simulated_median_s": middle,
        "simulated_max_s": high,
        "runs": [_run_facts(run) for run in row.runs],
    }


def _run_facts(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "status": run.status,
        "reason": run.reason,
        "simulated_s": run.simulated_s,
        "solve_s": run.solve_s,
    }


def print_comparison(comparison: Comparison, machine: Machine) -> None:
    """Strategies in a table, the fastest first and marked; those without an answer last, with the beginning of their
    reason: all of it stands in the other formats."""
    table = console.plain_table(*_headings(comparison, machine), words=WORDS)
    for row in comparison.ranked:
        table.add_row(*(escape(cell) for cell in _cells(comparison, row, machine)))
    console.out.print(table)
    for line in _legend(comparison):
        console.out.print(escape(line))
    columns = get_terminal_size().columns if console.out.is_terminal else console.WIDTH
    for reason in _reasons(comparison):
        short = shorten(reason, LONGEST_REASON, placeholder=" ...")
        for line in wrap(short, max(columns, 20), subsequent_indent="  ", break_on_hyphens=False):
            console.out.print(f"[dim]{escape(line)}[/]")


def print_markdown(comparison: Comparison, machine: Machine) -> None:
    """The table alone on stdout, as Markdown; what else there is to say on stderr."""
    rows = [_cells(comparison, row, machine) for row in comparison.ranked]
    console.print_markdown_table(_headings(comparison, machine), rows, words=WORDS)
    _notes(comparison)


def print_csv(comparison: Comparison, machine: Machine) -> None:
    """The table alone on stdout, as CSV; what else there is to say on stderr."""
    sys.stdout.write(csv_of(comparison, machine))
    _notes(comparison)


def write_csv(comparison: Comparison, machine: Machine, path: Path) -> None:
    """The table as CSV in a file. Raises InputError where it cannot be written."""
    try:
        path.write_text(csv_of(comparison, machine), encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _notes(comparison: Comparison) -> None:
    for line in (*_legend(comparison), *_reasons(comparison)):
        console.note(line)


def _headings(comparison: Comparison, machine: Machine) -> list[str]:
    tier = machine.units[0].tier
    names = [f"peak {tier}" if h == "peak" else h for h in HEADINGS]
    return [*names, "min / median / max"] if _repeated(comparison) else names


def _repeated(comparison: Comparison) -> bool:
    return any(len(row.runs) > 1 for row in comparison.rows)


def _cells(comparison: Comparison, row: Row, machine: Machine) -> list[str]:
    name = f"{row.strategy} *" if row is comparison.best else row.strategy
    certificate = row.plan.certificate if row.plan else None
    cells = [name, row.status, *_figures(comparison, row, certificate, machine.units[0].tier), seconds(row.solve_s)]
    if _repeated(comparison):
        cells.append(" / ".join(map(seconds, row.spread_s)) if row.spread_s else "-")
    return cells


def _figures(comparison: Comparison, row: Row, certificate: Certificate | None, tier: str) -> list[str]:
    if certificate is None:
        return ["-"] * 4
    return [
        seconds(certificate.simulated_s),
        console.percent(comparison.gap(row) or 0.0),
        format_size(certificate.peak_nbytes.get(tier, 0)),
        format_size(sum(certificate.moved_nbytes.values())),
    ]


def _legend(comparison: Comparison) -> list[str]:
    lines = [f"gap: above the bound of {seconds(comparison.bound.seconds)} ({comparison.bound.kind})"]
    if comparison.hooked is not None:
        lines.insert(0, f"plans by hooks, as the step cannot be traced ({comparison.hooked})")
    own = {r.bound.kind: r for r in comparison.rows if r.bound is not None}
    if len(own) > 1:  # else the common bound is everyone's
        lines += [
            f"{r.strategy}: {console.percent(r.plan.certificate.gap)} above its own bound of "
            f"{seconds(r.bound.seconds)} ({r.bound.kind})"
            for r in comparison.ranked
            if r.plan is not None and r.bound is not None
        ]
    lines.append("pass, moved: time and bytes moved of one pass in the steady state")
    if comparison.best is not None:
        lines.append("*: the fastest")
    return [*lines, *_bound_lines(comparison)]


def _bound_lines(comparison: Comparison) -> list[str]:
    """Every bound that says something: a time above zero, or bytes. Of those of one name and figures the last, which
    holds for the most plans."""
    lines: dict[tuple[str, str], str] = {}
    for bound in comparison.bounds:
        nbytes = ", ".join(f"{format_size(n)} {what}" for what, n in bound.nbytes if n)
        figures = ", ".join([*([seconds(bound.seconds)] if bound.seconds else []), *([nbytes] if nbytes else [])])
        if figures:
            lines[bound.name, figures] = f"bound {figures}: {bound.kind}"
    return list(lines.values())


def _reasons(comparison: Comparison) -> list[str]:
    """A line for each reason, without line breaks; strategies that say the same share it."""
    names: dict[str, list[str]] = {}
    for row in comparison.ranked:
        if row.reason:
            names.setdefault(" ".join(row.reason.split()), []).append(row.strategy)
    return [f"{', '.join(those)}: {reason}" for reason, those in names.items()]


def csv_of(comparison: Comparison, machine: Machine) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in comparison.ranked:
        facts = _row_facts(comparison, row)
        certificate = row.plan.certificate if row.plan else None
        flat = {
            **facts,
            "best": "yes" if facts["best"] else "no",
            "bound_s": comparison.bound.seconds,
            "bound_kind": comparison.bound.kind,
            "own_bound_s": facts["bound_s"],
            "own_bound_kind": facts["bound_kind"],
            "peak_nbytes": certificate.peak_nbytes.get(machine.units[0].tier, 0) if certificate else None,
            "moved_nbytes": sum(certificate.moved_nbytes.values()) if certificate else None,
            "runs": len(row.runs),
        }
        writer.writerow(["" if flat[c] is None else flat[c] for c in CSV_COLUMNS])
    return text.getvalue()
