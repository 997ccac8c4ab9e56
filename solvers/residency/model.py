"""The residency problem as a linear program, one family of rows a function. DESIGN 4.1.

Each step t has two phases: a wait of q_t >= 0, then the operator for d_t. Links run in both; memory is checked when
the operator starts and when it ends. Variables, in units of bytes and time that bring all of them near 1:

    e_g, z_g, y_g   fraction of gap g absent; stored when it begins; stored ahead, while kept
    q_t             wait before step t
    l_t, L_t        bytes loaded in the wait and during the operator; likewise w, W (stores of what was
                    dropped) and u, U (stores ahead)
    X_t, P_t, A_t   when operator t starts: prefetched for later steps; dropped, store pending; kept
    K_t, Y_t        stores ahead: under way in operator t; not yet done at its end
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..builder import Columns, ProgramBuilder
from ..linear import Floats, LinearProgram
from .problem import Gap, ResidencyProblem


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The program, where its columns stand, and its units. A block without columns is an empty array.

    `gaps` and `dirty` are indices of gaps that have a column e and columns z; `early` those with a column y.
    `ceiling` is the row that limits the total wait, free until it is set.
    """

    program: LinearProgram
    column: dict[str, Columns]
    gaps: tuple[int, ...]
    dirty: tuple[int, ...]
    early: tuple[int, ...]
    capacity_rows: tuple[Columns, Columns]
    ceiling: int
    byte_unit: float
    ns_unit: float


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """The problem in scaled floats, gaps as arrays.

    `chains`: the dirty gaps of each item, in their order from the write on. `windows`: the steps from whose end, and by
    whose end, what a y stores is stored; the latter may lie in the next pass.
    """

    problem: ResidencyProblem
    steps: int
    durations: Floats
    room: Floats  # capacity minus base, per step
    load_rate: float
    store_rate: float
    size: Floats
    start: Columns
    due: Columns
    gaps: tuple[int, ...]
    dirty: tuple[int, ...]
    early: tuple[int, ...]
    windows: dict[int, tuple[int, int]]
    chains: tuple[tuple[int, ...], ...]
    byte_unit: float
    ns_unit: float


def build(problem: ResidencyProblem) -> Model:
    """The linear program whose optimum is the least total wait. Every step's base must be within the capacity."""
    data = _scaled(problem)
    builder = ProgramBuilder()
    column = _columns(builder, data)
    _kept(builder, data, column)
    _prefetched(builder, data, column)
    if data.dirty:
        _pending(builder, data, column)
        _stored_before_dropped(builder, data, column)
    if data.early:
        _stored_ahead(builder, data, column)
    capacity_rows = _capacity(builder, data, column)
    _links(builder, data, column)
    ceiling = builder.add_rows(1, -math.inf, math.inf)
    builder.put(np.repeat(ceiling, data.steps), column["q"], 1.0)
    cost = np.zeros(builder.columns)
    cost[column["q"]] = 1.0
    return Model(
        program=builder.program(cost),
        column=column,
        gaps=data.gaps,
        dirty=data.dirty,
        early=data.early,
        capacity_rows=capacity_rows,
        ceiling=int(ceiling[0]),
        byte_unit=data.byte_unit,
        ns_unit=data.ns_unit,
    )


