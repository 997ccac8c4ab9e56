"""Strategies side by side: one instance, one simulator, a bound that holds for all that is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from statistics import median

from ..ir.errors import InputError
from ..ir.graph import Graph
from ..ir.machine import Machine
from ..ir.plan import Plan
from ..solvers.engines import AUTO
from .bounds import Bound, common_bound, find_bounds, largest
from .build import instance_for
from .instance import Instance
from .strategies import Effort, Strategy, strategies, strategy_names
from .validate import validate
from .workers import Outcome, Task, run_here, run_in_workers

Progress = Callable[[str, float], None]

DEFAULTS: dict[str, tuple[str, ...]] = {
    "inference": ("stow", "resident", "on-demand", "lru", "belady-prefetch", "offload-everything", "flexgen"),
    "training": (
        "stow",
        "stow-recompute",
        "resident",
        "belady-prefetch",
        "offload-everything",
        "checkpoint-sqrt",
        "checkpoint-mincut",
        "capuchin",
    ),
}
"""By mode, what is compared unless it is said what: see `default_names`."""

ALL = "all"


def default_names(mode: str) -> tuple[str, ...]:
    """The strategies that a comparison runs unless it is told which: ours for the mode, and what a reader would do
    without it.

    For both: what frameworks do (`resident`: all stays; `offload-everything`: all goes) and the best that a cache can
    do (`belady-prefetch`). For inference also a loader that waits (`on-demand`), the cache in common use (`lru`) and
    FlexGen's policy. For training also recomputation, ours (`stow-recompute`), by segments (`checkpoint-sqrt`) and by
    minimum cut (`checkpoint-mincut`), and swapping before recomputing (`capuchin`). Each takes seconds where the
    others, exact searches and reimplementations for single claims, may take all of the time limit; 'all' names those,
    too.
    """
    return DEFAULTS.get(mode, DEFAULTS["inference"])


def chosen_names(listed: str | None, mode: str) -> tuple[str, ...]:
    """Strategy names from 'a,b,...', from 'all' (every registered one) or from None (`default_names`).

    Raises InputError where the list names none.
    """
    if listed is None:
        return default_names(mode)
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    if names == (ALL,):
        return strategy_names()
    if not names:
        raise InputError(f"--strategies '{listed}' names none; give '{ALL}', or some of: {', '.join(strategy_names())}")
    return names


@dataclass(frozen=True, slots=True)
class Trials:
    """How a comparison is run.

    Each strategy runs once for each seed of `seeds`. `time_limits` are seconds by strategy, where they differ from the
    common limit. `workers`: how many runs at once, each in a process of its own, so that one that crashes, hangs or
    takes too much memory costs its own row alone; with 0 all run in this process, one after another, and nothing can
    be stopped. `memory_limit_nbytes`: address space that each worker may take beyond what it has when it begins.

    Raises:
        InputError: no seed, a number below zero, a limit without workers.
    """

    seeds: tuple[int, ...] = (0,)
    time_limits: Mapping[str, float] = field(default_factory=dict[str, float])
    workers: int = 0
    memory_limit_nbytes: int | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"the seeds {list(self.seeds)} are not one or more different ones")
        if self.workers < 0:
            raise InputError(f"{self.workers} workers; give 0 (run in this process) or more")
        for name, seconds in self.time_limits.items():
            if not 0 < seconds < float("inf"):
                raise InputError(f"the time limit of strategy '{name}' is {seconds:g} s; give seconds above zero")
        if self.memory_limit_nbytes is not None and not self.workers:
            raise InputError("a memory limit needs workers, as it is set on their processes; give --workers 1 or more")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a strategy: its plan with the bound for it, or why there is none.

    `status`: 'optimal', 'feasible', 'infeasible' (proven), 'time limit', 'not applicable', 'crashed', 'memory',
    'error'. `solve_s` is the wall time of planning, certifying and checking.
    """

    seed: int
    plan: Plan | None
    status: str
    reason: str
    solve_s: float
    bound: Bound | None = None

    @property
    def simulated_s(self) -> float | None:
        """Simulated seconds of a pass."""
        return None if self.plan is None else self.plan.certificate.simulated_s


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's line in a comparison: the best plan of its runs with the bound for it, or why there is none.

    `solve_s` is the median of the runs'. `reason` also says how many runs failed where others did not.
    """

    strategy: str
    plan: Plan | None
    status: str
    reason: str
    solve_s: float
    bound: Bound | None = None
    runs: tuple[Run, ...] = ()

    @property
    def spread_s(self) -> tuple[float, float, float] | None:
        """Least, median and largest simulated time of the runs that have a plan."""
        times = [r.simulated_s for r in self.runs if r.simulated_s is not None]
        return (min(times), float(median(times)), max(times)) if times else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Strategies on one instance. `bound` holds for every plan shown; `bounds` are all that are known of the graph's
    own order and of any other. `hooked`: why a training step has no graph of its operators; what is compared then is
    where its saved tensors wait, as hooks would run it."""

    bound: Bound
    rows: tuple[Row, ...]
    bounds: tuple[Bound, ...] = ()
    hooked: str | None = None

    @property
    def best(self) -> Row | None:
        """The row of the fastest plan; of equal ones the one that moves fewer bytes, then the first."""
        answered = [r for r in self.rows if r.plan is not None]
        return min(answered, key=_rank) if answered else None

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The fastest first; those without a plan last, in the order in which they were named."""
        return tuple(sorted(self.rows, key=_rank))

    def gap(self, row: Row) -> float | None:
        """How far the row's plan is above the common bound: simulated / bound - 1."""
        if row.plan is None:
            return None
        seconds = row.plan.certificate.simulated_s
        return max(0.0, seconds / self.bound.seconds - 1) if self.bound.seconds > 0 else 0.0


