"""Graph and machine to a certified plan."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from ..ir.check import check
from ..ir.errors import TensorstowError
from ..ir.graph import Graph
from ..ir.machine import Machine
from ..ir.plan import Certificate, Plan
from .instance import Instance, make_instance
from .strategies import Effort, Strategy, strategies

OPTIMAL_GAP = 1e-6


@dataclass(frozen=True, slots=True)
class Bound:
    """No plan of the class that `kind` names takes less than `seconds` a pass."""

    seconds: float
    kind: str


def find_bound(instance: Instance, *, time_limit_s: float) -> Bound:
    """The best lower bound known for this order on this machine: computing alone, or the residency LP."""
    compute = Bound(sum(instance.durations_ns) / 1e9, "compute: every operator once, one after another")
    if not instance.gaps:
        return compute
    result = instance.relax(instance.capacity_nbytes, time_limit_s=time_limit_s)
    if result.bound is None or result.bound / 1e9 <= compute.seconds * (1 + OPTIMAL_GAP):
        return compute
    return Bound(result.bound / 1e9, "residency LP: any plan of this operator order, two tiers, any store times")


def certify(plan: Plan, bound: Bound) -> Plan:
    """`plan` with the bound in its certificate."""
    seconds = plan.certificate.simulated_s
    # A simulated nanosecond below the bound is rounding of durations, not a better plan.
    bound_s = min(bound.seconds, seconds) if seconds >= bound.seconds * (1 - OPTIMAL_GAP) else bound.seconds
    optimal = seconds <= bound_s * (1 + OPTIMAL_GAP)
    certificate: Certificate = replace(
        plan.certificate, bound_s=bound_s, bound_kind=bound.kind, status="optimal" if optimal else "feasible"
    )
    return replace(plan, certificate=certificate)


def run_strategy(strategy: Strategy, instance: Instance, bound: Bound, effort: Effort) -> Plan:
    """Plan, certify, and check: what leaves here has passed the checker, or AssertionError tells of our own bug."""
    plan = certify(strategy.plan(instance, effort), bound)
    violations = check(plan, instance.graph, instance.machine)
    assert not violations, f"strategy '{strategy.name}' made a wrong plan: {violations[0].message}"
    return plan


def plan_graph(
    graph: Graph,
    machine: Machine,
    *,
    strategy: str = "stow",
    mode: str = "inference",
    time_limit_s: float = 20.0,
    seed: int = 0,
) -> Plan:
    """The plan of one strategy with its certificate. Raises InfeasibleError, TimeLimitError and InputError."""
    (chosen,) = strategies([strategy])
    instance = make_instance(graph, machine, mode=mode)
    bound = find_bound(instance, time_limit_s=time_limit_s)
    return run_strategy(chosen, instance, bound, Effort(time_limit_s, seed))


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's line in a comparison: its plan, or why there is none."""

    strategy: str
    plan: Plan | None
    status: str
    reason: str
    solve_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Strategies on one instance, against one bound."""

    bound: Bound
    rows: tuple[Row, ...]


def compare(
    graph: Graph,
    machine: Machine,
    names: tuple[str, ...],
    *,
    mode: str = "inference",
    time_limit_s: float = 20.0,
    seed: int = 0,
) -> Comparison:
    """Every strategy on the same instance; one that cannot answer says why in its row."""
    chosen = strategies(names)
    instance = make_instance(graph, machine, mode=mode)
    bound = find_bound(instance, time_limit_s=time_limit_s)
    rows: list[Row] = []
    for strategy in chosen:
        began = time.monotonic()
        try:
            plan = run_strategy(strategy, instance, bound, Effort(time_limit_s, seed))
            row = Row(strategy.name, plan, plan.certificate.status, "", time.monotonic() - began)
        except TensorstowError as error:
            status = {3: "infeasible", 4: "time limit"}.get(error.exit_status, "error")
            row = Row(strategy.name, None, status, str(error), time.monotonic() - began)
        rows.append(row)
    return Comparison(bound, tuple(rows))
