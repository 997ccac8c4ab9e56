"""Recomputation by stages: the integer programs of Checkmate, and of POET with paging, and their rounding.

Sources: Jain et al., 'Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization', MLSys 2020 (arXiv
1910.02653), section 4 (program 9) and section 5 (two-phase rounding); Patil et al., 'POET: Training Neural Networks on
Tiny Devices with Integrated Rematerialization and Paging', ICML 2022 (arXiv 2207.07697), section 4.

In stage t node t runs for the first time. R_ti: node i runs in stage t; S_tu: value u is kept into stage t; U_tk: the
bytes held when node k of stage t has run; F_tuk: value u is freed then. The one row that lets F be 1 only where
there is no hazard is written as one row for each hazard, which is tighter and makes F whole where R and S are. With
paging D_tu: a copy lies below when stage t begins; I_tu, O_tu: it is loaded, stored during stage t. A
node may make several values, which are kept each on its own. POET minimises energy
under a deadline; here it is the time of the stages, in which links run beside computing. The number of columns grows
with the square of the nodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..builder import ProgramBuilder
from ..engines import AUTO, linear_engine, solve_whole, whole_engines
from ..linear import ENGINES, Floats, Highs, LinearAnswer, LinearProgram
from ..result import Result, Status

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StageProblem:
    """Nodes in order. Node i takes `durations_ns[i]`, reads the values `reads[i]`, and may run again in the stages up
    to `again_until[i]` (i itself: never). Value u has `nbytes[u]` and is made by node `makers[u]`; `capacity_nbytes` is
    for values alone.

    `load_ns`, `store_ns`: nanoseconds per byte of paging; None: there is none.

    Raises:
        ValueError: numbers that do not match.
    """

    durations_ns: tuple[int, ...]
    nbytes: tuple[int, ...]
    makers: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    again_until: tuple[int, ...]
    capacity_nbytes: int
    load_ns: float | None = None
    store_ns: float | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.durations_ns), len(self.reads), len(self.again_until)}
        if len(lengths) != 1 or len(self.nbytes) != len(self.makers):
            raise ValueError(f"durations, reads and limits of nodes, or bytes and makers, differ in number: {lengths}")
        if any(not 0 <= maker < len(self.reads) for maker in self.makers):
            raise ValueError(f"makers {self.makers} are not all among the {len(self.reads)} nodes")
        for i, read in enumerate(self.reads):
            if any(not 0 <= u < len(self.makers) or self.makers[u] >= i for u in read):
                raise ValueError(f"node {i} reads values {read}, which must be made by nodes before it")

    @property
    def paging(self) -> bool:
        """Whether values may lie below."""
        return self.load_ns is not None and self.store_ns is not None


@dataclass(frozen=True, slots=True)
class StageSolution:
    """`calls[t]` are the nodes that run in stage t, in order; `kept[t]` the values that are kept into it."""

    calls: tuple[tuple[int, ...], ...]
    kept: tuple[frozenset[int], ...]


@dataclass(slots=True, eq=False)
class _Program:
    problem: StageProblem
    builder: ProgramBuilder
    scale: float
    unit_ns: float
    run: dict[Key, int]
    keep: dict[Key, int]
    below: dict[Key, int]
    loads: dict[Key, int]
    stores: dict[Key, int]
    free: dict[tuple[int, int, int], int]
    rows: list[tuple[float, float, list[tuple[int, float]]]]

    def row(self, lower: float, upper: float, *terms: tuple[int, float]) -> None:
        self.rows.append((lower, upper, list(terms)))

    def users(self, u: int, after: int, stage: int) -> Iterator[int]:
        """Nodes behind `after`, run in this stage, that read u."""
        return (j for j in range(after + 1, stage + 1) if u in self.problem.reads[j] and (stage, j) in self.run)


def solve_stages(
    problem: StageProblem, *, time_limit_s: float, exact: bool, engine: str = AUTO
) -> Result[StageSolution]:
    """The least time of a pass in which values are kept, made again or paged by stages, nanoseconds.

    `exact`: by branch and bound; the bound is one for plans by stages. Otherwise the linear relaxation is rounded in
    two phases (Checkmate, Algorithm 2): what is kept by more than a half stays kept, then all is run (or, where a copy
    lies below by more than a half, loaded) that these decisions need. The rounding may exceed the capacity: check it.
    `engine` is one of `engines.NAMES`.

    Raises:
        ValueError: an unknown engine.
    """
    began = time.monotonic()
    method = "stages, exact" if exact else "stages, two-phase rounding"
    program = _build(problem)
    linear = _linear(program, exact)
    answer = _answered(linear, engine, time_limit_s - (time.monotonic() - began))
    seconds = time.monotonic() - began
    if answer.values is None:
        status = answer.status if answer.status in (Status.INFEASIBLE, Status.ERROR) else Status.UNKNOWN
        return Result(status, None, None, None, seconds, method, answer.detail)
    objective = float(np.dot(linear.cost, answer.values)) * program.unit_ns
    bound = answer.bound * program.unit_ns if exact and answer.bound is not None else None
    solution = _round(program, answer.values)
    status = answer.status if exact and answer.status == Status.OPTIMAL else Status.FEASIBLE
    return Result(status, solution, objective, bound, seconds, method, answer.detail)


def _answered(linear: LinearProgram, engine: str, time_limit_s: float) -> LinearAnswer:
    """By the engine asked for; HiGHS may stop within a thousandth of an integer program's optimum."""
    if linear.integer is None:
        return ENGINES[linear_engine(engine)](linear, time_limit_s)
    if whole_engines(engine)[0] != "highs":
        return solve_whole(linear, engine, time_limit_s)
    highs = Highs(linear)
    highs.option("mip_rel_gap", 1e-3)
    return highs.solve(time_limit_s)


