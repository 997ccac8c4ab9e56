"""One feed-forward layer whose rows come from a file: its matrices in a shared buffer, and what it has read."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .sparse_rows import READ_NBYTES, Bytes, Indices, Reading, RowFile
from .sparse_window import RowWindow
from .weights import as_weight

Forward = Callable[[torch.Tensor], torch.Tensor]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LARGEST_HALF = 65504.0  # a larger weight may become infinite under autocast


@dataclass(slots=True)
class RowTraffic:
    """What a layer has read: `steps` sets of neurons were asked for, `whole` of them all neurons of the layer.

    `read_nbytes` are whole blocks and what lies between rows, `needed_nbytes` rows that were not in memory.
    """

    steps: int = 0
    whole: int = 0
    read_nbytes: int = 0
    needed_nbytes: int = 0
    requests: int = 0
    resident_nbytes: int = 0


class Matrix:
    """The weight of an nn.Linear, and the buffer that stands in for it. `by_row`: a neuron is a row, else a column."""

    def __init__(self, module: nn.Module, name: str, *, by_row: bool) -> None:
        held: dict[str, Any] = module._parameters  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
        weight: torch.Tensor = held["weight"]
        self.module = module
        self.name = name
        self.by_row = by_row
        self.weight = weight
        self.dtype = weight.dtype
        self.shape = (weight.shape[0], weight.shape[1])
        self.neurons = self.shape[0] if by_row else self.shape[1]
        self.row_nbytes = (self.shape[1] if by_row else self.shape[0]) * weight.element_size()
        self.nbytes = weight.numel() * weight.element_size()
        self.buffer = torch.empty(0)  # [shape], set by the scratch
        self.always: Indices = np.empty(0, np.int64)  # neurons with weights that are not finite
        self.signed: torch.Tensor | None = None  # rows with a negative weight, where not all have one
        self._largest_sum = 0.0
        self._held = held

    def examine(self, weight: torch.Tensor) -> None:
        """Look at the values once: what a zero may not be multiplied away of, and how large a row's sum may get."""
        plain = weight.abs() <= _LARGEST_HALF  # false for NaN
        self.always = np.flatnonzero((~plain).any(1 if self.by_row else 0).numpy())
        signed = torch.signbit(weight).any(1)
        self.signed = None if bool(signed.all()) else signed
        if self.by_row:
            sums = torch.where(plain, weight, 0).abs().sum(1, dtype=torch.float64)
            self._largest_sum = float(sums.max())

    def rows_of(self, weight: torch.Tensor, neurons: torch.Tensor) -> Bytes:
        """Bytes [len(neurons), row_nbytes] of `weight`."""
        found = weight[neurons] if self.by_row else weight[:, neurons].t()
        return found.contiguous().view(torch.uint8).numpy()

    def in_place(self) -> bool:
        """Whether the module still has the weight that was stored."""
        return self._held.get("weight") is self.weight

    def stays_finite(self, x: torch.Tensor) -> bool:
        """Whether no sum of products with `x`, and no bias added to one, can overflow."""
        if not x.numel():
            return True
        bias = self._held.get("bias")
        most = float(x.abs().max()) * self._largest_sum
        most += 0.0 if bias is None else float(bias.abs().max())
        return most < min(torch.finfo(self.dtype).max, torch.finfo(x.dtype).max, _limit()) / 2  # false for NaN

    def write(self, neurons: Indices, rows: Bytes) -> None:
        """Fill rows [len(neurons), row_nbytes] of neurons into the buffer."""
        values = torch.from_numpy(np.ascontiguousarray(rows)).view(self.dtype)
        if self.by_row:
            self.buffer.index_copy_(0, torch.from_numpy(neurons), values)
        else:
            self.buffer.index_copy_(1, torch.from_numpy(neurons), values.t().contiguous())

    def compute(self, x: torch.Tensor, original: Forward) -> torch.Tensor:
        """`original(x)` with the buffer as the weight."""
        shape, strides = self.shape, self.buffer.stride()
        self._held["weight"] = as_weight(self.buffer, shape, strides, requires_grad=self.weight.requires_grad)
        try:
            return original(x)
        finally:
            self._held["weight"] = self.weight


def _limit() -> float:
    return _LARGEST_HALF if torch.is_autocast_enabled("cpu") else float("inf")


class Scratch:
    """Two buffers for the matrices of all layers: one for output projections, one for input projections.

    A buffer is as large as the largest of its matrices. `owner` is the layer whose rows are in them.
    """

    def __init__(self, downs: Sequence[Matrix], ups: Sequence[Matrix]) -> None:
        self.owner: SparseLayer | None = None
        self.nbytes = 0
        for matrices in (downs, ups):
            nbytes = max((m.nbytes for m in matrices), default=0)
            if not nbytes:
                continue
            content = torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)  # zero, and taken as it is touched
            self.nbytes += nbytes
            for m in matrices:
                m.buffer = content[: m.nbytes].view(m.dtype).view(m.shape)

    def clear(self) -> None:
        """Make everything zero that may not be."""
        owner, self.owner = self.owner, None
        if owner is not None:
            for m in owner.matrices:
                m.buffer.zero_()

    def close(self) -> None:
        """Forget the layer whose rows are there."""
        self.owner = None


