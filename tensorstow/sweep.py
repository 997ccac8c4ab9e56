"""Comparisons over budgets: how time grows as memory shrinks, for each strategy and for the bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .hosts import Progress, silent
from .ir.errors import InfeasibleError, InputError
from .ir.sizes import parse_size
from .workflow import Request, make_comparison, prepare

if TYPE_CHECKING:
    from .planner.compare import Comparison, Trials


@dataclass(frozen=True, slots=True)
class Point:
    """A comparison with `capacity_nbytes` in the tier that is swept; `reason` says why there is none."""

    capacity_nbytes: int
    comparison: Comparison | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Comparisons at several capacities of `tier`, the largest first. `peak_nbytes` is what a pass takes there when
    nothing ever leaves."""

    tier: str
    peak_nbytes: int
    points: tuple[Point, ...]


def make_sweep(
    request: Request, text: str, names: tuple[str, ...], progress: Progress = silent, *, trials: Trials | None = None
) -> Sweep:
    """The strategies at each budget of `text`: sizes and shares with commas between them, as in '90%,60%,300MiB'.

    Shares are of what a pass takes when nothing ever leaves. Raises InputError for a text that is none; a budget in
    which nothing fits is a point without a comparison.
    """
    tier, peak = _unconstrained(request, progress)
    budgets = sorted({_budget(entry, peak) for entry in text.split(",")}, reverse=True)
    points: list[Point] = []
    for i, budget in enumerate(budgets):
        progress(f"budget {i + 1} of {len(budgets)}", i / len(budgets))
        smaller = replace(request, machine=request.machine.with_capacity({tier: budget}))
        try:
            points.append(Point(budget, make_comparison(smaller, names, trials=trials)))
        except InfeasibleError as error:
            points.append(Point(budget, None, str(error)))
    return Sweep(tier, peak, tuple(points))


def _unconstrained(request: Request, progress: Progress) -> tuple[str, int]:
    """The tier that the unit computes from, and the bytes that a pass takes there when it is large enough for all."""
    from .planner.instance import make_instance

    tier = request.machine.units[0].tier
    roomy = replace(request, machine=request.machine.with_capacity({tier: 1 << 60}))
    lowered, machine = prepare(roomy, progress)
    instance = make_instance(lowered.graph, machine, mode=request.mode)
    return tier, instance.peak_of_all() + instance.workspace_nbytes + machine.tier[tier].reserve_nbytes


def _budget(entry: str, peak: int) -> int:
    number = entry.strip().removesuffix("%")
    if number == entry.strip():
        return parse_size(entry)
    try:
        share = float(number) / 100
    except ValueError as error:
        raise InputError(f"--sweep {entry}: write shares as 60%, sizes as 300MiB") from error
    if not 0 < share <= 10:
        raise InputError(f"--sweep {entry}: a share is above 0% and at most 1000%")
    return max(1, int(share * peak))
