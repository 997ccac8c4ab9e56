"""The joint bound of residency and recomputation: an instance as `solvers.residency.recompute` sees it."""

from __future__ import annotations

from ..solvers.residency.problem import Gap
from ..solvers.residency.recompute import RecomputeProblem, RecomputeSolution, Value, solve_recompute
from ..solvers.result import Result, Status
from .instance import Instance
from .recompute_orders import Flow, made_anew, repeatable

WINDOWS = 48
"""Into how many windows a pass is cut for the bound of a large graph."""


def flow_of(instance: Instance) -> Flow:
    """The instance's graph and order for recomputation; the order must call each operator once."""
    assert len(set(instance.order)) == instance.steps, "recomputation starts from an order without repetitions"
    return Flow(instance.graph, instance.order, instance.durations_ns)


def recompute_problem(instance: Instance, *, any_call: bool = True) -> RecomputeProblem:
    """The instance's order of first calls with recomputation at will.

    `any_call`: whatever the checker lets a plan call again (the bound's class), else what ours do (`repeatable`). Bytes
    are those of the storages without padding. Of operators behind the turn no reads are asked when they are called
    again, which relaxes the problem and keeps it small.
    """
    flow, graph = flow_of(instance), instance.graph
    anew = made_anew(graph) if any_call else repeatable(graph)
    homed = [item.homed for item in instance.items]
    number: dict[str, int] = {}
    values: list[Value] = []
    for item in instance.items:
        if not item.homed:
            number[item.storage] = len(values)
            maker = bool(item.writes) and instance.order[item.writes[0]] in anew
            values.append(Value(graph.storage[item.storage].nbytes, item.touches, maker))
    reads = tuple(
        tuple(number[s] for s in flow.reads[op] if s in number) if t < flow.turn else ()
        for t, op in enumerate(instance.order)
    )
    needed = tuple(
        sum(graph.storage[s].nbytes for s in dict.fromkeys(flow.reads[op] + flow.writes[op])) for op in instance.order
    )
    first = {s: graph.storage[s].nbytes for s in graph.storages_of(graph.inputs)}
    link = instance.machine.link
    load = link[instance.home.name, instance.fast.name]
    store = link.get((instance.fast.name, instance.home.name))
    del first
    return RecomputeProblem(
        durations_ns=instance.durations_ns,
        needed_nbytes=needed,
        reads=reads,
        values=tuple(values),
        gaps=tuple(
            Gap(g.item, graph.storage[instance.items[g.item].storage].nbytes, g.start, g.end, g.clean)
            for g in instance.gaps
            if homed[g.item]
        ),
        capacity_nbytes=instance.capacity_nbytes,
        load_bytes_per_s=load.bytes_per_s,
        store_bytes_per_s=store.bytes_per_s if store else load.bytes_per_s / 1e6,
        shared_channel=store is not None and store.lane == load.lane,
    )


def recompute_bound(instance: Instance, *, time_limit_s: float = 30.0, windows: int = WINDOWS) -> tuple[float, str]:
    """Seconds that no plan of these first calls in this order takes less than, with any recomputation and residency on
    the instance's two tiers; and the words for it. Falls to the time of computing when time runs out."""
    result = solve_recompute(recompute_problem(instance), windows=windows, time_limit_s=time_limit_s)
    compute_ns = float(sum(instance.durations_ns))
    bound_ns = result.bound if result.bound is not None and result.status != Status.INFEASIBLE else compute_ns
    return bound_ns / 1e9, "joint LP: any recomputation, this order of first calls, two tiers"


def joint_solution(
    instance: Instance, *, time_limit_s: float, windows: int = WINDOWS, whole: bool = False
) -> Result[RecomputeSolution]:
    """What the joint program would do with the operators that our strategies may call again."""
    problem = recompute_problem(instance, any_call=False)
    return solve_recompute(problem, windows=windows, time_limit_s=time_limit_s, whole=whole)