class SparseLayer:
    """A layer of the file. `matrices` are the output projection and, with a gate, the input projection.

    `active` has, where that is recorded, the neurons (ascending) that each step asked for. `order` lists the neurons as
    they are stored; file and window count by place in it.
    """

    def __init__(
        self,
        number: int,
        matrices: Sequence[Matrix],
        order: Indices,
        file: RowFile,
        scratch: Scratch,
        window: RowWindow,
        bridge_nbytes: int,
        *,
        recording: bool,
    ) -> None:
        self.number = number
        self.matrices = tuple(matrices)
        self.down = matrices[0]
        self.traffic = RowTraffic()
        self.active: list[Indices] = []
        self.recording = recording
        self._layout = file.layouts[number]
        self._order = order
        self._place = np.argsort(order)
        self._file = file
        self._scratch = scratch
        self._window = window
        self._bridge_nbytes = bridge_nbytes
        self._always = np.unique(np.concatenate([m.always for m in matrices]))
        self._filled = np.zeros(self.down.neurons, np.bool_)

    @property
    def nbytes(self) -> int:
        """The most memory that its window and its tables take."""
        tables = self._order.nbytes + self._place.nbytes + self._always.nbytes + self._filled.nbytes
        return self._window.nbytes + tables

    def close(self) -> None:
        """Let buffers and window go."""
        self._window = RowWindow(0, self._layout.neuron_nbytes, calls=0, rows=0)
        for m in self.matrices:
            m.buffer = torch.empty(0)

    def project(self, h: torch.Tensor, original: Forward, *, exact: bool) -> tuple[torch.Tensor, bool]:
        """The output projection of `h`; whether its bits are those of the whole matrix, which they always are where
        those of `h` are: `exact`. Zeros of `h` may else have another sign."""
        active = neurons_apart(bits(h) * 2 != 0, self.down.neurons)  # all but its sign
        filled = len(self.matrices) > 1 and self._scratch.owner is self  # by the input projection
        if not filled or not self._filled[active].all():
            self.fill(active)
        result = self.down.compute(h, original)
        zero = result == 0
        if exact and self.down.signed is not None and zero.shape[-1:] == self.down.signed.shape:
            zero = zero & self.down.signed
        if not bool(zero.any()):
            return result, True
        if not exact:
            return result, False
        if not self._filled.all():
            self.fill_all()
            result = self.down.compute(h, original)
        return result, True

    def touch(self) -> None:
        """Take all the memory that it ever takes: the window's, and what reading all neurons takes."""
        with torch.no_grad():
            self._window.touch()
            self.fill_all()

    def fill_all(self) -> None:
        """Have the rows of all neurons in the buffers."""
        self.fill(np.arange(self.down.neurons))

    def fill(self, active: Indices) -> None:
        """Have the rows of these neurons (ascending), and of those that are always needed, in the buffers; others zero.

        Raises ExecutionError where they cannot be read; the next call begins anew.
        """
        needed = np.union1d(active, self._always)
        if self.recording:
            self.active.append(needed)
        self._scratch.clear()
        self._scratch.owner = self
        self._filled[:] = False
        reading = Reading()
        try:
            missing = self._fill(np.sort(self._place[needed]), reading)
        except BaseException:
            self._window.clear()
            raise
        self._filled[needed] = True
        told = self.traffic
        told.steps += 1
        told.whole += len(needed) == self.down.neurons
        told.read_nbytes += reading.nbytes
        told.requests += reading.requests
        told.needed_nbytes += missing * self._layout.neuron_nbytes
        told.resident_nbytes = self._window.most * self._layout.neuron_nbytes

    def _fill(self, places: Indices, reading: Reading) -> int:
        """From the window, then from the file; how many came from there."""
        window, piece = self._window, self._layout.piece_nbytes
        here, slots, missing = window.split(places)
        band = max(1, READ_NBYTES // self._layout.neuron_nbytes)
        for start in range(0, len(here), band):
            rows = window.content[slots[start : start + band]]
            for region in range(self._layout.regions):
                self._write(region, here[start : start + band], rows[:, region * piece : (region + 1) * piece])
        kept = window.push(places)
        for region, found, rows in self._file.read(self.number, missing, self._bridge_nbytes, reading):
            if kept is not None:
                at = kept[np.searchsorted(missing, found)]
                window.content[at, region * piece : (region + 1) * piece] = rows
            self._write(region, found, rows)
        return len(missing)

    def _write(self, region: int, places: Indices, rows: Bytes) -> None:
        neurons, width = self._order[places], self._layout.row_nbytes
        if not self._layout.bundled:
            self.matrices[region].write(neurons, rows)
            return
        for k, matrix in enumerate(self.matrices):
            matrix.write(neurons, rows[:, k * width : (k + 1) * width])


def bits(x: torch.Tensor) -> torch.Tensor:
    """Its elements as integers: what is zero to a thread that flushes denormals is not to all others."""
    return x.view(_INTEGERS[x.element_size()])


def neurons_apart(active: torch.Tensor, neurons: int) -> Indices:
    """The neurons (last dimension) that are active for any token; all where that dimension is another."""
    if active.dim() == 0 or active.shape[-1] != neurons:
        return np.arange(neurons)
    return np.flatnonzero(active.reshape(-1, neurons).any(0).numpy())
