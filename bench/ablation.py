"""What each idea is worth: `stow` with one switched off, on graphs of the zoo; and what order and recomputation add.

`python -m bench ablation`: simulated pass over the bound of the program's order, by case and variant. A variant
without an answer is told by its reason. 'order' and 'recompute' may be below 1: their plans are not of that order.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from tensorstow.ir.errors import TensorstowError
from tensorstow.planner.build import find_bound
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.order import StowOrder
from tensorstow.planner.recompute import StowRecompute
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort, Strategy

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
TIME_LIMIT_S = 40.0

VARIANTS: dict[str, Strategy] = {
    "all": Stow(),
    "no cuts": replace(Stow(), cuts=False),
    "no roundings": replace(Stow(), roundings=False),
    "no replay": replace(Stow(), replay=False),
    "no favour": replace(Stow(), favour=False),
    "no exchange": replace(Stow(), exchange=False),
    "none of them": Stow(cuts=False, roundings=False, replay=False, favour=False, exchange=False),
    "order": StowOrder(),
    "recompute": StowRecompute(),
}


def main() -> dict[str, Any]:
    """A row for each case."""
    built = {c.name: c for c in cases()}
    rows: list[dict[str, Any]] = []
    for name, specification, budget in CASES:
        case = built[name]
        graph = case.build()
        machine = machine_for(specification, graph)
        ((label, nbytes),) = budgets_of(make_instance(graph, machine, mode=case.mode), [budget]).items()
        tight = machine.with_capacity({machine.units[0].tier: nbytes})
        instance = make_instance(graph, tight, mode=case.mode)
        bound = find_bound(instance, time_limit_s=TIME_LIMIT_S)
        scores = {variant: _score(strategy, instance, bound.seconds) for variant, strategy in VARIANTS.items()}
        rows.append({"case": f"{name} {label}", "bound_s": bound.seconds, **scores})
    table(
        "ablation: simulated pass over the bound of the program's order",
        ("case", *VARIANTS),
        [[r["case"], *(_cell(r[v]) for v in VARIANTS)] for r in rows],
    )
    medians = {
        v: statistics.median([r[v] for r in rows if isinstance(r[v], float)] or [float("nan")]) for v in VARIANTS
    }
    print("median", ", ".join(f"{v} {m:.4f}" for v, m in medians.items()))
    return {"rows": rows, "medians": medians}


def _score(strategy: Strategy, instance: Instance, bound_s: float) -> float | str:
    try:
        return strategy.plan(instance, Effort(TIME_LIMIT_S)).certificate.simulated_s / bound_s
    except TensorstowError as error:
        return type(error).__name__


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"
