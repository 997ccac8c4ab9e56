"""Residency of many steps: the linear program with memory looked at in some instants only. DESIGN 4.1, 'Scale'.

Step t has two instants: 2t, when its operator starts, and 2t + 1, when it ends. Between two instants bytes move; a wait
may lie before an even one. The program of `model` has a memory row and the balances of each instant. Here only the
instants of a *watch* keep them; between two watched instants, which is a *phase*, all that moves is one sum.

**The bound holds as it is.** Every solution of the fine program gives one of the same waiting time here: loads, stores
and waits of a phase are added up, e, z and y stay. The rows here are sums of fine rows over a phase (balances, links)
or are among them (memory at watched instants), or were left out, which only adds solutions:

- z_g <= e_g and y_g <= 1 - e_g: storing what is not dropped, or again what is dropped, serves nothing;
- a gap that covers no watched instant: e_g = 0 takes nothing from memory here, and its load goes: bytes that come in
  time for it are loaded in some phase and wait in X until it, without them all else is as it was. Its z and y stay
  where a later gap may use them;
- stores ahead of one item between two of its gaps that matter share one window, the union of theirs.

So its optimum is at most the fine one, any multipliers here are fine multipliers that are equal over each phase, and
`linear.safe_bound` of this program bounds every fluid timeline. With every instant watched nothing is left out that
matters and the optima agree.

Gaps that begin and end in the same phases have columns that differ by their size only: one column with the sum of the
sizes stands for all of them. Chains of dirty gaps of an item are merged where all their phases agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..builder import Columns, ProgramBuilder
from ..linear import Floats, LinearProgram
from .coarse_groups import Gaps, Group, Ints, first_phase, make_groups
from .problem import ResidencyProblem


@dataclass(frozen=True, slots=True, eq=False)
class CoarseModel:
    """The program, where its columns stand, and its units. Per group and gap in it the column of e; `stored` and
    `ahead` are the columns of z and y in the order of the group's `stores` and `aheads`, flattened."""

    program: LinearProgram
    watch: Ints
    groups: tuple[Group, ...]
    absent: tuple[Columns, ...]
    stored: tuple[Columns, ...]
    ahead: tuple[Columns, ...]
    column: dict[str, Columns]
    memory_rows: Columns
    durations: Floats
    byte_unit: float
    ns_unit: float


