"""Plans of whole training steps: keep, offload and recompute decided together, beside what is published.

`python -m bench.training_plans` plans the training steps of `bench.zoo` under shares of what a step holds when nothing
ever leaves. Of each plan it prints the simulated time over that of computing alone and over the joint bound (any
recomputation, this order of first calls), how many calls are repeated, the bytes moved, and the seconds it took. All
plans pass the checker. `--help` selects; `box` is a machine of two cores and a disk: 120 GFLOP/s, 10 GB/s of memory,
1 GB/s of reads and 1.9 GB/s of writes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tensorstow.ir.check import check
from tensorstow.ir.errors import TensorstowError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.recompute_bound import recompute_bound
from tensorstow.planner.strategies import Effort, Strategy, strategies

from .common import table
from .zoo import Case, cases
from .zoo.machines import budgets_of, machine_for

BUDGETS = ("90", "75", "60", "50", "40", "30", "25")
MACHINES = ("box", "rtx4090/2")
STRATEGIES = ("stow-recompute", "stow", "checkpoint-sqrt", "checkpoint-mincut", "torch-knapsack", "memo", "capuchin")
TERABYTE = 10**12
COLUMNS = ("graph", "machine", "budget", "strategy", "/ compute", "/ bound", "again", "moved MiB", "seconds", "reason")


def box() -> Machine:
    """Two cores over a disk."""
    return Machine(
        name="box",
        tiers=(
            Tier("dram", TierKind.DRAM, TERABYTE),
            Tier("ssd", TierKind.SSD, 4 * TERABYTE, alignment=4096),
        ),
        links=(Link("ssd", "dram", 1e9, 1e-4), Link("dram", "ssd", 1.9e9, 1e-4)),
        units=(Unit("cpu", "dram", (("float32", 120e9),), 10e9, 5e-6),),
    )


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Plan the selected cases, print the table, and return the rows."""
    given = _parse(arguments)
    rows: list[dict[str, Any]] = []
    for case in (c for c in cases() if c.mode == "training" and (not given.graphs or c.name in given.graphs)):
        for machine in given.machines:
            for row in _rows(case, machine, given):
                rows.append(row)
                print("  ".join(_cells(row)), file=sys.stderr, flush=True)
    table("training steps", COLUMNS, [_cells(row) for row in rows])
    return {"rows": rows}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m bench.training_plans", description="lists are 'a,b,...'")
    parser.add_argument("--graphs", type=names, default=[], help="training cases of the zoo by name; default: all")
    parser.add_argument("--machines", type=names, default=list(MACHINES), help="'box', or as for bench.gaps")
    parser.add_argument("--budgets", type=names, default=list(BUDGETS), help="percentages of the unconstrained peak")
    parser.add_argument("--strategies", type=names, default=list(STRATEGIES))
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for each strategy")
    return parser.parse_args(arguments)


def _rows(case: Case, machine: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    graph: Graph = case.build()
    whole = box() if machine == "box" else machine_for(machine, graph)
    budgets = budgets_of(make_instance(graph, whole, mode=case.mode), given.budgets)
    for name, nbytes in budgets.items():
        budget = whole.with_capacity({whole.units[0].tier: nbytes})
        instance = make_instance(graph, budget, mode=case.mode)
        bound_s, _ = recompute_bound(instance, time_limit_s=given.time_limit)
        for strategy in strategies(given.strategies):
            row = {"graph": case.name, "machine": machine, "budget": name, "strategy": strategy.name}
            yield row | _planned(strategy, instance, bound_s, given.time_limit)


def _planned(strategy: Strategy, instance: Instance, bound_s: float, limit_s: float) -> dict[str, Any]:
    began = time.monotonic()
    try:
        plan = strategy.plan(instance, Effort(limit_s))
    except TensorstowError as error:
        return {"solve_s": time.monotonic() - began, "reason": f"{type(error).__name__}: {error}"}
    solve_s = time.monotonic() - began
    wrong = check(plan, instance.graph, instance.machine)
    assert not wrong, f"'{strategy.name}' made a wrong plan: {wrong[0].message}"
    made = plan.certificate
    return {
        "to_compute": made.simulated_s * 1e9 / sum(instance.durations_ns),
        "to_bound": made.simulated_s / bound_s,
        "again": len(plan.steps) - instance.steps,
        "moved_nbytes": sum(made.moved_nbytes.values()),
        "solve_s": solve_s,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    first = [str(row[c]) for c in ("graph", "machine", "budget", "strategy")]
    if "reason" in row:
        return [*first, "", "", "", "", f"{row['solve_s']:.1f}", str(row["reason"])[:60]]
    ratios = [f"{row['to_compute']:.4f}", f"{row['to_bound']:.4f}", str(row["again"])]
    return [*first, *ratios, str(row["moved_nbytes"] >> 20), f"{row['solve_s']:.1f}", ""]


if __name__ == "__main__":
    main(sys.argv[1:])
