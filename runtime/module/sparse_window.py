"""The rows of the neurons that the last calls have used, in memory of a fixed size."""

from __future__ import annotations

import mmap
from collections import deque

import numpy as np
import torch

from .sparse_rows import Bytes, Indices


class RowWindow:
    """Neurons of the longest suffix of the last `calls` calls whose union has at most `rows` of them.

    That is the window of LLM in a flash (arXiv 2312.11514, section 3.1), shortened where it would not fit. `content`
    has `rows` rows of all bytes of a neuron each; memory is taken as rows are used.
    """

    def __init__(self, neurons: int, neuron_nbytes: int, *, calls: int, rows: int) -> None:
        self.content: Bytes = torch.empty((rows, neuron_nbytes), dtype=torch.uint8).numpy()
        self.held = 0
        self.most = 0  # neurons in memory at once, with those that a call uses
        self._calls = calls
        self._rows = rows
        self._neurons = neurons
        self.clear()

    @property
    def nbytes(self) -> int:
        """The most memory that it ever takes."""
        return self.content.nbytes + self._slots.nbytes + self._users.nbytes

    def touch(self) -> None:
        """Take all the memory now; what is here stays."""
        content = self.content.reshape(-1)
        content[:: mmap.PAGESIZE] |= 0
        content[-1:] |= 0

    def clear(self) -> None:
        """Forget everything."""
        self._slots = np.full(self._neurons, -1, np.int64)
        self._users = np.zeros(self._neurons, np.int32)
        self._recent: deque[Indices] = deque()
        self._free = list(range(self._rows))[::-1]
        self.held = 0

    def split(self, needed: Indices) -> tuple[Indices, Indices, Indices]:
        """Those of `needed` that are here, the rows of `content` that have them, and those that are missing."""
        slots = self._slots[needed]
        here = slots >= 0
        return needed[here], slots[here], needed[~here]

    def push(self, needed: Indices) -> Indices | None:
        """A call uses `needed`, after whatever is here was taken: forget what no longer counts.

        Returns the rows of `content` for those that were missing, to be written now, or None where they do not stay.
        """
        missing = needed[self._slots[needed] < 0]
        users = self._users
        users[needed] += 1
        self.held += int((users[needed] == 1).sum())
        self.most = max(self.most, self.held)
        self._recent.append(needed)
        while len(self._recent) > self._calls or self.held > self._rows:
            self._drop(self._recent.popleft())
        if not self._recent:
            return None
        slots = np.array([self._free.pop() for _ in range(len(missing))], np.int64)
        self._slots[missing] = slots
        return slots

    def _drop(self, old: Indices) -> None:
        self._users[old] -= 1
        gone = old[self._users[old] == 0]
        self.held -= len(gone)
        slots = self._slots[gone]
        self._free.extend(slots[slots >= 0].tolist())
        self._slots[gone] = -1
