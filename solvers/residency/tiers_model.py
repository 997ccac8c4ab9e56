"""The linear program of residency on N tiers: the programs of its cuts side by side, with the same waits.

See `tiers` for why every plan satisfies these rows. Each cut's block is the program of `model`, in its own unit of
bytes; all blocks have the same unit of time, so their columns q are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..builder import Columns
from ..linear import Floats, LinearProgram
from .lp import van_der_corput
from .model import Model, build
from .problem import ResidencyProblem


@dataclass(frozen=True, slots=True)
class Direction:
    """What crosses the cut of index `side` upwards (loads) or down (stores), at `bytes_per_s`."""

    side: int
    upwards: bool
    bytes_per_s: float


Lanes = list[list[Direction]]
"""For each lane that several cuts share: the directions that take turns on it."""


@dataclass(frozen=True, slots=True, eq=False)
class TieredModel:
    """The whole program; `columns`[k] and `rows`[k] are where those of the program of `sides`[k] stand in it.

    `waits` are the columns q; `ceiling` is the row that limits their sum, free until it is set.
    """

    program: LinearProgram
    problems: tuple[ResidencyProblem, ...]
    sides: tuple[Model, ...]
    columns: tuple[Columns, ...]
    rows: tuple[Columns, ...]
    waits: Columns
    ceiling: int
    ns_unit: float


@dataclass(slots=True, eq=False)
class _Blocks:
    """The rows of all sides, in coordinate form with columns of the whole program, and the rows that join them."""

    row_lower: list[Floats]
    row_upper: list[Floats]
    entries: list[tuple[Columns, Columns, Floats]]
    rows: int = 0

    def add(self, lower: Floats, upper: Floats) -> Columns:
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        self.rows += len(lower)
        return np.arange(self.rows - len(lower), self.rows)

    def put(self, rows: Columns, columns: Columns, values: float | Floats) -> None:
        self.entries.append((rows, columns, np.broadcast_to(np.asarray(values, dtype=np.float64), len(rows))))


def build_tiers(problems: Sequence[ResidencyProblem], lanes: Lanes) -> TieredModel:
    """The program whose optimum is the least total wait. Every step's base must be within the fast tier."""
    sides = tuple(build(p) for p in problems)
    columns, lower, upper, cost = _merged_columns(sides)
    blocks = _Blocks([], [], [])
    rows = tuple(_block(blocks, side, own) for side, own in zip(sides, columns, strict=True))
    for k in range(len(sides) - 1):
        _absent_below_is_absent_above(blocks, (sides[k], sides[k + 1]), (columns[k], columns[k + 1]))
        _above_is_above_the_next(blocks, (sides[k], sides[k + 1]), (columns[k], columns[k + 1]))
    for lane in lanes:
        _take_turns(blocks, problems, sides, columns, lane)
    first = sides[0]
    return TieredModel(
        program=_assemble(blocks, lower, upper, cost),
        problems=tuple(problems),
        sides=sides,
        columns=columns,
        rows=rows,
        waits=columns[0][first.column["q"]],
        ceiling=int(rows[0][first.ceiling]),
        ns_unit=first.ns_unit,
    )


def _merged_columns(sides: Sequence[Model]) -> tuple[tuple[Columns, ...], Floats, Floats, Floats]:
    """Columns of all sides one after another, but for q: all sides have those of the first.

    A wait longer than all that the sides move takes can be shortened: the limits of q add up.
    """
    count = len(sides[0].program.cost)
    placed = [np.arange(count)]
    lower, upper, cost = [p.copy() for p in _limits(sides[0].program)]
    q = sides[0].column["q"]
    for side in sides[1:]:
        own = np.full(len(side.program.cost), -1)
        own[side.column["q"]] = q
        new = own < 0
        own[new] = np.arange(count, count + int(new.sum()))
        count += int(new.sum())
        more = _limits(side.program)
        upper[q] += more[1][side.column["q"]]
        lower, upper, cost = (np.concatenate([a, b[new]]) for a, b in zip((lower, upper, cost), more, strict=True))
        placed.append(own)
    return tuple(placed), lower, upper, cost


def _limits(program: LinearProgram) -> tuple[Floats, Floats, Floats]:
    return program.col_lower, program.col_upper, program.cost