def _rank(row: Row | Run) -> tuple[bool, float, int]:
    if row.plan is None:
        return True, 0.0, 0
    certificate = row.plan.certificate
    return False, certificate.simulated_s, sum(certificate.moved_nbytes.values())


def _silent(what: str, share: float) -> None:
    del what, share


def compare(
    graph: Graph,
    machine: Machine,
    names: tuple[str, ...],
    *,
    mode: str = "inference",
    time_limit_s: float = 20.0,
    seed: int = 0,
    engine: str = AUTO,
    trials: Trials | None = None,
    progress: Progress = _silent,
) -> Comparison:
    """Every named strategy on the same instance; one that cannot answer says why in its row. `engine` as in
    `build.plan_graph`.

    Without `trials` each runs once, with `seed`, in this process.
    Raises InputError for names that are not registered or named twice, and for a graph or machine that cannot be;
    InfeasibleError where no strategy could have a plan.
    """
    trials = Trials(seeds=(seed,)) if trials is None else trials
    chosen = _chosen(names, trials)
    validate(graph, machine)
    instance = instance_for(chosen, graph, machine, mode=mode, engine=engine)
    bounds = find_bounds(instance, time_limit_s=time_limit_s)
    bound = largest(bounds)
    tasks = [
        Task(strategy, Effort(trials.time_limits.get(strategy.name, time_limit_s), s))
        for strategy, s in product(chosen, trials.seeds)
    ]
    outcomes = _run(instance, bound, tasks, trials, progress)
    per_strategy = len(trials.seeds)
    rows = tuple(
        _row(strategy.name, [_as_run(o) for o in outcomes[i * per_strategy : (i + 1) * per_strategy]])
        for i, strategy in enumerate(chosen)
    )
    return Comparison(common_bound([r.bound for r in rows if r.bound], bound), rows, bounds)


def _chosen(names: tuple[str, ...], trials: Trials) -> list[Strategy]:
    if not names or len(set(names)) < len(names):
        raise InputError(f"the strategies {', '.join(names) or '(none)'} are not one or more different ones")
    unknown = [n for n in trials.time_limits if n not in names]
    if unknown:
        raise InputError(f"a time limit is given for strategy '{unknown[0]}', which is none of {', '.join(names)}")
    return strategies(names)


def _run(instance: Instance, bound: Bound, tasks: list[Task], trials: Trials, progress: Progress) -> list[Outcome]:
    if trials.workers:
        return run_in_workers(
            instance, bound, tasks,
            workers=trials.workers, memory_limit_nbytes=trials.memory_limit_nbytes, progress=progress,
        )  # fmt: skip
    found: list[Outcome] = []
    for i, task in enumerate(tasks):
        progress(f"planning with {task.strategy.name}", i / len(tasks))
        found.append(run_here(instance, bound, task))
    return found


def _as_run(outcome: Outcome) -> Run:
    return Run(outcome.seed, outcome.plan, outcome.status, outcome.reason, outcome.solve_s, outcome.bound)


def _row(name: str, runs: list[Run]) -> Row:
    best = min(runs, key=_rank)
    failed = [r for r in runs if r.plan is None]
    reason = best.reason
    if best.plan is not None and failed:
        reason = f"{len(failed)} of {len(runs)} runs have no plan; seed {failed[0].seed}: {failed[0].reason}"
    return Row(
        name, best.plan, best.status, reason, float(median(r.solve_s for r in runs)), best.bound, tuple(runs)
    )  # fmt: skip
