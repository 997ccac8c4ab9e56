"""What people read: tables on stdout, progress and errors on stderr; and the JSON objects of the contract."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .ir.machine import Machine, Unit
from .ir.program import ModuleProgram
from .ir.sizes import format_seconds as seconds
from .ir.sizes import format_size
from .moe_runs import experts_facts, experts_text, reads_text
from .whole_experts import whole_experts

if TYPE_CHECKING:
    from .execute import RunReport
    from .pack import Outcome
    from .planner.pytorch.generation import Generation
    from .workflow import Planned

WIDTH = 200
"""Columns that a table may take. A terminal wraps what is too long for it: nothing is cut off, there or in a pipe."""

out = Console(highlight=False, soft_wrap=True, width=WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(facts: dict[str, Any]) -> None:
    """The one JSON object on stdout."""
    sys.stdout.write(json.dumps(facts, sort_keys=True, allow_nan=False) + "\n")


def error(message: str, status: int, *, as_json: bool, smallest_nbytes: int | None = None) -> None:
    """One clear error on stderr; with --json also as the one object on stdout."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    if as_json:
        least = {} if smallest_nbytes is None else {"smallest_nbytes": smallest_nbytes}
        print_json({"error": message, "exit_status": status, **least})


def causes(error: BaseException) -> None:
    """What an error was raised from, the nearest first, each with the line that raised it; on stderr."""
    found: BaseException | None = error
    while found is not None:
        frames = traceback.extract_tb(found.__traceback__)
        where = f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
        word = "raised as" if found is error else "caused by"
        err.print(f"  [dim]{word}[/] {type(found).__name__}: {escape(str(found))}[dim]{escape(where)}[/]")
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def note(message: str) -> None:
    """A remark on stderr."""
    err.print(escape(message))


