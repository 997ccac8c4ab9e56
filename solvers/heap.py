"""Addresses over a cycle of steps: chunks that are taken and given back, and the tightest hole for the next one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Heap:
    """Chunks at addresses [0, `capacity`), each for steps [start, end) of a cycle of `steps`; times count modulo it.

    An interval may begin below 0 or end above `steps`, but is never longer than the cycle. Addresses in bytes.
    """

    def __init__(self, steps: int, capacity: int) -> None:
        self.steps = steps
        self.capacity = capacity
        self._count = 0
        self._rows: Ints = np.zeros((4, 64), dtype=np.int64)  # low, high, start, length; length 0: given back

    def copy(self) -> Heap:
        """An independent heap with the same chunks."""
        other = Heap(self.steps, self.capacity)
        other._count = self._count
        other._rows = self._rows.copy()
        return other

    def take(self, start: int, end: int, offset: int, nbytes: int) -> int:
        """Occupy [offset, offset + nbytes) in [start, end); returns the handle for `give`. Not checked: see `is_free`.

        Raises:
            ValueError: an interval longer than the cycle, or addresses outside the capacity.
        """
        if not 0 <= end - start <= self.steps:
            raise ValueError(f"steps [{start}, {end}) are not an interval within a cycle of {self.steps}")
        if not 0 <= offset <= offset + nbytes <= self.capacity:
            raise ValueError(f"addresses [{offset}, {offset + nbytes}) lie outside the capacity of {self.capacity}")
        if self._count == self._rows.shape[1]:
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)], axis=1)
        self._rows[:, self._count] = (offset, offset + nbytes, start, end - start)
        self._count += 1
        return self._count - 1

    def give(self, handle: int) -> None:
        """Give a chunk back."""
        self._rows[3, handle] = 0

    def is_free(self, start: int, end: int, offset: int, nbytes: int) -> bool:
        """Whether nobody has any of [offset, offset + nbytes) at any time in [start, end)."""
        if offset < 0 or offset + nbytes > self.capacity:
            return False
        low, high = self._busy(start, end)
        return not bool(np.any((low < offset + nbytes) & (high > offset)))

    def best_fit(self, start: int, end: int, nbytes: int, alignment: int = 1) -> int | None:
        """The aligned address in the smallest hole that is free during [start, end) and holds `nbytes`, the lowest of
        equals; None where there is none."""
        low, high = self._busy(start, end)
        order = np.argsort(low, kind="stable")
        tops = np.maximum.accumulate(np.concatenate([[0], high[order]]))
        begins = -(-tops // alignment) * alignment
        sizes = np.concatenate([low[order], [self.capacity]]) - begins
        holes = np.flatnonzero(sizes >= nbytes)
        if not len(holes):
            return None
        return int(begins[holes[int(np.argmin(sizes[holes]))]])

    def _busy(self, start: int, end: int) -> tuple[Ints, Ints]:
        """Low and high addresses of the chunks that are taken at some time in [start, end)."""
        low, high, begin, length = self._rows[:, : self._count]
        meets = ((start - begin) % self.steps < length) | ((begin - start) % self.steps < end - start)
        meets &= length > 0
        return low[meets], high[meets]
