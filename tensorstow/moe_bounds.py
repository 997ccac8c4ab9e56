"""What no plan that leaves experts in the store is below, however it caches them and reads them ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from .ir.machine import Machine
from .ir.plan import Plan
from .ir.program import ExpertCaching

if TYPE_CHECKING:
    from .planner.bounds import Bound
    from .planner.compare import Comparison, Row, Run

Judged = TypeVar("Judged", "Row", "Run")


def bounded(plan: Plan, caching: ExpertCaching, machine: Machine) -> Plan:
    """`plan` with a bound that holds however experts are cached and read ahead (`reads_hidden`)."""
    from .planner.build import OPTIMAL_GAP

    before = plan.certificate
    bound_s, kind = reads_hidden(before.bound_s, before.bound_kind, caching, machine)
    bound_s = min(bound_s, before.simulated_s)
    status = "optimal" if before.simulated_s <= bound_s * (1 + OPTIMAL_GAP) else "feasible"
    return replace(plan, certificate=replace(before, bound_s=bound_s, bound_kind=kind, status=status))


def reads_hidden(bound_s: float, kind: str, caching: ExpertCaching, machine: Machine) -> tuple[float, str]:
    """A bound, and its kind, for plans of any cache of experts: for what tokens choose in the trace, else for whatever
    they choose. `bound_s` is one for steps whose durations hold `caching.wait_ns`.

    Less the waits, it is one for the steps without them: a plan of these would take at most the waits longer with them.
    Beside it stands the time of the link for the bytes that Belady's caches of as many slots read.
    """
    return max(_computing(bound_s, kind, caching), _reading(caching, machine), key=lambda found: found[0])


def compared(found: Comparison, caching: ExpertCaching, machine: Machine) -> Comparison:
    """`found` with bounds that hold however experts are cached and read ahead: of each plan as `bounded` has it."""
    best = found.best
    bound = _held(found.bound, caching, machine)
    if best is not None and best.plan is not None:
        bound = replace(bound, seconds=min(bound.seconds, best.plan.certificate.simulated_s))
    rows = tuple(
        replace(_certified(row, caching, machine), runs=tuple(_certified(run, caching, machine) for run in row.runs))
        for row in found.rows
    )
    parts: list[Bound] = []
    for one in found.bounds:
        seconds, kind = _computing(one.seconds, one.kind, caching)
        parts.append(replace(one, seconds=seconds, kind=kind) if one.seconds else one)
    link_s, kind = _reading(caching, machine)
    if link_s:
        parts.append(replace(bound, seconds=link_s, kind=kind, nbytes=()))
    return replace(found, bound=bound, rows=rows, bounds=tuple(parts))


def _computing(bound_s: float, kind: str, caching: ExpertCaching) -> tuple[float, str]:
    return max(0.0, bound_s - caching.wait_s), f"{kind}; experts' reads behind it, or none"


def _reading(caching: ExpertCaching, machine: Machine) -> tuple[float, str]:
    from .planner.lookups import store_link

    link_s = caching.least_nbytes / store_link(machine).bytes_per_s
    return link_s, (
        f"experts' reads: what caches of {caching.slots} slots, in which a pass's experts of a layer lie side by side, "
        "read over the link where they know the trace"
    )


def _held(bound: Bound, caching: ExpertCaching, machine: Machine) -> Bound:
    seconds, kind = reads_hidden(bound.seconds, bound.kind, caching, machine)
    return replace(bound, seconds=seconds, kind=kind)


def _certified(one: Judged, caching: ExpertCaching, machine: Machine) -> Judged:
    if one.plan is None:
        return one
    plan = bounded(one.plan, caching, machine)
    said = plan.certificate
    bound = None if one.bound is None else replace(one.bound, seconds=said.bound_s, kind=said.bound_kind)
    return replace(one, plan=plan, status=said.status, bound=bound)