def _scaled(problem: ResidencyProblem) -> _Data:
    steps = len(problem.durations_ns)
    ns_unit = sum(problem.durations_ns) / steps or 1e6
    # Levels are of the order of the capacity, transfers of what a link moves in a mean step: between the two.
    capacity = max(1, problem.capacity_nbytes)
    per_step = max(problem.load_bytes_per_s, problem.store_bytes_per_s) * 1e-9 * ns_unit
    byte_unit = max(1.0, math.sqrt(capacity * min(max(per_step, capacity * 1e-6), capacity)))
    dirty = [g for g, gap in enumerate(problem.gaps) if not gap.clean and gap.nbytes > 0 and gap.start >= 0]
    items: dict[int, list[int]] = {}
    for g in sorted(dirty, key=lambda g: problem.gaps[g].start):
        items.setdefault(problem.gaps[g].item, []).append(g)
    chains = tuple(from_write_on(problem, chain) for chain in items.values())
    windows = {
        g: (
            problem.gaps[g].start,
            problem.gaps[h].start + (steps if problem.gaps[h].start < problem.gaps[g].start else 0),
        )
        for chain in chains
        for g, h in pairwise(chain)
    }
    gaps = tuple(
        g for g, gap in enumerate(problem.gaps) if gap.nbytes > 0 and (gap.end > gap.start + 1 or gap.start < 0)
    )
    return _Data(
        problem=problem,
        steps=steps,
        durations=np.array([d / ns_unit for d in problem.durations_ns]),
        room=np.array([(problem.capacity_nbytes - b) / byte_unit for b in problem.base_nbytes]),
        load_rate=problem.load_bytes_per_s * 1e-9 * ns_unit / byte_unit,
        store_rate=problem.store_bytes_per_s * 1e-9 * ns_unit / byte_unit,
        size=np.array([gap.nbytes / byte_unit for gap in problem.gaps]),
        start=np.array([gap.start for gap in problem.gaps], dtype=np.int64),
        due=np.array([gap.end % steps if problem.periodic else gap.end for gap in problem.gaps], dtype=np.int64),
        gaps=gaps,
        dirty=tuple(g for g in dirty if _length(problem.gaps[g]) > 1),
        early=tuple(windows),
        windows=windows,
        chains=chains,
        byte_unit=byte_unit,
        ns_unit=ns_unit,
    )


def from_write_on(problem: ResidencyProblem, chain: list[int]) -> tuple[int, ...]:
    """The dirty gaps of an item; those of one that lasts from pass to pass from its last write on."""
    steps = len(problem.durations_ns)
    if not any(problem.gaps[g].end >= steps for g in chain):
        return tuple(chain)
    first = max((n for n, g in enumerate(chain) if problem.gaps[g].written), default=len(chain) - 1)
    return (*chain[first:], *chain[:first])


def _length(gap: Gap) -> int:
    return gap.end - gap.start


def _columns(builder: ProgramBuilder, data: _Data) -> dict[str, Columns]:
    """All columns, each with finite limits that lose no optimum, so that any duals give a bound."""
    steps, room = data.steps, np.maximum(data.room, 0.0)
    moved = float(data.size[list(data.gaps)].sum())
    kept_dirty = float(data.size[[g for chain in data.chains for g in chain]].sum())
    # Whatever is moved, waits longer than all of it takes one after another can be shortened.
    longest = moved / data.load_rate if data.load_rate > 0 else 0.0
    longest += 2 * kept_dirty / data.store_rate if data.store_rate > 0 else 0.0
    must = np.array([1.0 if data.problem.gaps[g].start < 0 else 0.0 for g in data.gaps])
    load = moved if data.load_rate > 0 else 0.0
    store = 2 * kept_dirty if data.store_rate > 0 else 0.0
    count = steps if data.dirty else 0
    ahead = steps if data.early else 0
    column = {
        "e": builder.add_columns(len(data.gaps), 1.0, must),
        "z": builder.add_columns(len(data.dirty), 1.0),
        "y": builder.add_columns(len(data.early), 1.0),
        "q": builder.add_columns(steps, longest),
        "l": builder.add_columns(steps, load),
        "L": builder.add_columns(steps, np.minimum(data.load_rate * data.durations, load)),
        "X": builder.add_columns(steps, room),
        "A": builder.add_columns(steps, room),
        "w": builder.add_columns(count, store),
        "W": builder.add_columns(count, np.minimum(data.store_rate * data.durations, store)[:count]),
        "P": builder.add_columns(count, room[:count]),
        "u": builder.add_columns(ahead, store),
        "U": builder.add_columns(ahead, np.minimum(data.store_rate * data.durations, store)[:ahead]),
        "K": builder.add_columns(ahead, kept_dirty),
        "Y": builder.add_columns(ahead, kept_dirty),
    }
    of_gap = np.full(len(data.problem.gaps), -1)
    of_gap[list(data.gaps)] = column["e"]
    return column | {"e of gap": of_gap}


