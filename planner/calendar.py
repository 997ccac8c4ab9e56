"""Which intervals of a cyclic pass touch a window of it, without looking at all of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_BLOCKS = 512
"""Parts into which a pass is divided. More make shorter lists, and more lists that a long interval is in."""

_FEW = 512
"""Up to so many rows it takes longer to choose some of them than to look at all."""


class Calendar:
    """Rows 0, 1, ... with intervals [start, end) of steps, at most a pass of `steps` long, counted modulo it.

    An interval that changes is added again: what was there before stays, so that `touching` may name rows too many,
    never too few.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._size = -(-steps // _BLOCKS)
        self._count = -(-steps // self._size)
        self._rows = 0
        # By block: the rows that begin in it, and those that last over its first step and began before.
        self._begins: list[list[int]] = [[] for _ in range(self._count)]
        self._through: list[list[int]] = [[] for _ in range(self._count)]

    def add(self, row: int, start: int, end: int) -> None:
        """Row `row` lasts in [start, end)."""
        self._rows = max(self._rows, row + 1)
        start, length = start % self._steps, end - start
        block, last = start // self._size, start + length - 1
        self._begins[block].append(row)
        for turn, upto in ((0, min(last, self._steps - 1)), (1, last - self._steps)):
            for b in range(0 if turn else block + 1, upto // self._size + 1):
                self._through[b].append(row)

    def touching(self, start: int, end: int) -> Ints:
        """Every row, ascending, of which some step lies in [start, end), and some others."""
        if self._rows <= _FEW or end - start + self._size >= self._steps:
            return np.arange(self._rows)
        first, last = start % self._steps, start % self._steps + end - start - 1
        blocks = [*range(first // self._size, min(last, self._steps - 1) // self._size + 1)]
        blocks += range((last - self._steps) // self._size + 1)
        return self._distinct(chain(self._through[blocks[0]], *(self._begins[b] for b in blocks)))

    def _distinct(self, rows: Iterable[int]) -> Ints:
        return np.unique(np.fromiter(rows, dtype=np.int64))
