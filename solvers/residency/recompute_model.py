"""The rows of the program of `recompute`, one family a function, and why every plan satisfies them.

Take a plan, periodic, whose first calls come in the given order, and of its steady state the mean over passes. With
c_w the checks, window w from the start of step c_w to that of c_(w+1), the last one to the end of the pass, read off:

    q_w       time of window w beyond the first calls in it
    P_uw      bytes of value u present through the whole of the start of step c_w (that it touches none)
    R_vw      1 if operator v is called again in window w, else 0
    l_uw      bytes of u that are loaded in window w; at most all of u (further rounds of the same bytes are left out)
    C_uw      bytes of u that have been stored at least once before check w
    e_g, X_w  of what is at home: bytes that do not stay through gap g; those of them that have come for good by check w
    Z_i, W_w  of written items: bytes stored after the last write; bytes of all of them stored in window w, at any time

each but q as a fraction of its value's bytes, except X, W. Then:

- q_w >= sum of d_v R_vw, as calls follow one another.
- A value that is a byte absent at check w and present later in the window, or at the next check, has been loaded in
  between or made again. So presence at the end <= P_uw + l_uw + R_vw, and <= 1; where a first call touches u within the
  window it must be there, so 1 <= P_uw + l_uw + R_vw; after that use nothing is asked for the rest of the window.
- What v reads is there at some time in a window that calls v again, so R_vw <= P_uw + l_uw + R of the maker of u; where
  u is touched in the window, or made in it for the first time, nothing is asked.
- Bytes absent at check w that a later first call needs come back first by a load, and then they were stored before the
  check, or by a call of the maker after it: 1 - P_uw <= C_uw + sum of R_vw' from w on. Older calls' copies are as good
  here as the newest one's; the checker asks for the newest.
- What is loaded in window w was stored by its end: l_uw <= C_u(w+1). Bytes that are stored for the first time in a
  window take the link's time in it, and so do loads; links run through first calls, waits and repeated calls alike.
- At each check operands, results and all else that is present fit the capacity. Room for what is called again between
  checks, for bytes under way and for alignment is left out.
- What no later use or recomputation can profit from counts as absent; a call that only makes such bytes as not made.

Everything that is left out makes the program's optimum smaller. Fractions and means do so, too.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np

from ..builder import Columns, ProgramBuilder
from ..linear import Floats, LinearProgram
from .recompute import RecomputeProblem, RecomputeSolution

SMALL_SHARE = 1e-3
"""Values that take less than this share of the capacity all together are counted as always present, at no bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The program, and where its columns stand. `calls[v, w]` is the column of R_vw, `loads[u, w]` that of l_uw."""

    program: LinearProgram
    problem: RecomputeProblem
    checks: tuple[int, ...]
    waits: Columns
    calls: dict[tuple[int, int], int]
    loads: dict[tuple[int, int], int]
    absent: dict[int, int]
    capacity_rows: Columns
    load_rows: Columns
    store_rows: Columns
    call_rows: Columns
    byte_unit: float
    ns_unit: float

    def mended(self, duals: Floats) -> Floats:
        """The same multipliers with those of each window's time scaled down where they exceed the price of a wait.

        Any multipliers give a bound; but a wait may be very long, and would multiply the least excess that an engine's
        tolerance leaves.
        """
        mended = duals.copy()
        rows = np.unique(np.concatenate([self.load_rows, self.store_rows, self.call_rows]))
        window = {int(j): w for w, j in enumerate(self.waits)}
        starts, indices, values = self.program.starts, self.program.indices, self.program.values
        excess = np.zeros(len(self.waits))
        found: list[tuple[int, int]] = []
        for row in rows.tolist():
            for k in range(starts[row], starts[row + 1]):
                w = window.get(int(indices[k]))
                if w is not None:
                    excess[w] += float(values[k]) * min(0.0, float(duals[row]))
                    found.append((row, w))
        for row, w in found:
            if excess[w] > 1.0 - 1e-12:
                mended[row] = min(0.0, float(duals[row])) * (1.0 - 1e-12) / excess[w]
        return mended

    def read(self, values: Floats, duals: Floats | None) -> RecomputeSolution:
        """Columns in the problem's own units."""
        problem = self.problem
        repeated, loaded = [0.0] * len(problem.durations_ns), [0.0] * len(problem.values)
        absent = [0.0] * len(problem.gaps)
        for (v, _), j in self.calls.items():
            repeated[v] += max(0.0, float(values[j]))
        for (u, _), j in self.loads.items():
            loaded[u] += max(0.0, float(values[j]))
        for g, j in self.absent.items():
            absent[g] = min(1.0, max(0.0, float(values[j])))
        problem = self.problem
        y = np.maximum(0.0, -duals) if duals is not None and len(duals) else np.zeros(len(self.program.row_lower))
        prices = (
            y[self.capacity_rows] * self.ns_unit / self.byte_unit,
            y[self.load_rows] * 1e9 / problem.load_bytes_per_s,
            y[self.store_rows] * 1e9 / problem.store_bytes_per_s,
            y[self.call_rows],
        )
        waited = np.maximum(0.0, values[self.waits]) * self.ns_unit
        return RecomputeSolution(
            self.checks, tuple(repeated), tuple(loaded), tuple(absent),
            *(tuple(p.tolist()) for p in prices), waited_ns=tuple(waited.tolist()),
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class _Build:
    """The problem in scaled floats, and the columns so far. A presence that is sure is None in `present`."""

    problem: RecomputeProblem
    checks: tuple[int, ...]
    builder: ProgramBuilder
    byte_unit: float
    ns_unit: float
    until: list[int]
    waits: Columns
    present: dict[tuple[int, int], int]
    stored: dict[tuple[int, int], int]
    loads: dict[tuple[int, int], int]
    calls: dict[tuple[int, int], int]
    rows: list[tuple[float, float, list[int], list[float]]]

    @property
    def windows(self) -> int:
        return len(self.checks)

    def window_of(self, step: int) -> int:
        return bisect_right(self.checks, step) - 1

    def touched_within(self, u: int, w: int) -> bool:
        """Whether a first call touches u in window w after its check and before or at the next one."""
        touches = self.problem.values[u].touches
        after = bisect_right(touches, self.checks[w])
        limit = self.checks[w + 1] if w + 1 < self.windows else len(self.problem.durations_ns) - 1
        return after < len(touches) and touches[after] <= limit

    def row(self, lower: float, upper: float, *terms: tuple[int, float]) -> None:
        self.rows.append((lower, upper, [j for j, _ in terms], [a for _, a in terms]))


def build(problem: RecomputeProblem, checks: tuple[int, ...], *, whole: bool = False) -> Model | None:
    """The program with memory looked at in these steps, 0 first; None where there is nothing to decide."""
    build = _begin(problem, checks)
    if build is None:
        return None
    _add_columns(build)
    _comes_back(build)
    _reads_are_there(build)
    _stored_before_absent(build)
    home = _at_home(build)
    capacity_rows = _capacity(build, home)
    link_rows = _links(build, home)
    call_rows = _calls_take_time(build)
    chosen = _once_or_never(build) if whole else None
    _flush(build)
    cost = np.zeros(build.builder.columns)
    cost[build.waits] = 1.0
    program = build.builder.program(cost)
    if chosen is not None:
        integer = np.zeros(len(program.cost), dtype=np.bool_)
        integer[chosen] = True
        program = replace(program, integer=integer)
    return Model(
        program, problem, checks, build.waits, build.calls, build.loads, home.absent, capacity_rows, *link_rows,
        call_rows, build.byte_unit, build.ns_unit,
    )  # fmt: skip


def _begin(problem: RecomputeProblem, checks: tuple[int, ...]) -> _Build | None:
    if not checks or not (problem.values or problem.gaps):
        return None
    total = sum(problem.durations_ns)
    ns_unit = total / len(checks) or 1e6
    nbytes = float(max(1, problem.capacity_nbytes))
    builder = ProgramBuilder()
    rates = (problem.load_bytes_per_s, problem.store_bytes_per_s)
    sizes = float(sum(v.nbytes for v in problem.values) + sum(g.nbytes for g in problem.gaps))
    # Storing once, loading and making again everything in each window is possible; no wait need be longer than that.
    longest = (total + sum(2e9 * sizes / rate for rate in rates)) / ns_unit + 1.0
    waits = builder.add_columns(len(checks), longest)
    return _Build(problem, checks, builder, nbytes, ns_unit, _useful_until(problem), waits, {}, {}, {}, {}, [])


def _useful_until(problem: RecomputeProblem) -> list[int]:
    """For each value the last step to which its presence may be of use: its own last use, or that of what is made from
    it again; -1 for values too small to count."""
    small, total = set[int](), 0
    for u in sorted(range(len(problem.values)), key=lambda u: problem.values[u].nbytes):
        total += problem.values[u].nbytes
        if total > SMALL_SHARE * problem.capacity_nbytes:
            break
        small.add(u)
    until = [v.touches[-1] for v in problem.values]
    made: list[list[int]] = [[] for _ in problem.durations_ns]
    for u, value in enumerate(problem.values):
        if value.maker and u not in small:
            made[value.touches[0]].append(u)
    for t in reversed(range(len(problem.durations_ns))):
        for u in problem.reads[t]:
            until[u] = max([until[u], *(until[out] for out in made[t])])
    return [-1 if u in small else until[u] for u in range(len(until))]


def _add_columns(build: _Build) -> None:
    """P_uw at each check between the first step of u and the last at which it is of use, unless u is touched there;
    C_uw from then on to the end of the last window; l_uw and R_vw in the windows that begin with such a check.
    """
    problem, keys, stores = build.problem, list[tuple[int, int]](), list[tuple[int, int]]()
    for u, value in enumerate(problem.values):
        if build.until[u] < 0:
            continue
        own = [
            (u, w)
            for w in range(build.window_of(value.touches[0]) + 1, build.windows)
            if build.checks[w] < build.until[u] and build.checks[w] not in value.touches
        ]
        keys += own
        if own:
            # It may be stored from its first step on, also while first calls still touch it.
            stores += [(u, w) for w in range(build.window_of(value.touches[0]) + 1, own[-1][1] + 2)]
    build.present = _columns(build, keys)
    build.loads = _columns(build, keys)
    build.stored = _columns(build, stores)
    calls = dict.fromkeys((problem.values[u].touches[0], w) for u, w in keys if problem.values[u].maker)
    build.calls = _columns(build, list(calls))


def _columns(build: _Build, keys: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    if not keys:
        return {}
    return dict(zip(keys, build.builder.add_columns(len(keys), 1.0).tolist(), strict=True))


def _sources(build: _Build, u: int, w: int) -> list[int]:
    """Columns whose sum limits how much of u can be there in window w, where it is neither touched at its check nor
    made first in it: P_uw, l_uw, R of its maker."""
    found = [build.present[u, w], build.loads[u, w]]
    value = build.problem.values[u]
    if value.maker:
        found.append(build.calls[value.touches[0], w])
    return found


def _comes_back(build: _Build) -> None:
    """1 <= P_uw + l_uw + R_vw where u is touched in window w or at its end; P_u(w+1) <= the same where it is not."""
    for u, w in build.present:
        terms = [(j, 1.0) for j in _sources(build, u, w)]
        if build.touched_within(u, w):
            build.row(1.0, math.inf, *terms)
        elif (u, w + 1) in build.present:
            build.row(0.0, math.inf, *terms, (build.present[u, w + 1], -1.0))


def _reads_are_there(build: _Build) -> None:
    """R_vw <= P_uw + l_uw + R_v'w for each u that v reads and v' makes, where u is not touched in the window."""
    for (v, w), column in build.calls.items():
        for u in build.problem.reads[v]:
            if (u, w) in build.present and not build.touched_within(u, w):
                build.row(0.0, math.inf, *((j, 1.0) for j in _sources(build, u, w)), (column, -1.0))


def _stored_before_absent(build: _Build) -> None:
    """C_u(w+1) >= C_uw; l_uw <= C_u(w+1); 1 - P_uw <= C_uw + sum of R_vw' for w' >= w, where a later step needs u."""
    for (u, w), column in build.stored.items():
        if (u, w + 1) in build.stored:
            build.row(0.0, math.inf, (build.stored[u, w + 1], 1.0), (column, -1.0))
    for key, column in build.loads.items():
        build.row(0.0, math.inf, (build.stored[key[0], key[1] + 1], 1.0), (column, -1.0))
    later = _calls_from(build)
    for (u, w), column in build.present.items():
        value = build.problem.values[u]
        if value.touches[-1] <= build.checks[w]:
            continue
        again = [(later[value.touches[0], w], 1.0)] if value.maker else []
        build.row(1.0, math.inf, (column, 1.0), (build.stored[u, w], 1.0), *again)


def _calls_from(build: _Build) -> dict[tuple[int, int], int]:
    """Columns F_vw = the sum of R_vw' for w' >= w."""
    found: dict[tuple[int, int], int] = {}
    after: dict[int, int] = {}
    for v, w in sorted(build.calls, reverse=True):
        (total,) = build.builder.add_columns(1, float(build.windows)).tolist()
        terms = [(total, 1.0), (build.calls[v, w], -1.0)]
        if v in after:
            terms.append((after[v], -1.0))
        build.row(0.0, 0.0, *terms)
        found[v, w] = after[v] = total
    return found


@dataclass(slots=True, eq=False)
class _Home:
    """Columns of what is at home: e by gap, X, and per window loaded and stored bytes."""

    absent: dict[int, int]
    ahead: Columns
    loaded: Columns
    written: Columns


def _at_home(build: _Build) -> _Home:
    """X_(w+1) = X_w + L_w - sum of s_g e_g due in the window, all round the pass; sum of W_w >= sum of s_i Z_i;
    Z_i >= e_g for the gaps of i that are not clean."""
    problem, builder, steps = build.problem, build.builder, len(build.problem.durations_ns)
    covered: dict[int, list[int]] = {}
    for g, gap in enumerate(problem.gaps):
        inside = [w for w, c in enumerate(build.checks) if gap.start < c < gap.end or gap.start < c + steps < gap.end]
        if inside and gap.nbytes:
            covered[g] = inside
    sizes = {g: problem.gaps[g].nbytes / build.byte_unit for g in covered}
    every = sum(sizes.values())
    absent = dict(zip(covered, builder.add_columns(len(covered), 1.0).tolist(), strict=True))
    home = _Home(absent, *(builder.add_columns(build.windows, every) for _ in range(3)))
    due: list[list[tuple[int, float]]] = [[] for _ in build.checks]
    for g, column in absent.items():
        # The use at step b belongs to the window before the check that is not later than b: b in (c_w, c_(w+1)].
        due[build.window_of((problem.gaps[g].end - 1) % steps)].append((column, sizes[g]))
    for w in range(build.windows):
        following = int(home.ahead[(w + 1) % build.windows])
        terms = [(following, 1.0), (int(home.ahead[w]), -1.0), (int(home.loaded[w]), -1.0)]
        build.row(0.0, 0.0, *(terms if following != home.ahead[w] else terms[2:]), *due[w])
    _written_home(build, home, sizes)
    return home


def _written_home(build: _Build, home: _Home, sizes: dict[int, float]) -> None:
    problem = build.problem
    dirty: dict[int, list[int]] = {}
    for g in home.absent:
        if not problem.gaps[g].clean:
            dirty.setdefault(problem.gaps[g].item, []).append(g)
    if not dirty:
        for column in home.written.tolist():
            build.row(0.0, 0.0, (column, 1.0))
        return
    terms: list[tuple[int, float]] = [(column, 1.0) for column in home.written.tolist()]
    for gaps in dirty.values():
        (share,) = build.builder.add_columns(1, 1.0).tolist()
        for g in gaps:
            build.row(0.0, math.inf, (share, 1.0), (home.absent[g], -1.0))
        terms.append((share, -max(sizes[g] for g in gaps)))
    build.row(0.0, math.inf, *terms)


def _capacity(build: _Build, home: _Home) -> Columns:
    """Operands and results of step c_w + sum of s_u P_uw + X_w + sum of s_g (1 - e_g) over the gaps around it <= M."""
    problem, steps = build.problem, len(build.problem.durations_ns)
    room = np.array([(problem.capacity_nbytes - problem.needed_nbytes[c]) / build.byte_unit for c in build.checks])
    terms: list[list[tuple[int, float]]] = [[(int(x), 1.0)] for x in home.ahead]
    for (u, w), column in build.present.items():
        terms[w].append((column, problem.values[u].nbytes / build.byte_unit))
    for g, column in home.absent.items():
        gap = problem.gaps[g]
        for w, c in enumerate(build.checks):
            if gap.start < c < gap.end or gap.start < c + steps < gap.end:
                terms[w].append((column, -gap.nbytes / build.byte_unit))
                room[w] -= gap.nbytes / build.byte_unit
    first = len(build.rows)
    for w in range(build.windows):
        build.row(-math.inf, float(room[w]), *terms[w])
    return np.arange(first, first + build.windows)


def _links(build: _Build, home: _Home) -> tuple[Columns, Columns]:
    """sum of s_u l_uw + L_w <= B (D_w + q_w); sum of s_u (C_u(w+1) - C_uw) + W_w <= B' (D_w + q_w); on a shared channel
    the times of both add up. The rows of loads and those of stores, which may be the same."""
    problem = build.problem
    per_unit = 1e-9 * build.ns_unit / build.byte_unit
    load, store = problem.load_bytes_per_s * per_unit, problem.store_bytes_per_s * per_unit
    loads: list[list[tuple[int, float]]] = [[(int(x), 1.0 / load)] for x in home.loaded]
    stores: list[list[tuple[int, float]]] = [[(int(x), 1.0 / store)] for x in home.written]
    for (u, w), column in build.loads.items():
        loads[w].append((column, problem.values[u].nbytes / build.byte_unit / load))
    for (u, w), column in build.stored.items():
        size = problem.values[u].nbytes / build.byte_unit / store
        if w > 0:  # what has been stored by check w was so in window w - 1 or before
            stores[w - 1].append((column, size))
        if (u, w + 1) in build.stored:
            stores[w].append((column, -size))
    bounds = [*build.checks, len(problem.durations_ns)]
    first = len(build.rows)
    for w in range(build.windows):
        span = sum(problem.durations_ns[bounds[w] : bounds[w + 1]]) / build.ns_unit
        wait = (int(build.waits[w]), -1.0)
        lanes = ([*loads[w], *stores[w]],) if problem.shared_channel else (loads[w], stores[w])
        for lane in lanes:
            build.row(-math.inf, span, wait, *lane)
    rows = np.arange(first, len(build.rows)).reshape(build.windows, -1)
    return rows[:, 0], rows[:, -1]


def _calls_take_time(build: _Build) -> Columns:
    """q_w >= sum of d_v R_vw."""
    terms: list[list[tuple[int, float]]] = [[(int(q), -1.0)] for q in build.waits]
    for (v, w), column in build.calls.items():
        terms[w].append((column, build.problem.durations_ns[v] / build.ns_unit))
    first = len(build.rows)
    for row in terms:
        build.row(-math.inf, 0.0, *row)
    return np.arange(first, first + build.windows)


def _once_or_never(build: _Build) -> Columns:
    """sum over w of R_vw = y_v, y_v in {0, 1}: for the search for plans, no bound of all."""
    makers = sorted({v for v, _ in build.calls})
    chosen = build.builder.add_columns(len(makers), 1.0)
    terms: dict[int, list[tuple[int, float]]] = {v: [(int(y), -1.0)] for v, y in zip(makers, chosen, strict=True)}
    for (v, _), column in build.calls.items():
        terms[v].append((column, 1.0))
    for row in terms.values():
        build.row(0.0, 0.0, *row)
    return chosen


def _flush(build: _Build) -> None:
    """All rows into the builder at once."""
    rows = build.rows
    where = build.builder.add_rows(len(rows), np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
    counts = [len(r[2]) for r in rows]
    columns = np.array([j for r in rows for j in r[2]], dtype=np.int64)
    values = np.array([a for r in rows for a in r[3]], dtype=np.float64)
    build.builder.put(np.repeat(where, counts), columns, values)