def _build(problem: StageProblem) -> _Program:
    count = len(problem.reads)
    until = [problem.makers[u] for u in range(len(problem.nbytes))]
    for j, read in enumerate(problem.reads):
        for u in read:
            until[u] = max(until[u], j, problem.again_until[j])
    builder = ProgramBuilder()
    run = [(t, i) for t in range(count) for i in range(t + 1) if i == t or t <= problem.again_until[i]]
    keep = [(t, u) for t in range(1, count) for u, maker in enumerate(problem.makers) if maker < t <= until[u]]
    made = _made_by(problem)
    free = [(t, u, k) for t, k in run for u in (*problem.reads[k], *made[k])]
    paged = keep if problem.paging else []
    held = [_columns(builder, keys) for keys in (run, keep, paged, paged, paged)]
    program = _Program(
        problem=problem,
        builder=builder,
        scale=float(max(1, problem.capacity_nbytes)),
        unit_ns=sum(problem.durations_ns) / count or 1.0,
        run=held[0],
        keep=held[1],
        below=held[2],
        loads=held[3],
        stores=held[4],
        free=dict(zip(free, builder.add_columns(len(free), 1.0).tolist(), strict=True)),
        rows=[],
    )
    _dependencies(program)
    _memory(program)
    return program


def _columns(builder: ProgramBuilder, keys: list[Key]) -> dict[Key, int]:
    return dict(zip(keys, builder.add_columns(len(keys), 1.0).tolist(), strict=True)) if keys else {}


def _made_by(problem: StageProblem) -> list[list[int]]:
    """Values by the node that makes them."""
    found: list[list[int]] = [[] for _ in problem.reads]
    for u, maker in enumerate(problem.makers):
        found[maker].append(u)
    return found


def _dependencies(p: _Program) -> None:
    """R_tt = 1; R_tj <= R_ti + S_tu for u that j reads and i makes; S_tu <= R_(t-1)i + S_(t-1)u + I_(t-1)u; D likewise
    from O; I_tu <= D_tu; O_tu <= R_ti + S_tu."""
    makers = p.problem.makers
    for (t, j), column in p.run.items():
        if t == j:
            p.row(1.0, 1.0, (column, 1.0))
        for u in p.problem.reads[j]:
            p.row(0.0, math.inf, *_of((p.run, (t, makers[u])), (p.keep, (t, u))), (column, -1.0))
    for (t, u), column in p.keep.items():
        before = (t - 1, u)
        p.row(0.0, math.inf, *_of((p.run, (t - 1, makers[u])), (p.keep, before), (p.loads, before)), (column, -1.0))
    for (t, u), column in p.below.items():
        before = (t - 1, u)
        p.row(0.0, math.inf, *_of((p.below, before), (p.stores, before)), (column, -1.0))
        p.row(0.0, math.inf, (column, 1.0), (p.loads[t, u], -1.0))
        p.row(0.0, math.inf, *_of((p.run, (t, makers[u])), (p.keep, (t, u))), (p.stores[t, u], -1.0))


def _of(*wanted: tuple[dict[Key, int], Key]) -> list[tuple[int, float]]:
    return [(columns[key], 1.0) for columns, key in wanted if key in columns]


