"""Graph and machine to a certified plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.check import check
from ..ir.errors import InfeasibleError, InputError
from ..ir.graph import Graph
from ..ir.machine import Machine
from ..ir.plan import Certificate, Plan
from ..ir.sizes import format_size
from ..solvers.engines import AUTO, NAMES
from .bounds import ROUNDING, Bound, bound_of_plan, find_bound
from .instance import Instance, make_instance
from .levels import plan_levels
from .order import feasible_instance
from .strategies import Effort, Strategy, strategies
from .validate import validate

__all__ = ["OPTIMAL_GAP", "Bound", "certify", "find_bound", "plan_graph", "run_strategy", "run_with_bound"]

OPTIMAL_GAP = ROUNDING


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
    """Plan, certify, and check: what leaves here has passed the checker, or AssertionError tells of our own bug.

    `bound` is the one of the instance's order; a plan of another order, or one that repeats operators, is judged by a
    bound that holds for it.
    """
    return run_with_bound(strategy, instance, bound, effort)[0]


def run_with_bound(strategy: Strategy, instance: Instance, bound: Bound, effort: Effort) -> tuple[Plan, Bound]:
    """As `run_strategy`, with the bound that the plan is judged by."""
    return judge(plan_levels(strategy, instance, effort), instance, bound, time_limit_s=effort.time_limit_s)


def judge(plan: Plan, instance: Instance, bound: Bound, *, time_limit_s: float) -> tuple[Plan, Bound]:
    """`plan` checked and certified by a bound that holds for it, and that bound.

    Raises InfeasibleError where it spills more than the home tier has left beside the weights.
    """
    if instance.spills_too_much(plan):
        home, spilled = instance.home, plan.arena_nbytes[instance.home.name]
        needed = home.capacity_nbytes + spilled - (instance.spill_nbytes or 0)
        raise InfeasibleError(
            f"strategy '{plan.strategy}' spills {format_size(spilled)} to tier '{home.name}', which has "
            f"{format_size(instance.spill_nbytes or 0)} left beside the weights; give it more: --tier "
            f"{home.name}={needed}"
        )
    own = bound_of_plan(plan, instance, bound, time_limit_s=time_limit_s)
    plan = certify(plan, own)
    violations = check(plan, instance.graph, instance.machine)
    assert not violations, f"strategy '{plan.strategy}' made a wrong plan: {violations[0].message}"
    return plan, own


def instance_for(
    chosen: Sequence[Strategy], graph: Graph, machine: Machine, *, mode: str, engine: str = AUTO
) -> Instance:
    """`graph` posed on `machine` in its own order; where that does not fit and a strategy may choose, in one that
    does. `engine` solves its linear and integer programs. Raises InputError for an engine that is none."""
    if engine not in NAMES:
        raise InputError(f"no engine is called '{engine}'; there are: {', '.join(NAMES)}")
    make = feasible_instance if any(getattr(s, "reorders", False) for s in chosen) else make_instance
    return replace(make(graph, machine, mode=mode), engine=engine)


def plan_graph(
    graph: Graph,
    machine: Machine,
    *,
    strategy: str = "stow",
    mode: str = "inference",
    time_limit_s: float = 20.0,
    seed: int = 0,
    engine: str = AUTO,
) -> Plan:
    """The plan of one strategy with its certificate; `engine` (`solvers.engines`) solves its programs.

    Raises InfeasibleError, TimeLimitError and InputError.
    """
    (chosen,) = strategies([strategy])
    effort = Effort(time_limit_s, seed)
    validate(graph, machine)
    instance = instance_for((chosen,), graph, machine, mode=mode, engine=engine)
    bound = find_bound(instance, time_limit_s=time_limit_s)
    return run_strategy(chosen, instance, bound, effort)