def _difference(builder: ProgramBuilder, data: _Data, level: Columns, *, cyclic: bool) -> Columns:
    """Rows: level_t - level_(t-1) = what the caller adds. Before step 0 stands step T-1, or nothing."""
    rows = builder.add_rows(data.steps, 0.0, 0.0)
    builder.put(rows, level, 1.0)
    builder.put(rows[1:], level[:-1], -1.0)
    if cyclic:
        builder.put(rows[:1], level[-1:], -1.0)
    return rows


def _kept(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> None:
    """A_t = sum of s_g (1 - e_g) over the gaps that cover step t: by differences, step 0 by the gaps around it."""
    rows = _difference(builder, data, column["A"], cyclic=False)
    lower = np.zeros(data.steps)
    gaps = np.array(data.gaps, dtype=np.int64)
    around = np.array(
        [g for g in data.gaps if data.start[g] >= 0 and data.problem.covers(data.problem.gaps[g], 0)], dtype=np.int64
    )
    begins = gaps[(data.start[gaps] >= 0) & (data.start[gaps] + 1 < data.steps)]
    # Gaps from before step 0 (start -1) are wholly absent and never counted.
    ends = gaps[(data.due[gaps] > 0) & (data.start[gaps] >= 0)]
    absent = column["e of gap"]
    for chosen, at, sign in ((begins, data.start[begins] + 1, 1.0), (ends, data.due[ends], -1.0), (around, 0, 1.0)):
        where = np.broadcast_to(np.asarray(at, dtype=np.int64), len(chosen))
        builder.put(rows[where], absent[chosen], sign * data.size[chosen])
        np.add.at(lower, where, sign * data.size[chosen])
    builder.row_lower[-1] = builder.row_upper[-1] = lower


def _prefetched(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> None:
    """X_t = X_(t-1) + L_(t-1) + l_t - sum of s_g e_g due at t."""
    rows = _difference(builder, data, column["X"], cyclic=data.problem.periodic)
    builder.put(rows, column["l"], -1.0)
    builder.put(rows[1:], column["L"][:-1], -1.0)
    if data.problem.periodic:
        builder.put(rows[:1], column["L"][-1:], -1.0)
    gaps = np.array(data.gaps, dtype=np.int64)
    builder.put(rows[data.due[gaps]], column["e of gap"][gaps], data.size[gaps])


def _pending(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> None:
    """P_t = P_(t-1) - W_(t-1) + sum of s_g z_g begun at t-1 - w_t, and W_t <= P_t; all is stored at the end."""
    periodic = data.problem.periodic
    rows = _difference(builder, data, column["P"], cyclic=periodic)
    builder.put(rows, column["w"], 1.0)
    builder.put(rows[1:], column["W"][:-1], 1.0)
    if periodic:
        builder.put(rows[:1], column["W"][-1:], 1.0)
    dirty = np.array(data.dirty, dtype=np.int64)
    builder.put(rows[(data.start[dirty] + 1) % data.steps], column["z"], -data.size[dirty])
    upper = np.full(data.steps, math.inf)
    upper[-1] = math.inf if periodic else 0.0
    rest = builder.add_rows(data.steps, 0.0, upper)
    builder.put(rest, column["P"], 1.0)
    builder.put(rest, column["W"], -1.0)


def _stored_before_dropped(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> None:
    """z_g <= e_g; y_g <= 1 - e_g; e_g <= z_g + the sum of z and y over the earlier gaps of the item.

    Earlier is what follows the write: for an item that lasts from pass to pass its gaps begin there.
    """
    z = dict(zip(data.dirty, column["z"], strict=True))
    y = dict(zip(data.early, column["y"], strict=True))
    e = column["e of gap"]
    both = builder.add_rows(len(data.dirty), 0.0, math.inf)
    builder.put(both, e[list(data.dirty)], 1.0)
    builder.put(both, column["z"], -1.0)
    kept = [g for g in data.early if e[g] >= 0]
    rows = builder.add_rows(len(kept), -math.inf, 1.0)
    builder.put(rows, e[kept], 1.0)
    builder.put(rows, np.array([y[g] for g in kept], dtype=np.int64), 1.0)
    for chain in data.chains:
        # c_g = c_(g-1) + z + y of the gap before: so long chains stay linear in size.
        clean: Columns | None = None
        for before, g in zip((None, *chain), chain, strict=False):
            if before is not None:
                more = [v[before] for v in (z, y) if before in v]
                total = builder.add_columns(1, 2.0 * len(chain))
                row = builder.add_rows(1, 0.0, 0.0)
                builder.put(row, total, -1.0)
                builder.put(np.repeat(row, len(more)), np.array(more), 1.0)
                if clean is not None:
                    builder.put(row, clean, 1.0)
                clean = total
            if g in z:
                row = builder.add_rows(1, 0.0, math.inf)
                builder.put(row, np.array([z[g]]), 1.0)
                builder.put(row, e[[g]], -1.0)
                if clean is not None:
                    builder.put(row, clean, 1.0)


def _stored_ahead(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> None:
    """Bytes s_g y_g are free to be stored from the end of step a_g, and must be by the end of step n_g.

    n_g is the step where the item's next gap begins, maybe in the next pass. K_t, what is between the two, by
    differences, step 0 by what is around it; Y_t = Y_(t-1) + sum of s_g y_g with a_g = t-1 - u_t - U_t; Y_t <= K_t -
    sum of s_g y_g with n_g = t.
    """
    steps = data.steps
    size = data.size[np.array(data.early, dtype=np.int64)]
    since, until = np.array([data.windows[g] for g in data.early], dtype=np.int64).T
    begin, ended = (since + 1) % steps, until + 1
    wraps = (until >= steps) & (since + 1 < steps)
    inner = np.where(until >= steps, ended - steps, ended) < steps
    under_way = _difference(builder, data, column["K"], cyclic=False)
    builder.put(under_way[begin], column["y"], -size)
    builder.put(under_way[np.zeros(int(wraps.sum()), dtype=np.int64)], column["y"][wraps], -size[wraps])
    builder.put(under_way[ended[inner] % steps], column["y"][inner], size[inner])
    left = _difference(builder, data, column["Y"], cyclic=bool(wraps.any()))
    builder.put(left, column["u"], 1.0)
    builder.put(left, column["U"], 1.0)
    builder.put(left[begin], column["y"], -size)
    done = builder.add_rows(steps, 0.0, math.inf)
    builder.put(done, column["K"], 1.0)
    builder.put(done, column["Y"], -1.0)
    builder.put(done[until % steps], column["y"], -size)


def _capacity(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> tuple[Columns, Columns]:
    """base_t + A_t + X_t + P_t <= M when operator t starts; with + L_t - W_t when it ends."""
    at_start = builder.add_rows(data.steps, -math.inf, data.room)
    at_end = builder.add_rows(data.steps, -math.inf, data.room)
    for rows in (at_start, at_end):
        for level in ("A", "X", "P"):
            if len(column[level]):
                builder.put(rows, column[level], 1.0)
    builder.put(at_end, column["L"], 1.0)
    if data.dirty:
        builder.put(at_end, column["W"], -1.0)
    return at_start, at_end


def _links(builder: ProgramBuilder, data: _Data, column: dict[str, Columns]) -> None:
    """l_t <= B q_t and w_t + u_t <= B' q_t, likewise with d_t; on a shared channel the times of both add up."""
    stores = [(a, b) for a, b in (("w", "W"), ("u", "U")) if len(column[a])]
    lanes: list[list[tuple[str, str, float]]] = [[("l", "L", data.load_rate)]]
    store_lane = [(a, b, data.store_rate) for a, b in stores]
    if data.problem.shared_channel:
        lanes[0] += store_lane
    elif store_lane:
        lanes.append(store_lane)
    for lane in lanes:
        # Without a rate nothing moves: those columns are fixed at zero already.
        moving = [(a, b, rate) for a, b, rate in lane if rate > 0]
        waiting = builder.add_rows(data.steps, -math.inf, 0.0)
        running = builder.add_rows(data.steps, -math.inf, data.durations)
        builder.put(waiting, column["q"], -1.0)
        for a, b, rate in moving:
            builder.put(waiting, column[a], 1.0 / rate)
            builder.put(running, column[b], 1.0 / rate)