def _memory(p: _Program) -> None:
    """U_t0 = sum of M_u (S_tu + I_tu); U_tk = U_t(k-1) + R_tk times what k makes - sum of M_u F_tu(k-1) <= M;
    F_tuk <= R_tk, 1 - S_(t+1)u, 1 - O_tu, and 1 - R_tj for the later j that read u."""
    size = [n / p.scale for n in p.problem.nbytes]
    made = [sum(size[u] for u in own) for own in _made_by(p.problem)]
    frees: dict[Key, list[tuple[int, float]]] = {}
    for (t, u, k), column in p.free.items():
        p.row(0.0, math.inf, (p.run[t, k], 1.0), (column, -1.0))
        blocked = [p.keep.get((t + 1, u)), p.stores.get((t, u)), *(p.run[t, j] for j in p.users(u, k, t))]
        for other in blocked:
            if other is not None:
                p.row(-math.inf, 1.0, (other, 1.0), (column, 1.0))
        frees.setdefault((t, k), []).append((column, size[u]))
    limit = p.problem.capacity_nbytes / p.scale
    by_stage: dict[int, list[int]] = {}
    for t, k in p.run:
        by_stage.setdefault(t, []).append(k)
    kept: dict[int, list[tuple[int, float]]] = {}
    for columns in (p.keep, p.loads):
        for (t, u), column in columns.items():
            kept.setdefault(t, []).append((column, -size[u]))
    for t, nodes in by_stage.items():
        level: int | None = None
        for number, k in enumerate(sorted(nodes)):
            (held,) = p.builder.add_columns(1, limit).tolist()
            terms = [(held, 1.0), (p.run[t, k], -made[k])]
            if level is None:
                terms += kept.get(t, [])
            else:
                terms += [(level, -1.0), *frees.get((t, sorted(nodes)[number - 1]), [])]
            p.row(0.0, 0.0, *terms)
            level = held


def _linear(p: _Program, exact: bool) -> LinearProgram:
    """Minimise the sum of the stages' times: each at least that of its runs, of its loads, and of its stores."""
    count = len(p.problem.reads)
    stage = p.builder.add_columns(count, math.inf)
    runs: dict[int, list[tuple[int, float]]] = {}
    for (t, i), column in p.run.items():
        runs.setdefault(t, []).append((column, -p.problem.durations_ns[i] / p.unit_ns))
    families = [runs]
    for columns, per_byte in ((p.loads, p.problem.load_ns), (p.stores, p.problem.store_ns)):
        moved: dict[int, list[tuple[int, float]]] = {}
        for (t, u), column in columns.items():
            moved.setdefault(t, []).append((column, -p.problem.nbytes[u] * (per_byte or 0.0) / p.unit_ns))
        families.append(moved)
    for family in families:
        for t, terms in family.items():
            p.row(0.0, math.inf, (int(stage[t]), 1.0), *terms)
    lower, upper = np.array([r[0] for r in p.rows]), np.array([r[1] for r in p.rows])
    where = p.builder.add_rows(len(p.rows), lower, upper)
    p.builder.put(
        np.repeat(where, [len(r[2]) for r in p.rows]),
        np.array([j for r in p.rows for j, _ in r[2]], dtype=np.int64),
        np.array([a for r in p.rows for _, a in r[2]]),
    )
    cost = np.zeros(p.builder.columns)
    cost[stage] = 1.0
    program = p.builder.program(cost)
    if not exact:
        return program
    whole = np.zeros(p.builder.columns, dtype=np.bool_)
    for columns in (p.run, p.keep, p.below, p.loads, p.stores):
        whole[list(columns.values())] = True
    return replace(program, integer=whole)


def _round(p: _Program, values: Floats) -> StageSolution:
    """Keep what is kept by more than a half; then, from the last stage back, run or load what that needs."""

    def above(columns: dict[Key, int]) -> set[Key]:
        return {key for key, column in columns.items() if values[column] > 0.5}

    problem, count = p.problem, len(p.problem.reads)
    run, keep, below = {(t, t) for t in range(count)}, above(p.keep), above(p.below)
    for t in reversed(range(count)):
        for u in sorted((u for u, maker in enumerate(problem.makers) if maker <= t), key=lambda u: -problem.makers[u]):
            maker = problem.makers[u]
            following = (t + 1, u) in keep
            read = any((t, j) in run and u in problem.reads[j] for j in range(maker + 1, t + 1))
            if (t, maker) in run or (t, u) in keep or not (following or read):
                continue
            if following and not read and (t, u) in below:
                continue  # it is loaded during this stage
            if (t, maker) in p.run:
                run.add((t, maker))
            else:
                keep.add((t, u))
    calls = tuple(tuple(i for i in range(t + 1) if (t, i) in run) for t in range(count))
    return StageSolution(calls, tuple(frozenset(u for t2, u in keep if t2 == t) for t in range(count)))
