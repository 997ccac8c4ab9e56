"""The main job, step by step: model -> graph -> plan -> file."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .disk_now import DiskNow, with_disk_now
from .executors import measure_fixed, open_executor
from .hosts import Progress, require_host, runs_here, silent
from .ir.errors import InfeasibleError, InputError
from .ir.files import PlanFile
from .ir.graph import Graph
from .ir.machine import Machine
from .ir.paths import cache_scratch
from .ir.plan import Plan
from .ir.sizes import format_size
from .models import Lowered, Model

if TYPE_CHECKING:
    from .planner.compare import Comparison, Trials


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan. `profile` measures each operator on this box instead of using formulas; `engine` is one of
    `solvers.engines.NAMES`. `disk` is what was found of the disk, once it was `looked_at`."""

    model: Model
    machine: Machine
    mode: str = "inference"
    profile: bool = False
    time_limit_s: float = 20.0
    seed: int = 0
    engine: str = "auto"
    looked_at: bool = False
    disk: DiskNow | None = None


@runtime_checkable
class TrainsHere(Protocol):
    """A model whose planned steps run in the process that plans them."""

    def held_beside_nbytes(self) -> int:
        """What this process holds beside what a plan counts."""
        ...


DEFAULT_STRATEGY = {"training": "stow-recompute"}
"""By mode, where it is not `stow`: in training what decides about keeping, moving and recomputing together."""
PROFILED_PASSES = 5
PROFILED = "profile of this model"
PROFILED_NBYTES = 16 << 20
"""A link's rate is taken from a profile when a pass moves at least this much; less says little."""
TRIES = 5
"""So many plans are made for a limit of the process."""


def look_at_disk(request: Request) -> Request:
    """The request for the disk as it is now, if it names this box as it was measured; once for all its plans."""
    if request.looked_at:
        return request
    machine, disk = with_disk_now(request.machine, request.model.source())
    return replace(request, machine=machine, looked_at=True, disk=disk)


def prepare(request: Request, progress: Progress = silent) -> tuple[Lowered, Machine]:
    """The model lowered and split for the machine's budget, and the machine; measured in real passes if asked to."""
    lowered = request.model.lower(request.machine, request.mode, progress)
    return _profiled(lowered, request, progress) if request.profile else (lowered, request.machine)


def _plan(lowered: Lowered, machine: Machine, request: Request, strategy: str) -> Plan:
    from .planner.build import plan_graph

    def solve(graph: Graph) -> Plan:
        return plan_graph(
            graph,
            machine,
            strategy=strategy,
            mode=request.mode,
            time_limit_s=request.time_limit_s,
            seed=request.seed,
            engine=request.engine,
        )

    plan = solve(lowered.graph)
    if lowered.improve is not None:
        plan = lowered.improve(plan, lowered.graph, machine, solve, request.time_limit_s)
    if lowered.module is None or lowered.module.experts is None:
        return plan
    from .moe_bounds import bounded

    return bounded(plan, lowered.module.experts, machine)


def _file(plan: Plan, lowered: Lowered, machine: Machine, request: Request) -> PlanFile:
    return PlanFile(
        plan, lowered.graph, machine, lowered.program, request.model.source(), 0, lowered.module, lowered.training
    )


