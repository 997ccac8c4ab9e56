"""`tensorstow show`: a plan as text: what it promises, memory over time, who waits for what, the largest tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.markup import escape

from .console import out, percent
from .ir.check import check
from .ir.codec import to_json
from .ir.files import PlanFile
from .ir.graph import StorageKind
from .ir.plan import Plan, Residency
from .ir.simulate import simulate
from .ir.sizes import format_seconds as seconds
from .ir.sizes import format_size
from .ir.timeline import Timeline
from .moe_report import experts_text, reads_text
from .report_training import training_rows

COLUMNS = 72
ROWS = 14
LARGEST = 8

GLYPHS = {
    "kept": ("█", "a weight that never leaves"),
    "streamed": ("▒", "a weight that comes and goes"),
    "activation": ("○", "an activation, an input or an output"),
    "free": ("·", "free"),
}


def print_show(file: PlanFile) -> None:
    """Print everything about a plan that text can show."""
    plan = file.plan
    timeline = simulate(plan, file.graph, file.machine)
    _print_promise(file)
    if not plan.steps:
        out.print("no steps: every output is a view of an input")
        return
    tier = next(u.tier for u in file.machine.units if u.name == plan.steps[0].unit)
    _print_map(file, tier)
    _print_lanes(plan, timeline)
    _print_waits(plan, timeline)
    _print_largest(file, tier)


def show_facts(file: PlanFile) -> dict[str, Any]:
    """The JSON object of `show --json`: what the plan promises, what the checker says, and who waits for what."""
    plan, graph = file.plan, file.graph
    timeline = simulate(plan, graph, file.machine)
    waits = [
        {"step": s.step, "op": plan.steps[s.step].op, "wait_s": s.wait_ns / 1e9, "transfer": s.waited_for}
        for s in timeline.steps
        if s.wait_ns > 0
    ]
    return {
        **to_json(plan.certificate),
        "gap": plan.certificate.gap,
        "graph": {
            "name": graph.name,
            "ops": len(graph.operators),
            "tensors": len(graph.tensors),
            "nbytes": graph.nbytes,
        },
        "machine": file.machine.name,
        "mode": plan.mode,
        "strategy": plan.strategy,
        "steps": len(plan.steps),
        "transfers": len(plan.transfers),
        "wait_s": timeline.wait_ns / 1e9,
        "slowed_s": timeline.slowed_ns / 1e9,
        "waits": waits,
        "violations": [{"kind": v.kind, "message": v.message} for v in check(plan, graph, file.machine)],
    }


def _print_promise(file: PlanFile) -> None:
    plan, certificate = file.plan, file.plan.certificate
    out.print(f"[bold]{escape(file.graph.name)}[/] on {escape(file.machine.name)}, strategy {plan.strategy}")
    gap = "equal to it" if certificate.status == "optimal" else f"{percent(certificate.gap)} above it"
    out.print(
        f"{len(plan.steps)} steps, {seconds(certificate.simulated_s)} a pass; "
        f"proven bound {seconds(certificate.bound_s)}, this plan is {gap}"
    )
    out.print(f"[dim]bound: {escape(certificate.bound_kind)}[/]")
    experts = experts_text(file)
    if experts is not None:
        out.print(f"experts: {escape(experts)}")
        out.print(f"experts' reads: {escape(reads_text(file) or '')}")
    if file.training is not None:
        turn = [s.op for s in plan.steps].index(file.training.turn)
        out.print(f"a training step: forward to step {turn}, then backward")
        for name, text in training_rows(file, file.training):
            out.print(f"  {name}: {escape(text)}")
    violations = check(plan, file.graph, file.machine)
    verdict = "[green]nothing wrong[/]" if not violations else f"[bold red]{len(violations)} violations[/]"
    out.print(f"checker: {verdict}")
    for violation in violations[:10]:
        out.print(f"  {violation.kind}: {escape(violation.message)}")


def _print_map(file: PlanFile, tier: str) -> None:
    """Addresses upwards, steps of the pass to the right; each cell shows what covers most of it."""
    plan = file.plan
    arena, steps = max(plan.arena_nbytes.get(tier, 0), 1), len(plan.steps)
    columns = min(COLUMNS, steps)
    weight = {kind: np.zeros((ROWS, columns)) for kind in ("kept", "streamed", "activation")}
    for r in plan.residencies:
        if r.tier == tier:
            area = weight[_kind(file, r, steps)]
            for start, end in _spans(r, steps):
                rows = _cover(r.offset, r.offset + r.nbytes, arena, ROWS)
                area += np.outer(rows, _cover(start, end, steps, columns))
    out.print(f"\n[bold]memory of {tier}[/]: {format_size(arena)} of addresses, low ones below; steps 0 to {steps - 1}")
    stacked = np.stack([weight["kept"], weight["streamed"], weight["activation"]])
    free = np.maximum(0.0, 1.0 - stacked.sum(axis=0))
    choice = np.concatenate([stacked, free[None]]).argmax(axis=0)
    names = ("kept", "streamed", "activation", "free")
    for row in reversed(range(ROWS)):
        label = format_size(arena * (row + 1) // ROWS)
        out.print(f"{label:>10} " + "".join(GLYPHS[names[c]][0] for c in choice[row]))
    for name in names:
        out.print(f"{'':>10} [dim]{GLYPHS[name][0]} {GLYPHS[name][1]}[/]")


def _kind(file: PlanFile, r: Residency, steps: int) -> str:
    if not file.graph.storage[r.storage].homed:
        return "activation"
    return "kept" if r.end - r.start == steps else "streamed"


def _spans(r: Residency, steps: int) -> list[tuple[int, int]]:
    return [(r.start, min(r.end, steps))] + ([(0, r.end - steps)] if r.end > steps else [])


def _cover(lo: int, hi: int, extent: int, cells: int) -> np.ndarray:
    """The share of each of `cells` equal cells of [0, extent) that [lo, hi) covers."""
    edges = np.linspace(0, extent, cells + 1)
    return np.clip(np.minimum(edges[1:], hi) - np.maximum(edges[:-1], lo), 0, None) / (extent / cells)


def _print_lanes(plan: Plan, timeline: Timeline) -> None:
    """How busy each lane is over one pass, a character per slice of time."""
    total = max(timeline.pass_ns, 1)
    out.print(f"\n[bold]timeline[/] of one pass, {seconds(total / 1e9)}; darker is busier")
    lanes = {"compute": [(s.start_ns, s.end_ns) for s in timeline.steps]}
    for event in timeline.transfers:
        lanes.setdefault(event.lane, []).append((event.start_ns, event.end_ns))
    for name, intervals in lanes.items():
        busy = sum(_cover(max(a, 0), min(b, total), total, COLUMNS) for a, b in intervals if b > 0 and a < total)
        shades = "".join(" ░▒▓█"[min(4, int(np.ceil(4 * share - 1e-9)))] for share in np.atleast_1d(busy))
        share = sum(min(b, total) - max(a, 0) for a, b in intervals if b > 0 and a < total) / total
        out.print(f"{name:>10} {shades} {share:.0%}")


def _print_waits(plan: Plan, timeline: Timeline) -> None:
    waits = sorted((s for s in timeline.steps if s.wait_ns > 0), key=lambda s: -s.wait_ns)
    if timeline.slowed_ns:
        out.print(f"\ncomputing takes {seconds(timeline.slowed_ns / 1e9)} longer because links move bytes beside it")
    if not waits:
        out.print("no step waits")
        return
    out.print(f"\n[bold]waits[/]: {len(waits)} steps wait {seconds(timeline.wait_ns / 1e9)} in all; the longest:")
    for s in waits[:LARGEST]:
        what = plan.transfers[s.waited_for] if s.waited_for is not None else None
        cause = f"{what.link} of {what.storage}, {format_size(what.nbytes)}" if what else "?"
        out.print(
            f"  {seconds(s.wait_ns / 1e9):>9}  step {s.step} {escape(plan.steps[s.step].op)}  for {escape(cause)}"
        )


def _print_largest(file: PlanFile, tier: str) -> None:
    plan = file.plan
    moved: dict[str, int] = {}
    for t in plan.transfers:
        moved[t.storage] = moved.get(t.storage, 0) + t.nbytes
    out.print("\n[bold]largest tensors[/]")
    for s in sorted(file.graph.storages, key=lambda s: -s.nbytes)[:LARGEST]:
        stays = [r for r in plan.residencies_of.get(s.id, ()) if r.tier == tier]
        kept = sum(r.nbytes for r in stays if r.end - r.start == len(plan.steps))
        if s.kind in (StorageKind.WEIGHT, StorageKind.CONSTANT):
            where = (
                "stays"
                if kept >= s.nbytes
                else (f"{format_size(kept)} stay, " if kept else "")
                + f"{format_size(moved.get(s.id, 0))} loaded every pass"
            )
        elif s.kind is StorageKind.EXPERT:
            where = "stays in the store; its experts are cached as they are chosen"
        else:
            where = (
                f"leaves and comes back, {format_size(moved[s.id])} moved every pass"
                if s.id in moved
                else f"steps {min((r.start for r in stays), default=0)} to {max((r.end for r in stays), default=1) - 1}"
            )
        out.print(f"  {format_size(s.nbytes):>10}  {s.kind.value:<10} {escape(s.id)}: {where}")
