"""Row gathers done by the weight store: a few rows of a table are read, the table never becomes resident."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import ExecutionError
from ..ir.program import Lookup
from .reading import WeightReader

READERS = 4
"""Rows lie scattered: several small reads at once keep the disk busy where one after another would wait for each."""


class LookupCall:
    """One lookup at fixed addresses: reads the indices, then the rows they name, straight to their places.

    The table begins at byte `start` of the blob.
    """

    def __init__(
        self,
        op: str,
        lookup: Lookup,
        store: WeightReader,
        indices: NDArray[np.signedinteger],
        target: memoryview,
        *,
        start: int = 0,
    ) -> None:
        self._op = op
        self._lookup = lookup
        self._store = store
        self._indices = indices
        self._target = target
        self._start = start
        self.read_nbytes = 0  # since it was made

    def __call__(self, binding: object, options: object) -> None:
        """Run it; the arguments are those of a kernel's call and mean nothing here.

        Raises ExecutionError for an index outside the table, and where the store cannot be read.
        """
        del binding, options
        lookup, size = self._lookup, self._lookup.row_nbytes
        wanted = np.array(self._indices).reshape(-1)
        outside = (wanted < -lookup.rows) | (wanted >= lookup.rows)
        if outside.any():
            raise ExecutionError(
                f"operator '{self._op}' looks up row {wanted[outside][0]} of '{lookup.blob}', which has {lookup.rows}"
            )
        rows, first, places = np.unique(wanted % lookup.rows, return_index=True, return_inverse=True)
        with ThreadPoolExecutor(min(READERS, max(1, len(rows)))) as readers:
            done = [readers.submit(self._read, int(r), int(p) * size) for r, p in zip(rows, first, strict=True)]
            for one in done:
                one.result()
        self.read_nbytes += len(rows) * size
        for place, source in enumerate(first[places.reshape(-1)]):
            if place != source:
                self._target[place * size : (place + 1) * size] = self._target[source * size : (source + 1) * size]

    def _read(self, row: int, place: int) -> None:
        size = self._lookup.row_nbytes
        self._store.read_rows(self._lookup.blob, self._start + row * size, self._target[place : place + size])
