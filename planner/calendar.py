"""Which intervals of a cyclic pass touch a window of it, without looking at all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..solvers.neighbours import Lists

Ints = NDArray[np.int64]

_BLOCKS = 4096
"""Parts into which a pass is divided at most. More make shorter lists, and more lists to look at in a long window."""

_FEW = 64
"""Up to so many rows it takes longer to choose some of them than to look at all."""


class Calendar:
    """Rows 0, 1, ... with intervals [start, end) of steps, at most a pass of `steps` long, counted modulo it.

    An interval that changes is added again: what was there before stays, so that a search may meet rows too many,
    never too few. `lists` are for the compiled searches of `neighbours`, `out` has room for every row.
    """

    def __init__(self, steps: int) -> None:
        from ..solvers.neighbours import add_row, make_lists, most_entries, touching

        self.lists: Lists = make_lists(steps, _BLOCKS, _FEW, rows=256, entries=1024)
        self.out: Ints = np.zeros(256, dtype=np.int64)
        self._most_entries = most_entries(self.lists)
        self._add, self._touching = add_row, touching

    def add(self, row: int, start: int, end: int) -> None:
        """Row `row` lasts in [start, end)."""
        heads, entries, seen, numbers = self.lists
        if numbers[0] + self._most_entries > entries.shape[1] or row >= len(seen):
            if row >= len(seen):
                seen = np.concatenate([seen, np.zeros(max(row, len(seen)), dtype=np.int64)])
                self.out = np.zeros(len(seen), dtype=np.int64)
            if numbers[0] + self._most_entries > entries.shape[1]:
                entries = np.concatenate([entries, np.zeros_like(entries)], axis=1)
            self.lists = type(self.lists)(heads, entries, seen, numbers)
        self._add(self.lists, row, start, end)

    def touching(self, start: int, end: int) -> Ints:
        """Every row, ascending, of which some step lies in [start, end), and some others."""
        return np.sort(self.out[: self._touching(self.lists, start, end, self.out)])