def _profiled(lowered: Lowered, request: Request, progress: Progress) -> tuple[Lowered, Machine]:
    """Plan by formulas, run that plan, and take operators and links as they were then: beside one another."""
    from .moe_runs import as_profiled, profile_passes

    machine = request.machine
    if lowered.training is not None:
        raise InputError(
            "a profile is taken in passes of inference; the operators of a training step are measured one by one on "
            "this box anyway: leave --profile out"
        )
    require_host(machine)
    progress("planning by formulas", 0.0)
    plan = _plan(lowered, machine, request, "stow")
    with open_executor(_file(plan, lowered, machine, request), progress=progress) as executor:
        progress(f"measuring {PROFILED_PASSES} passes", 0.0)
        executor.load()
        profile, seen = profile_passes(executor, PROFILED_PASSES)
    moved = plan.certificate.moved_nbytes
    links = tuple(
        replace(k, bytes_per_s=profile.lane_bytes_per_s[k.lane], latency_s=0.0, contention=0.0, source=PROFILED)
        if k.lane in profile.lane_bytes_per_s and moved.get(k.name, 0) >= PROFILED_NBYTES
        else k
        for k in machine.links
    )
    timed = lowered.with_times(profile.operator_ns)
    if timed.module is not None:
        timed = replace(timed, module=as_profiled(timed.module, seen))
    return timed, replace(machine, links=links)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan file, and the seconds that lowering, solving and checking took; `disk` where it is not as it was."""

    file: PlanFile
    solve_s: float
    disk: DiskNow | None = None


def _require_cache(request: Request) -> None:
    """Refuse before the work, not after it, where the process's fixed part could not be measured: that takes a folder
    in the cache. Raises ExecutionError."""
    if runs_here(request.machine) and request.model.source() is not None:
        with cache_scratch():
            pass


def make_plan(request: Request, *, strategy: str | None = None, progress: Progress = silent) -> Planned:
    """Plan a model: the whole path from the model to a certified plan file. `strategy` by default that of the mode."""
    began = time.perf_counter()
    strategy = strategy or DEFAULT_STRATEGY.get(request.mode, "stow")
    request = look_at_disk(request)
    _require_cache(request)
    try:
        lowered, machine = prepare(request, progress)
        progress(f"planning {len(lowered.graph.operators)} operators", 0.0)
        plan = _plan(lowered, machine, request, strategy)
    except InfeasibleError as error:
        raise _with_smallest_budget(error, request, progress) from error
    file = _file(plan, lowered, machine, request)
    solve_s = time.perf_counter() - began
    if not runs_here(request.machine):
        return Planned(file, solve_s, request.disk)
    if file.source is None:  # a module in memory: its steps run in this process; of inference nothing is promised
        fixed = request.model.held_beside_nbytes() if isinstance(request.model, TrainsHere) else 0
        return Planned(replace(file, fixed_nbytes=fixed), solve_s, request.disk)
    progress("measuring the process's fixed part", 0.0)
    return Planned(replace(file, fixed_nbytes=measure_fixed(file)), solve_s, request.disk)


def limit_process(
    request: Request, limit_nbytes: int, strategy: str | None = None, progress: Progress = silent
) -> Planned:
    """A plan whose promised process peak stays within `limit_nbytes`: plan, measure the fixed part, plan again inside
    what it leaves, until the sum holds. The fixed part depends a little on the plan: from the second time on it is
    given as much more room as it grew."""
    require_host(request.machine)
    request = look_at_disk(request)
    tier = request.machine.units[0].tier
    fixed = 0
    for _ in range(TRIES):
        budget = limit_nbytes - fixed
        if budget <= request.machine.tier[tier].reserve_nbytes:
            raise InfeasibleError(
                f"the process's fixed part takes {format_size(fixed)} of the limit of {format_size(limit_nbytes)}; "
                "nothing is left for the model: raise --process-limit",
                smallest_nbytes=fixed,
            )
        machine = request.machine.with_capacity({tier: budget})
        try:
            planned = make_plan(replace(request, machine=machine), strategy=strategy, progress=progress)
        except InfeasibleError as error:
            raise _with_fixed_part(error, fixed, limit_nbytes) from error
        if planned.file.promised_peak_nbytes <= limit_nbytes:
            return planned
        found = planned.file.fixed_nbytes
        grew = max(4096, found - fixed) if fixed else 0
        fixed = max(fixed, found) + grew
    raise InputError(f"the fixed part did not settle within a limit of {format_size(limit_nbytes)}; raise it a little")


def _with_fixed_part(error: InfeasibleError, fixed: int, limit_nbytes: int) -> InfeasibleError:
    """The same error in terms of the process: what it must be allowed in all."""
    text = str(error).split("; the smallest feasible")[0]
    if error.smallest_nbytes is None:
        return error
    if not fixed:
        return InfeasibleError(
            f"{text}; a process limit of {format_size(limit_nbytes)} must hold at least {error.smallest_nbytes} bytes "
            "for the model, and interpreter and libraries beside them: raise --process-limit",
            smallest_nbytes=error.smallest_nbytes,
        )
    smallest = fixed + error.smallest_nbytes
    return InfeasibleError(
        f"{text}, since the process's fixed part takes {format_size(fixed)} of {format_size(limit_nbytes)}; give it "
        f"--process-limit {smallest}",
        smallest_nbytes=smallest,
    )


def make_comparison(
    request: Request, names: tuple[str, ...], progress: Progress = silent, *, trials: Trials | None = None
) -> Comparison:
    """Every named strategy on one model, scored by one simulator against one bound; `trials` says how often, and in
    how many processes."""
    from .planner.compare import compare

    request = look_at_disk(request)
    try:
        lowered, machine = prepare(request, progress)
        progress(f"comparing {len(names)} strategies", 0.0)
        found = compare(
            lowered.graph,
            machine,
            names,
            mode=request.mode,
            time_limit_s=request.time_limit_s,
            seed=request.seed,
            engine=request.engine,
            trials=trials,
            progress=progress,
        )
        if lowered.module is not None and lowered.module.experts is not None:
            from .moe_bounds import compared

            found = compared(found, lowered.module.experts, machine)
        by_hooks = lowered.training.hooked if lowered.training is not None else None
        return found if by_hooks is None else replace(found, hooked=by_hooks.why)
    except InfeasibleError as error:
        raise _with_smallest_budget(error, request, progress) from error


def _with_smallest_budget(error: InfeasibleError, request: Request, progress: Progress) -> InfeasibleError:
    """The same error, with the smallest budget that works when weights are split as finely as that budget asks."""
    progress("looking for the smallest feasible budget", 0.0)
    tier = request.machine.units[0].tier
    smallest = request.model.smallest_budget(request.machine)
    text = str(error).split("; the smallest feasible")[0]
    return InfeasibleError(
        f"{text}; the smallest feasible budget is {format_size(smallest)}: --tier {tier}={smallest}",
        smallest_nbytes=smallest,
    )
