"""The words of the allocator: what an operator is expected to allocate, what it did, what a region counted."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...ir.errors import ExecutionError, InputError

Place: TypeAlias = Literal["ordinary", "planned", "workspace", "overflow"]
PLACES: tuple[Place, ...] = ("ordinary", "planned", "workspace", "overflow")


@dataclass(frozen=True, slots=True)
class Slot:
    """The allocation of exactly `nbytes` for which there is a place: `address`, or 0 to leave it where it would be.

    Of the operator's allocations of `nbytes` the first `skip` pass by: temporaries, or results that have slots of
    their own. A slot with address 0 keeps a result that outlives its operator out of the workspace.
    """

    nbytes: int
    address: int
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an operator allocated: a block of `nbytes` at `address`."""

    nbytes: int
    address: int
    place: Place


@dataclass(frozen=True, slots=True)
class RegionStats:
    """Counts since the region was opened, or since `reset_peaks`; `_live` and `_nbytes` without peak are of now.

    `hits` and `misses` are slots that were taken and that were not. `overflows` are allocations for which the
    workspace had no room, and which the allocator before ours served.
    """

    hits: int = 0
    misses: int = 0
    planned_live: int = 0
    workspace_nbytes: int = 0
    workspace_peak_nbytes: int = 0
    workspace_live: int = 0
    overflow_nbytes: int = 0
    overflow_peak_nbytes: int = 0
    overflows: int = 0


def address_of(view: memoryview) -> int:
    """Of its first byte. Raises InputError where it cannot be written."""
    if view.readonly:
        raise InputError("a region needs memory that can be written")
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view.nbytes else 0


def check_slots(operators: Sequence[Sequence[Slot]], begin: int, nbytes: int) -> None:
    """Raise ExecutionError where an address is outside the `nbytes` of the planned part at `begin`."""
    for t, slots in enumerate(operators):
        for k, slot in enumerate(slots):
            inside = begin <= slot.address and slot.address + slot.nbytes <= begin + nbytes
            if slot.nbytes <= 0 or slot.skip < 0 or (slot.address and not inside):
                raise ExecutionError(
                    f"slot {k} of operator {t} needs {slot.nbytes} bytes at {slot.address:#x} after {slot.skip} others,"
                    f" and the planned part is [{begin:#x}, {begin + nbytes:#x}): the plan and this region do not match"
                )
