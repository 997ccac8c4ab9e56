"""The joint bound of residency and recomputation: an instance as `solvers.residency.recompute` sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from ..solvers.residency.problem import Gap
from ..solvers.residency.recompute import RecomputeProblem, RecomputeSolution, Value, solve_recompute
from ..solvers.result import Result, Status
from .instance import Instance
from .one_way import store_link
from .recompute_orders import Flow, made_anew, repeatable

WINDOWS = 48
"""Into how many windows a pass is cut for the bound of a large graph."""


def flow_of(instance: Instance) -> Flow:
    """The instance's graph and order for recomputation; the order must call each operator once."""
    assert len(set(instance.order)) == instance.steps, "recomputation starts from an order without repetitions"
    return Flow(instance.graph, instance.order, instance.durations_ns)


def recompute_problem(instance: Instance, *, any_call: bool = True) -> RecomputeProblem:
    """The instance's order of first calls with recomputation at will.

    `any_call`: whatever the checker lets a plan call again (the bound's class), else what ours do (`repeatable`).
    Bytes are those of the storages without padding. A last step of no duration stands for the end of the pass, when the
    graph's outputs must be there: a plan may still move and call something after the last first call. Of operators
    behind the turn no reads are asked when they are called again, and of none that weights are there, which relaxes the
    problem and keeps it small.
    """
    flow, graph, steps = flow_of(instance), instance.graph, instance.steps
    anew = made_anew(graph) if any_call else repeatable(graph) & frozenset(flow.order[: flow.turn])
    outputs = set(graph.storages_of(graph.outputs))
    number: dict[str, int] = {}
    values: list[Value] = []
    for item in instance.items:
        nbytes = graph.storage[item.storage].nbytes
        called = {t for t in item.touches if item.storage in _touched(flow, t)} | {item.touches[0]}
        touches = tuple(sorted(called | ({steps} if item.storage in outputs else set())))
        if item.homed:
            values += [Value(nbytes, own, False) for own in lives_at_home(touches, item.writes, steps + 1)]
            continue
        number[item.storage] = len(values)
        maker = bool(item.writes) and instance.order[item.writes[0]] in anew
        values.append(Value(nbytes, touches, maker))
    reads = tuple(
        tuple(number[s] for s in flow.reads[op] if s in number) if t < flow.turn else ()
        for t, op in enumerate(instance.order)
    )
    needed = tuple(sum(graph.storage[s].nbytes for s in _touched(flow, t)) for t in range(steps))
    load, store, shared = rates_of(instance)
    return RecomputeProblem(
        durations_ns=(*instance.durations_ns, 0),
        needed_nbytes=(*needed, sum(graph.storage[s].nbytes for s in outputs)),
        reads=(*reads, ()),
        values=tuple(values),
        gaps=gaps_at_home(instance, steps + 1),
        capacity_nbytes=instance.capacity_nbytes,
        load_bytes_per_s=load,
        store_bytes_per_s=store,
        shared_channel=shared,
    )


def rates_of(instance: Instance) -> tuple[float, float, bool]:
    """Bytes per second of loads and of stores, and whether they share a channel. No way down is a very slow one."""
    load = instance.machine.link[instance.home.name, instance.fast.name]
    store = store_link(instance)
    shared = store is not None and store.lane == load.lane
    return load.bytes_per_s, store.bytes_per_s if store else load.bytes_per_s / 1e6, shared


def gaps_at_home(instance: Instance, period: int) -> tuple[Gap, ...]:
    """The gaps of what is at home and never written, in passes of so many steps: one that stands for the end of the
    pass may come between the passes."""
    wrap = period - instance.steps
    return tuple(
        Gap(
            g.item, instance.graph.storage[item.storage].nbytes, g.start, g.end + wrap * (g.end >= instance.steps), True
        )
        for g in instance.gaps
        for item in [instance.items[g.item]]
        if item.homed and not item.writes
    )


def lives_at_home(touches: Sequence[int], writes: Sequence[int], period: int) -> Iterator[tuple[int, ...]]:
    """Of what is at home and written the touches from each write to the next one, which finds what is there."""
    both = (*touches, *(t + period for t in touches))
    for begin, end in pairwise((*writes, *(w + period for w in writes[:1]))):
        yield tuple(t for t in both if begin <= t <= end)


def _touched(flow: Flow, t: int) -> frozenset[str]:
    """Storages that the operator of step t reads or writes."""
    return frozenset(flow.reads[flow.order[t]] + flow.writes[flow.order[t]])


def recompute_bound(instance: Instance, *, time_limit_s: float = 30.0, windows: int = WINDOWS) -> tuple[float, str]:
    """Seconds that no plan of these first calls in this order takes less than, with any recomputation and residency on
    the instance's two tiers; and the words for it. Falls to the time of computing when time runs out."""
    result = solve_recompute(recompute_problem(instance), windows=windows, time_limit_s=time_limit_s)
    compute_ns = float(sum(instance.durations_ns))
    bound_ns = result.bound if result.bound is not None and result.status != Status.INFEASIBLE else compute_ns
    return bound_ns / 1e9, "joint LP: any recomputation, this order of first calls, two tiers"


def with_margin(problem: RecomputeProblem, margin: tuple[float, float]) -> RecomputeProblem:
    """The problem on a machine with these shares of the links' rates and of the capacity, which still holds each step's
    operands: what is right there leaves room to whole storages and their addresses here."""
    rate, room = margin
    return replace(
        problem,
        capacity_nbytes=max(int(room * problem.capacity_nbytes), max(problem.needed_nbytes, default=0)),
        load_bytes_per_s=rate * problem.load_bytes_per_s,
        store_bytes_per_s=rate * problem.store_bytes_per_s,
    )


def joint_solution(
    instance: Instance,
    *,
    time_limit_s: float,
    windows: int = WINDOWS,
    whole: bool = False,
    margin: tuple[float, float] = (1.0, 1.0),
) -> Result[RecomputeSolution]:
    """What the joint program would do with the operators that our strategies may call again, by steps of the order; on
    a machine with these shares of the links' rates and of the capacity."""
    problem = with_margin(recompute_problem(instance, any_call=False), margin)
    result = solve_recompute(problem, windows=windows, time_limit_s=time_limit_s, whole=whole)
    if result.solution is None:
        return result
    return replace(result, solution=replace(result.solution, repeated=result.solution.repeated[: instance.steps]))