def _block(blocks: _Blocks, side: Model, columns: Columns) -> Columns:
    rows = blocks.add(side.program.row_lower, side.program.row_upper)
    blocks.put(rows[side.program.rows_of_entries], columns[side.program.indices], side.program.values)
    return rows


def _absent_below_is_absent_above(
    blocks: _Blocks, sides: tuple[Model, Model], columns: tuple[Columns, Columns]
) -> None:
    """e_g of a cut >= e_g of the next one down."""
    count = len(sides[0].gaps)  # the gaps with a column are the same for all cuts
    rows = blocks.add(np.zeros(count), np.full(count, np.inf))
    for sign, side, own in zip((1.0, -1.0), sides, columns, strict=True):
        blocks.put(rows, own[side.column["e"]], sign)


def _above_is_above_the_next(blocks: _Blocks, sides: tuple[Model, Model], columns: tuple[Columns, Columns]) -> None:
    """A_t + X_t of a cut <= that of the next one down, when operator t starts; with L_t when it ends."""
    steps = len(sides[0].column["q"])
    for names in (("A", "X"), ("A", "X", "L")):
        rows = blocks.add(np.zeros(steps), np.full(steps, np.inf))
        for sign, side, own in zip((-1.0, 1.0), sides, columns, strict=True):
            for name in names:
                blocks.put(rows, own[side.column[name]], sign * side.byte_unit / sides[0].byte_unit)


def _take_turns(
    blocks: _Blocks,
    problems: Sequence[ResidencyProblem],
    sides: Sequence[Model],
    columns: Sequence[Columns],
    lane: Sequence[Direction],
) -> None:
    """The times of all that moves on the lane add up: <= q_t in the wait, <= d_t while operator t runs."""
    steps = len(sides[0].column["q"])
    durations = np.array([d / sides[0].ns_unit for d in problems[0].durations_ns])
    free = np.full(steps, -np.inf)
    waiting, running = blocks.add(free, np.zeros(steps)), blocks.add(free, durations)
    blocks.put(waiting, columns[0][sides[0].column["q"]], -1.0)
    for direction in lane:
        side, own = sides[direction.side], columns[direction.side]
        rate = direction.bytes_per_s * 1e-9 * side.ns_unit / side.byte_unit
        for name in ("l", "L") if direction.upwards else ("w", "W", "u", "U"):
            if len(side.column[name]):
                blocks.put(waiting if name.islower() else running, own[side.column[name]], 1.0 / rate)


def _assemble(blocks: _Blocks, lower: Floats, upper: Floats, cost: Floats) -> LinearProgram:
    """By rows; no two entries are at one place, as only the columns of different names were joined in a row."""
    rows = np.concatenate([r for r, _, _ in blocks.entries])
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=blocks.rows)
    return LinearProgram(
        cost=cost,
        col_lower=lower,
        col_upper=upper,
        row_lower=np.concatenate(blocks.row_lower),
        row_upper=np.concatenate(blocks.row_upper),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        indices=np.concatenate([c for _, c, _ in blocks.entries])[order].astype(np.int32),
        values=np.concatenate([v for _, _, v in blocks.entries])[order],
    )


def moved_cost(model: TieredModel) -> Floats:
    """Time on the links: bytes moved across each cut over its rate. As in `lp` a gap's are dearer by up to a
    thousandth, along the van der Corput sequence, so that equal gaps differ and few of them are divided."""
    cost = np.zeros(len(model.program.cost))
    for problem, side, columns in zip(model.problems, model.sides, model.columns, strict=True):
        gaps = problem.gaps
        ranks = {g: k for k, g in enumerate(sorted(side.gaps, key=lambda g: (gaps[g].start, g)))}
        size = np.array([x.nbytes * (1.0 + 1e-3 * van_der_corput(ranks.get(g, 0))) for g, x in enumerate(gaps)])
        for name, which, rate in (
            ("e", side.gaps, problem.load_bytes_per_s),
            ("z", side.dirty, problem.store_bytes_per_s),
            ("y", side.early, problem.store_bytes_per_s),
        ):
            if rate > 0:
                cost[columns[side.column[name]]] = size[list(which)] / rate
    return cost / max(1e-300, float(cost.max()))