class _Clock:
    """Since when something has been under way."""

    def __init__(self) -> None:
        self.what, self.began = "", 0.0

    def seconds(self, what: str) -> float:
        """Since `what` was first named without anything else in between."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.began = what, now
        return now - self.began


_clock = _Clock()
LONG_S = 2.0
"""What takes longer is told how long it will take, as far as that is known."""


def remaining(share: float, taken_s: float) -> str:
    """' 40%, 12 s left': how long the rest takes at the pace so far, from `LONG_S` on; no guess without a share."""
    if share <= 0:
        return f", {taken_s:.0f} s" if taken_s >= LONG_S else ""
    left = f", {seconds(taken_s * (1 - share) / share)} left" if taken_s >= LONG_S and share < 1 else ""
    return f" {min(share, 1.0):4.0%}{left}"


def progress(what: str, share: float) -> None:
    """A line that replaces itself on a terminal; nothing where nobody watches."""
    if err.is_terminal:
        percent = remaining(share, _clock.seconds(what))
        what = what[: max(8, err.width - len(percent) - 1)]  # a line that wraps cannot replace itself
        err.print(f"\r\x1b[2K[dim]{escape(what)}{percent}[/]", end="")


def done() -> None:
    """Clear the progress line."""
    if err.is_terminal:
        err.print("\r\x1b[2K", end="")


def percent(gap: float) -> str:
    """'+1.3%' above the bound."""
    return f"+{gap:.1%}" if gap < 10 else f"{gap + 1:.0f}x"


def figure(value: float) -> str:
    """'0.253', '82.6', '1,979': three figures, or all in front of the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def plain_table(*columns: str, words: int = 1) -> Table:
    """A table without lines; the first `words` columns hold words and begin at their left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < words else "right", no_wrap=True)
    return table


def print_markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> None:
    """The same on stdout as Markdown, and nothing else."""
    rule = ["---" if i < words else "---:" for i in range(len(headings))]
    for cells in (headings, rule, *rows):
        sys.stdout.write("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")


def plan_facts(planned: Planned) -> dict[str, Any]:
    """The JSON object of `plan --json`, but for the path."""
    file = planned.file
    certificate = file.plan.certificate
    more: dict[str, Any] = {}
    experts = experts_facts(file)
    if experts is not None:
        more["experts"] = experts
    whole = whole_experts(file)
    if whole is not None:
        more["experts_read_whole"] = whole.facts
    if file.training is not None:
        from .report_training import training_facts

        more["training"] = training_facts(file, file.training)
    return {
        "graph": {"ops": len(file.graph.operators), "tensors": len(file.graph.tensors), "nbytes": file.graph.nbytes},
        "strategy": file.plan.strategy,
        "status": certificate.status,
        "simulated_s": certificate.simulated_s,
        "first_pass_s": certificate.first_pass_s,
        "bound_s": certificate.bound_s,
        "bound_kind": certificate.bound_kind,
        "gap": certificate.gap,
        "peak_nbytes": certificate.peak_nbytes,
        "moved_nbytes": certificate.moved_nbytes,
        "fixed_nbytes": file.fixed_nbytes,
        "promised_peak_nbytes": file.promised_peak_nbytes,
        "solve_s": planned.solve_s,
        **more,
    }


def print_plan(planned: Planned, output: Path | None, generation: Generation | None = None) -> None:
    """The summary of a plan, what was planned first, then what is promised and what is proven."""
    file = planned.file
    plan, graph = file.plan, file.graph
    certificate = plan.certificate
    out.print(
        f"[bold]{escape(graph.name)}[/]  {len(graph.operators)} operators, {format_size(graph.nbytes)} of tensors"
    )
    compute = sum(s.duration_ns for s in plan.steps) / 1e9
    rows = [("strategy", f"{plan.strategy}, in {seconds(planned.solve_s)}")]
    for tier, peak in certificate.peak_nbytes.items():
        budget = plan.capacity_nbytes.get(tier)
        rows.append(
            (f"peak in {tier}", format_size(peak) + (f" of {format_size(budget)}" if budget else " of scratch"))
        )
    if file.fixed_nbytes:
        promised, fixed = format_size(file.promised_peak_nbytes), format_size(file.fixed_nbytes)
        rows.append(("process peak", f"{promised}; {fixed} of it interpreter, libraries, kernels"))
    if file.module is not None:
        rows.append(("weights", _weights(file.module)))
    experts = experts_text(file)
    if experts is not None:
        rows += [("experts", experts), ("experts' reads", reads_text(file) or "")]
    whole = whole_experts(file)
    if whole is not None:
        rows.append(("experts", whole.text))
    if file.training is not None:
        from .report_training import training_rows

        rows += training_rows(file, file.training)
    for link, nbytes in certificate.moved_nbytes.items():
        rows.append((f"moved {link}", f"{format_size(nbytes)} a pass"))
    rows.append(("time of a pass", f"{seconds(certificate.simulated_s)} simulated; computing alone {seconds(compute)}"))
    rows.append(("first pass", f"{seconds(certificate.first_pass_s)}, with what stays loaded first"))
    rows.append(("proven bound", f"{seconds(certificate.bound_s)} ({certificate.bound_kind})"))
    verdict = (
        "optimal: equal to the bound" if certificate.status == "optimal" else f"{percent(certificate.gap)} above it"
    )
    rows.append(("this plan", verdict))
    if generation is not None:
        rows += _generation_rows(generation)
    if output is not None:
        rows.append(("written to", str(output)))
    _print_rows(rows)


def _weights(program: ModuleProgram) -> str:
    """How they are read, and what that takes on the disk."""
    nbytes = format_size(sum(b.nbytes for b in program.blobs))
    if program.direct:
        return "read from their files where they lie"
    if all(b.path is None and not b.pieces for b in program.blobs):
        return f"{nbytes} moved from memory to a nameless file in the cache, when the plan is applied"
    return f"{nbytes} repacked into the cache, once: in their files they do not begin at multiples of 64 bytes"


def _generation_rows(found: Generation) -> list[tuple[str, str]]:
    work = found.workload
    bound = found.decode_bound_tokens_per_s
    limit = f"; no plan exceeds {figure(bound)}" if bound else ""
    return [
        ("generation", f"{work.new} tokens after {work.prompt}, {work.batch} at once: {figure(found.tokens_per_s)}/s"),
        ("prompt", f"{seconds(found.prefill_s)}; keys and values take {format_size(found.cache_nbytes)} in the end"),
        ("a token", f"{seconds(found.token_s)}: {figure(found.decode_tokens_per_s)} tokens/s{limit}"),
    ]


def _print_rows(rows: list[tuple[str, str]]) -> None:
    """Names and values in two columns; a value too long for the terminal goes on below itself."""
    width = max(len(name) for name, _ in rows)
    columns = shutil.get_terminal_size().columns if out.is_terminal else WIDTH
    for name, value in rows:
        first, *more = textwrap.wrap(value, max(columns - width - 4, 20), break_on_hyphens=False) or [""]
        out.print(f"  [dim]{escape(name):<{width}}[/]  {escape(first)}")
        for line in more:
            out.print(f"  {'':<{width}}  {escape(line)}")


def print_run(found: RunReport) -> None:
    """Predicted beside measured, with their ratio, and the verdict of the verification."""
    facts = found.facts()
    certificate = found.file.plan.certificate
    table = plain_table("", "predicted", "measured", "measured/predicted")

    def add(name: str, predicted: float, measured: float, show: Any) -> None:
        ratio = f"{measured / predicted:.3f}" if predicted else "-"
        table.add_row(name, show(predicted), show(measured), ratio)

    def whole(nbytes: float) -> str:
        return format_size(round(nbytes))

    add("time of a pass", certificate.simulated_s, found.median_s, seconds)
    promised = facts["promised_peak_nbytes"]
    add("process peak", promised, found.peak_rss_nbytes, format_size)
    passes = len(found.measured_s)
    loads = sum(n for link, n in certificate.moved_nbytes.items() if link.startswith(f"{found.file.plan.home_tier}->"))
    add("read a pass", loads, found.read_nbytes / passes, whole)
    stored = sum(certificate.moved_nbytes.values()) - loads
    if stored:
        add("written a pass", stored, found.written_nbytes / passes, whole)
    out.print(table)
    if found.compute_s is not None and found.io_s is not None:
        limit = max(found.compute_s, found.io_s)
        out.print(
            f"{passes} passes; computing alone {seconds(found.compute_s)}, transfers alone {seconds(found.io_s)}: "
            f"{found.median_s / limit:.2f} x the slower of them; first fill {seconds(found.load_s)}"
        )
    elif found.compute_s is not None:
        plain = f"without a plan {seconds(found.compute_s)}: {found.median_s / found.compute_s:.2f} x that"
        out.print(f"{passes} steps; {plain}")
    if found.experts is not None:
        e = found.experts
        out.print(
            f"experts: hit rate {e['hit_rate']:.2f}, predicted {e['predicted_hit_rate']:.2f}; {e['misses']} read when "
            f"chosen, {e['ahead']} ahead ({e['ahead_used']} of them used), {format_size(e['read_nbytes'])} in "
            f"all; waited {seconds(e['stalled_s'])}"
        )
    if found.verified is not None:
        v = found.verified
        bits = "bits equal the unconstrained run" if v.bit_identical else "BITS DIFFER from the unconstrained run"
        out.print(f"[bold]{bits}[/]; largest difference {v.max_abs_err:.3g} from {v.reference}")


def print_machines(machines: list[Machine], *, host_measured: bool) -> None:
    """One line a machine."""
    table = plain_table("name", "tiers", "TFLOP/s", "in", words=2)
    for m in machines:
        tiers = ", ".join(f"{t.name} {format_size(t.capacity_nbytes)}" for t in m.tiers)
        dtype, rate = max(m.units[0].flops_per_s, key=lambda pair: pair[1])
        table.add_row(m.name, tiers, figure(rate / 1e12), dtype)
    out.print(table)
    if not host_measured:
        out.print("[dim]host: this box, measured by `tensorstow machine calibrate` or on first use[/]")


def print_machine(machine: Machine) -> None:
    """Every figure, then where each comes from."""
    out.print(f"[bold]{escape(machine.name)}[/]  {escape(machine.measured)}")
    tiers = plain_table("tier", "kind", "capacity", "reserve", "alignment", words=2)
    for t in machine.tiers:
        tiers.add_row(
            t.name, t.kind.value, format_size(t.capacity_nbytes), format_size(t.reserve_nbytes), str(t.alignment)
        )
    links = plain_table("link", "rate", "latency", "chunk", "channel")
    for k in machine.links:
        rate = f"{figure(k.bytes_per_s / 1e9)} GB/s"
        links.add_row(k.name, rate, seconds(k.latency_s), format_size(k.chunk_nbytes), k.channel or "its own")
    units = plain_table("unit", "tier", "memory", "launch", "threads", words=2)
    for u in machine.units:
        rate = f"{figure(u.bytes_per_s / 1e9)} GB/s"
        units.add_row(u.name, u.tier, rate, seconds(u.launch_s), str(u.threads) if u.threads else "-")
    for table in (tiers, links, units):
        out.print()
        out.print(table)
    for u in machine.units:
        _print_rates(u)
    entries = (*machine.tiers, *machine.links, *machine.units)
    sources = [(e.name, e.source) for e in entries if e.source]
    if sources:
        out.print("\n[bold]sources[/]")
        _print_rows(sources)


def _print_rates(unit: Unit) -> None:
    out.print(f"\n[bold]arithmetic of {escape(unit.name)}[/]")
    peaks = plain_table("type", "TFLOP/s")
    for dtype, rate in unit.flops_per_s:
        peaks.add_row(dtype, figure(rate / 1e12))
    out.print(peaks)
    if unit.rates:
        table = plain_table("class of operators", "type", "GFLOP/s", "GB/s", words=2)
        for r in unit.rates:
            flops = figure(r.flops_per_s / 1e9) if r.flops_per_s else "-"
            table.add_row(r.cost_class, r.dtype, flops, figure(r.bytes_per_s / 1e9) if r.bytes_per_s else "-")
        out.print()
        out.print(table)


def print_packing(outcome: Outcome) -> None:
    """Peak, bound, and how they were found."""
    rows = [
        ("buffers", str(outcome.buffers)),
        ("load bound", str(outcome.load_bound)),
        ("peak", "-" if outcome.peak is None else str(outcome.peak)),
        ("status", outcome.status),
        ("found by", f"{outcome.method} in {seconds(outcome.seconds)}"),
    ]
    _print_rows(rows)