def build_coarse(problem: ResidencyProblem, gaps: Gaps, watch: Ints) -> CoarseModel:
    """The program of a watch: ascending instants, the last one, 2T - 1, among them, so that no phase crosses passes."""
    steps = len(problem.durations_ns)
    groups = make_groups(gaps, watch, steps)
    data = _data(problem, gaps, watch, groups)
    builder = ProgramBuilder()
    absent, stored, ahead = _group_columns(builder, groups)
    column = _phase_columns(builder, data, groups)
    parts = _Parts(builder, data, groups, absent, stored, ahead, column)
    _kept(parts)
    _prefetched(parts)
    if data.dirty:
        _pending(parts)
        _stored_ahead(parts)
        _stored_before_dropped(parts)
    memory_rows = _memory(parts)
    _links(parts)
    cost = np.zeros(builder.columns)
    cost[column["q"]] = 1.0
    return CoarseModel(
        program=builder.program(cost),
        watch=watch,
        groups=groups,
        absent=absent,
        stored=stored,
        ahead=ahead,
        column=column,
        memory_rows=memory_rows,
        durations=data.durations,
        byte_unit=data.byte_unit,
        ns_unit=data.ns_unit,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """The phases in scaled floats. `waits`: whether a wait lies in the phase. `forced`: bytes due in it that lie below
    when a pass begins."""

    problem: ResidencyProblem
    phases: int
    durations: Floats
    waits: NDArray[np.bool_]
    room: Floats
    forced: Floats
    load_rate: float
    store_rate: float
    dirty: bool
    byte_unit: float
    ns_unit: float


def _data(problem: ResidencyProblem, gaps: Gaps, watch: Ints, groups: tuple[Group, ...]) -> _Data:
    steps, phases = len(problem.durations_ns), len(watch)
    ran = np.concatenate([[0], np.cumsum(np.array(problem.durations_ns, dtype=np.int64))])
    ns = np.diff(ran[(watch + 1) // 2], prepend=0)
    ns_unit = float(ran[-1]) / phases or 1e6
    capacity = max(1, problem.capacity_nbytes)
    per_phase = max(problem.load_bytes_per_s, problem.store_bytes_per_s) * 1e-9 * ns_unit
    byte_unit = max(1.0, math.sqrt(capacity * min(max(per_phase, capacity * 1e-6), capacity)))
    base = np.array(problem.base_nbytes, dtype=np.float64)[watch // 2]
    below = np.flatnonzero(gaps.start < 0)
    forced = np.bincount(
        first_phase(watch, gaps.due[below], steps), weights=gaps.nbytes[below], minlength=phases
    ).astype(np.float64)
    before = np.concatenate([[-1], watch[:-1]])
    return _Data(
        problem=problem,
        phases=phases,
        durations=ns / ns_unit,
        waits=(watch - before > 1) | (watch % 2 == 0),
        room=(problem.capacity_nbytes - base) / byte_unit,
        forced=forced / byte_unit,
        load_rate=problem.load_bytes_per_s * 1e-9 * ns_unit / byte_unit,
        store_rate=problem.store_bytes_per_s * 1e-9 * ns_unit / byte_unit,
        dirty=any(group.dirty for group in groups),
        byte_unit=byte_unit,
        ns_unit=ns_unit,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What the functions of rows below work on."""

    builder: ProgramBuilder
    data: _Data
    groups: tuple[Group, ...]
    absent: tuple[Columns, ...]
    stored: tuple[Columns, ...]
    ahead: tuple[Columns, ...]
    column: dict[str, Columns]

    def put(self, entries: list[tuple[int, int, float]]) -> None:
        """Add coefficients (row, column, value)."""
        if entries:
            rows, columns, values = zip(*entries, strict=True)
            self.builder.put(np.array(rows), np.array(columns), np.array(values, dtype=np.float64))

    def level(self, name: str, *, cyclic: bool) -> Columns:
        """Rows: the level at each watched instant less the one before = what the caller adds."""
        rows, level = self.builder.add_rows(self.data.phases, 0.0, 0.0), self.column[name]
        self.builder.put(rows, level, 1.0)
        self.builder.put(rows[1:], level[:-1], -1.0)
        if cyclic:
            self.builder.put(rows[:1], level[-1:], -1.0)
        return rows


def _group_columns(
    builder: ProgramBuilder, groups: tuple[Group, ...]
) -> tuple[tuple[Columns, ...], tuple[Columns, ...], tuple[Columns, ...]]:
    """e, z and y; several z or y of an item in one phase are one column, which may be as many."""
    uppers: list[float] = []
    blocks: list[tuple[int, int, int]] = []
    for group in groups:
        stores = [float(most) for own in group.stores for _, most in own]
        aheads = [float(most) for own in group.aheads for *_, most in own]
        uppers += [1.0] * len(group.spans) + stores + aheads
        blocks.append((len(group.spans), len(stores), len(aheads)))
    columns = builder.add_columns(len(uppers), np.array(uppers))
    cuts = np.cumsum(np.array(blocks, dtype=np.int64).ravel())[:-1] if blocks else np.zeros(0, dtype=np.int64)
    parts = np.split(columns, cuts) if blocks else []
    return tuple(parts[0::3]), tuple(parts[1::3]), tuple(parts[2::3])


def _phase_columns(builder: ProgramBuilder, data: _Data, groups: tuple[Group, ...]) -> dict[str, Columns]:
    """Columns of each phase, with finite limits that lose no optimum, so that any duals give a bound."""
    moved = (sum(sum(g.nbytes) for g in groups) / data.byte_unit) + float(data.forced.sum())
    most = sum(
        g.moved_nbytes * (sum(n for own in g.stores for _, n in own) + sum(n for own in g.aheads for *_, n in own))
        for g in groups
    )
    stored = most / data.byte_unit if data.store_rate > 0 else 0.0
    # Whatever is moved, waits longer than all of it takes one after another can be shortened.
    longest = moved / data.load_rate if data.load_rate > 0 else 0.0
    longest += stored / data.store_rate if data.store_rate > 0 else 0.0
    room = np.maximum(data.room, 0.0)
    count = data.phases if data.dirty else 0
    return {
        "q": builder.add_columns(data.phases, np.where(data.waits, longest, 0.0)),
        "l": builder.add_columns(data.phases, moved if data.load_rate > 0 else 0.0),
        "X": builder.add_columns(data.phases, room),
        "A": builder.add_columns(data.phases, room),
        "w": builder.add_columns(count, stored),
        "P": builder.add_columns(count, _last_is_empty(room, data)[:count]),
        "u": builder.add_columns(count, stored),
        "Y": builder.add_columns(count, most / data.byte_unit),
        "K": builder.add_columns(count, most / data.byte_unit),
    }


def _last_is_empty(room: Floats, data: _Data) -> Floats:
    """A pass that nothing follows ends with all stored."""
    if data.problem.periodic:
        return room
    return np.concatenate([room[:-1], [0.0]])


def _kept(parts: _Parts) -> None:
    """A = sum of s (1 - e) over what is away at the instant: by differences, the first by what is away there."""
    data, rows = parts.data, parts.level("A", cyclic=False)
    lower = np.zeros(data.phases)
    entries: list[tuple[int, int, float]] = []
    for group, columns in zip(parts.groups, parts.absent, strict=True):
        for (first, count), nbytes, column in zip(group.spans, group.nbytes, columns.tolist(), strict=True):
            size, end = nbytes / data.byte_unit, first + count
            changes = [(first, size)] if first else []
            if end > data.phases or not first:
                changes.append((0, size))
            if end != data.phases:
                changes.append((end % data.phases, -size))
            for at, change in changes:
                entries.append((int(rows[at]), column, change))
                lower[at] += change
    parts.put(entries)
    parts.builder.row_lower[-1] = parts.builder.row_upper[-1] = lower


def _prefetched(parts: _Parts) -> None:
    """X = X before + l - the sum of s e due in the phase."""
    data, rows = parts.data, parts.level("X", cyclic=parts.data.problem.periodic)
    parts.builder.put(rows, parts.column["l"], -1.0)
    entries: list[tuple[int, int, float]] = []
    for group, columns in zip(parts.groups, parts.absent, strict=True):
        for (first, count), nbytes, column in zip(group.spans, group.nbytes, columns.tolist(), strict=True):
            entries.append((int(rows[(first + count) % data.phases]), column, nbytes / data.byte_unit))
    parts.put(entries)
    parts.builder.row_lower[-1] = parts.builder.row_upper[-1] = -data.forced


def _pending(parts: _Parts) -> None:
    """P = P before + the sum of s z that joins in the phase - w."""
    rows = parts.level("P", cyclic=parts.data.problem.periodic)
    parts.builder.put(rows, parts.column["w"], 1.0)
    entries: list[tuple[int, int, float]] = []
    for group, columns in zip(parts.groups, parts.stored, strict=True):
        size = group.moved_nbytes / parts.data.byte_unit
        phases = [phase for own in group.stores for phase, _ in own]
        entries += [(int(rows[p]), c, -size) for p, c in zip(phases, columns.tolist(), strict=True)]
    parts.put(entries)


def _stored_ahead(parts: _Parts) -> None:
    """Y = Y before + the sum of s y that arrives - u <= K, the sum of s y whose window is open at the instant."""
    open_rows = parts.level("K", cyclic=False)
    left_rows = parts.level("Y", cyclic=parts.data.problem.periodic)
    parts.builder.put(left_rows, parts.column["u"], 1.0)
    entries: list[tuple[int, int, float]] = []
    phases = parts.data.phases
    for group, columns in zip(parts.groups, parts.ahead, strict=True):
        size = group.moved_nbytes / parts.data.byte_unit
        windows = [window for own in group.aheads for window in own]
        for (arrival, deadline, _), column in zip(windows, columns.tolist(), strict=True):
            entries.append((int(left_rows[arrival]), column, -size))
            entries.append((int(open_rows[arrival]), column, -size))
            if deadline > phases:  # open when the pass begins
                entries.append((int(open_rows[0]), column, -size))
            if deadline != phases:
                entries.append((int(open_rows[deadline % phases]), column, size))
    parts.put(entries)
    done = parts.builder.add_rows(parts.data.phases, 0.0, math.inf)
    parts.builder.put(done, parts.column["K"], 1.0)
    parts.builder.put(done, parts.column["Y"], -1.0)


def _stored_before_dropped(parts: _Parts) -> None:
    """e <= the sum of the z and y that serve the gap or one before it: c, summed along the chain."""
    entries: list[tuple[int, int, float]] = []
    builder = parts.builder
    dirty = [g for g, group in enumerate(parts.groups) if group.dirty and group.spans]
    spans = [len(parts.groups[g].spans) for g in dirty]
    before_last = sum(spans) - len(spans)
    most = np.repeat([_most_stored(parts.groups[g]) for g in dirty], np.array(spans, dtype=np.int64) - 1)
    sums = iter(builder.add_columns(before_last, most).tolist())
    total_rows = iter(builder.add_rows(before_last, 0.0, 0.0).tolist())
    rows = iter(builder.add_rows(sum(spans), 0.0, math.inf).tolist())
    for g in dirty:
        group, before = parts.groups[g], -1
        stored, ahead = iter(parts.stored[g].tolist()), iter(parts.ahead[g].tolist())
        for k, absent in enumerate(parts.absent[g].tolist()):
            own = [next(stored) for _ in group.stores[k]] + [next(ahead) for _ in group.aheads[k]]
            row = next(rows)
            entries.append((row, absent, -1.0))
            if k == len(group.spans) - 1:
                entries += [(row, c, 1.0) for c in (*own, *([before] if before >= 0 else []))]
                continue
            total, total_row = next(sums), next(total_rows)
            entries += [(total_row, c, 1.0) for c in (*own, *([before] if before >= 0 else []))]
            entries += [(total_row, total, -1.0), (row, total, 1.0)]
            before = total
    parts.put(entries)


def _most_stored(group: Group) -> float:
    return float(sum(n for own in group.stores for _, n in own) + sum(n for own in group.aheads for *_, n in own))


def _memory(parts: _Parts) -> Columns:
    """base + A + X + P <= M at each watched instant."""
    rows = parts.builder.add_rows(parts.data.phases, -math.inf, parts.data.room)
    for level in ("A", "X", "P"):
        if len(parts.column[level]):
            parts.builder.put(rows, parts.column[level], 1.0)
    return rows


def _links(parts: _Parts) -> None:
    """l <= B (d + q) and w + u <= B' (d + q); on a shared channel the times of both add up."""
    data, column = parts.data, parts.column
    stores = [(name, data.store_rate) for name in ("w", "u") if len(column[name])]
    lanes = [[("l", data.load_rate)]]
    if data.problem.shared_channel:
        lanes[0] += stores
    elif stores:
        lanes.append(stores)
    for lane in lanes:
        rows = parts.builder.add_rows(data.phases, -math.inf, data.durations)
        parts.builder.put(rows, column["q"], -1.0)
        for name, rate in lane:
            if rate > 0:  # without one nothing moves: those columns are fixed at zero
                parts.builder.put(rows, column[name], 1.0 / rate)
