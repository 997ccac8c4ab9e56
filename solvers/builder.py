"""Builds a `LinearProgram` from blocks of numpy arrays: one call per family of columns, rows or coefficients."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .linear import Floats, LinearProgram

Columns = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class ProgramBuilder:
    """Rows and columns as they are added, in coordinate form; entries at one place add up."""

    lower: list[Floats] = field(default_factory=list[Floats])
    upper: list[Floats] = field(default_factory=list[Floats])
    columns: int = 0
    row_lower: list[Floats] = field(default_factory=list[Floats])
    row_upper: list[Floats] = field(default_factory=list[Floats])
    rows: int = 0
    entries: list[tuple[Columns, Columns, Floats]] = field(default_factory=list[tuple[Columns, Columns, Floats]])

    def add_columns(self, count: int, upper: float | Floats, lower: float | Floats = 0.0) -> Columns:
        """Columns with these limits, one for all or one each; returns their indices."""
        self.lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), count))
        self.upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), count))
        self.columns += count
        return np.arange(self.columns - count, self.columns)

    def add_rows(self, count: int, lower: float | Floats, upper: float | Floats) -> Columns:
        """Rows with these limits, one for all or one each; returns their indices."""
        self.row_lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), count))
        self.row_upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), count))
        self.rows += count
        return np.arange(self.rows - count, self.rows)

    def put(self, rows: Columns, columns: Columns, values: float | Floats) -> None:
        """Add `values` to the coefficients at (rows[k], columns[k])."""
        self.entries.append((rows, columns, np.broadcast_to(np.asarray(values, dtype=np.float64), len(rows))))

    def program(self, cost: Floats) -> LinearProgram:
        """The finished program, by rows, with this objective."""
        rows = np.concatenate([r for r, _, _ in self.entries])
        columns = np.concatenate([c for _, c, _ in self.entries])
        values = np.concatenate([v for _, _, v in self.entries])
        keys, where = np.unique(rows * self.columns + columns, return_inverse=True)
        sums = np.zeros(len(keys))
        np.add.at(sums, where, values)
        keys, sums = keys[sums != 0], sums[sums != 0]
        starts = np.searchsorted(keys // self.columns, np.arange(self.rows + 1))
        return LinearProgram(
            cost=cost,
            col_lower=np.concatenate(self.lower),
            col_upper=np.concatenate(self.upper),
            row_lower=np.concatenate(self.row_lower),
            row_upper=np.concatenate(self.row_upper),
            starts=starts.astype(np.int32),
            indices=(keys % self.columns).astype(np.int32),
            values=sums,
        )
