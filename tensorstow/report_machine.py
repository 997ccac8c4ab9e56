"""Machines as people read them: one line each, or every figure and where it comes from."""

from __future__ import annotations

from rich.markup import escape

from .console import figure, out, plain_table, print_rows
from .ir.machine import Machine, Unit
from .ir.sizes import format_seconds as seconds
from .ir.sizes import format_size


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
    links = plain_table("link", "rate", "latency", "chunk", "channel", "contention")
    for k in machine.links:
        rate = f"{figure(k.bytes_per_s / 1e9)} GB/s"
        chunk, lent = format_size(k.chunk_nbytes), f"{k.contention:.0%}" if k.contention else "-"
        links.add_row(k.name, rate, seconds(k.latency_s), chunk, k.channel or "its own", lent)
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
        print_rows(sources)


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
