"""What each idea is worth: `stow` with one switched off or one more switched on, on graphs of the zoo.

`python -m bench ablation`: simulated pass over the bound of the program's order, by case and variant;
`python -m bench.ablation --cases N --time-limit S` for a part of it. Each variant begins with the residency program of
the bound solved and nothing else. A variant without an answer is told by its reason. Three are not of that class, and
may be below 1: 'order' and 'recompute' plan other orders. 'windows' adds integer programs where a plan waits longest;
'one pass' lets no weight stay from one pass to the next, so that its distance from 'all' is what repetition is worth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tensorstow.ir.errors import TensorstowError
from tensorstow.planner.build import find_bound
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.order import StowOrder
from tensorstow.planner.recompute import StowRecompute
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort, Strategy

from .ablation_variants import OnePass, Windows
from .common import table
from .zoo import cases
from .zoo.machines import budgets_of, machine_for

CASES = (
    ("gpt2", "rtx4090/2", "40"),
    ("gpt2", "rtx4090/2", "smallest"),
    ("llama-1b", "rtx4090/2", "60"),
    ("resnet50", "jetson-orin/2", "40"),
    ("unet", "jetson-orin/2", "60"),
    ("gpt2-train", "rtx4090/2", "80"),
    ("gpt2-train", "rtx4090/2", "60"),
    ("resnet50-train", "rtx4090/2", "60"),
)
TIME_LIMIT_S = 12.0
"""For each variant: `stow` spends a third of it on searching, variants that add to it all."""

VARIANTS: dict[str, Strategy] = {
    "all": Stow(),
    "no cuts": replace(Stow(), cuts=False),
    "no roundings": replace(Stow(), roundings=False),
    "no repair": replace(Stow(), repair=False),
    "no replay": replace(Stow(), replay=False),
    "no favour": replace(Stow(), favour=False),
    "no exchange": replace(Stow(), exchange=False),
    "none of them": Stow(cuts=False, roundings=False, replay=False, favour=False, exchange=False),
    "windows": Windows(),
    "one pass": OnePass(),
    "order": StowOrder(),
    "recompute": StowRecompute(),
}


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """A row for each case."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation")
    parser.add_argument("--cases", type=int, default=len(CASES), help="so many of the cases, the first ones")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S, help="seconds for each variant")
    given = parser.parse_args(arguments)
    rows = [measure(*case, time_limit_s=given.time_limit) for case in CASES[: given.cases]]
    table(
        "ablation: simulated pass over the bound of the program's order",
        ("case", *VARIANTS),
        [[r["case"], *(_cell(r[v]) for v in VARIANTS)] for r in rows],
    )
    means = {v: _worth(rows, v) for v in VARIANTS}
    for variant, worth in means.items():
        said = "no case has both" if worth is None else f"{worth:.4f} of the time of 'all' (geometric mean)"
        missing = sum(not isinstance(r[variant], float) for r in rows)
        print(f"{variant}: {said}" + (f"; no plan in {missing} of {len(rows)} cases" if missing else ""))
    return {"rows": rows, "over_all": means}


def measure(name: str, specification: str, budget: str, *, time_limit_s: float) -> dict[str, Any]:
    """The row of a case: its bound, and simulated over bound, or why there is no plan, by variant."""
    case = next(c for c in cases() if c.name == name)
    graph = case.build()
    machine = machine_for(specification, graph)
    ((label, nbytes),) = budgets_of(make_instance(graph, machine, mode=case.mode), [budget]).items()
    instance = make_instance(graph, machine.with_capacity({machine.units[0].tier: nbytes}), mode=case.mode)
    bound = find_bound(instance, time_limit_s=4 * time_limit_s)
    relaxed = instance.relax(instance.capacity_nbytes, time_limit_s=4 * time_limit_s)
    row: dict[str, Any] = {"case": f"{name} {label}", "bound_s": bound.seconds, "seconds": {}}
    for variant, strategy in VARIANTS.items():
        alone = replace(instance)  # what other variants have solved is not to help
        alone.remember(alone.capacity_nbytes, relaxed)
        began = time.monotonic()
        row[variant] = _score(strategy, alone, bound.seconds, time_limit_s)
        row["seconds"][variant] = round(time.monotonic() - began, 1)
        print(f"{row['case']}: {variant} {_cell(row[variant])}", file=sys.stderr, flush=True)
    return row


def _worth(rows: Sequence[dict[str, Any]], variant: str) -> float | None:
    both = [r[variant] / r["all"] for r in rows if isinstance(r[variant], float) and isinstance(r["all"], float)]
    return statistics.geometric_mean(both) if both else None


def _score(strategy: Strategy, instance: Instance, bound_s: float, time_limit_s: float) -> float | str:
    try:
        return strategy.plan(instance, Effort(time_limit_s)).certificate.simulated_s / bound_s
    except TensorstowError as error:
        return type(error).__name__


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


if __name__ == "__main__":
    main(sys.argv[1:])
