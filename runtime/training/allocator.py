"""Where the results of operators land: at the addresses of the plan, their workspace in a region of bounded size.

A `Region` is the memory: a planned part, addressed by the plan alone, and a workspace. A `Script` says for each
operator which of its allocations go to which planned address (`Slot`). The executor enters a script, says `at(t)`
before operator t and leaves the script; all else that allocates, allocates as before. Where no compiler is at hand the
same two classes exist in a second form: there every slot is missed, so that the executor copies each result to its
place.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import cache
from typing import TypeAlias, cast

from ...ir.errors import ExecutionError, InputError
from ..memory import settle_allocator
from .allocator_build import NativeUnavailableError, native_library
from .allocator_copy import CopyRegion, CopyScript
from .slots import PLACES, Allocation, RegionStats, Slot, address_of, check_slots

__all__ = [
    "ALIGNMENT",
    "SMALLEST_NBYTES",
    "Allocation",
    "CopyRegion",
    "CopyScript",
    "NativeRegion",
    "NativeScript",
    "Region",
    "RegionStats",
    "Script",
    "Slot",
    "install",
    "open_region",
    "uninstall",
]

ALIGNMENT = 64
"""Bytes to which torch aligns a tensor; workspace addresses are multiples of it unless told otherwise."""

SMALLEST_NBYTES = 64 << 10
"""Smaller allocations stay with the C library, whose small blocks do not fragment what is large."""

_LARGEST_ALIGNMENT = 4096
_NEVER = 1 << 62


class _Slot(ctypes.Structure):
    _fields_ = (("nbytes", ctypes.c_int64), ("address", ctypes.c_size_t), ("skip", ctypes.c_int64))


class _Allocation(ctypes.Structure):
    _fields_ = (("nbytes", ctypes.c_int64), ("address", ctypes.c_size_t), ("place", ctypes.c_int64))


@cache
def _library(library: ctypes.PyDLL) -> ctypes.PyDLL:
    """With the types of arguments that are wider than an int; the others are called faster without."""
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.stow_open.argtypes = (size, size, size, size, size, size)
    library.stow_script.restype = pointer
    library.stow_script.argtypes = (ctypes.c_int, pointer, ctypes.c_int64, pointer)
    library.stow_amend.argtypes = (pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    for name in ("stow_enter", "stow_script_free"):
        getattr(library, name).argtypes = (pointer,)
    for name in ("stow_missed", "stow_log"):
        getattr(library, name).argtypes = (pointer, ctypes.c_int64)
        getattr(library, name).restype = ctypes.c_int64
    return library


def install() -> ctypes.PyDLL:
    """Put our allocator before torch's; again is allowed. Raises NativeUnavailableError."""
    library = _library(native_library())
    reasons = {
        1: "the CPU allocator in place cannot free by address, so nothing can be put before it",
        2: "another library has put its own allocator over ours; open the region before that library starts",
        3: "another CPU allocator was registered at a higher priority than ours",
    }
    code = library.stow_install()
    if code:
        raise NativeUnavailableError(reasons[code])
    return library


def uninstall() -> None:
    """Put the allocator that was there before back. Raises ExecutionError while blocks of a region are in use."""
    library = _library(native_library())
    _reap()
    code = library.stow_uninstall()
    if code == 1:
        raise ExecutionError("tensors still lie in a region of ours, or a script is entered: close the executors first")
    if code == 2:
        raise ExecutionError("another library has put its own allocator over ours; remove that one first")


def open_region(
    planned: memoryview,
    workspace: memoryview | None = None,
    *,
    alignment: int = ALIGNMENT,
    smallest_nbytes: int = SMALLEST_NBYTES,
    native: bool | None = None,
) -> Region:
    """A region over memory of the caller, who does not write to it but where the plan says so.

    The memory should be a private mapping, as an `Arena` is: a process that forks shares with its child what is not.
    `native` None takes the second form where the allocator cannot be compiled or installed, and its `reason` says why;
    True raises NativeUnavailableError then; False takes the second form. Both fix glibc's thresholds, so that what
    overflows goes back to the system when it is freed.
    """
    if alignment & (alignment - 1) or not ALIGNMENT <= alignment <= _LARGEST_ALIGNMENT:
        raise InputError(
            f"alignment is {alignment}: give a power of two of at least {ALIGNMENT} and at most {_LARGEST_ALIGNMENT}"
        )
    settle_allocator()
    if native is False:
        return CopyRegion(planned, "the form that copies was asked for")
    try:
        library = install()
    except NativeUnavailableError as error:
        if native:
            raise
        return CopyRegion(planned, str(error))
    return NativeRegion(library, planned, workspace, alignment=alignment, smallest_nbytes=smallest_nbytes)


class NativeRegion:
    """A region whose slots are taken by the allocator.

    It holds the memory until `close` was called, or it was forgotten, and the last tensor in it is gone.
    """

    native = True
    reason = ""

    def __init__(
        self,
        library: ctypes.PyDLL,
        planned: memoryview,
        workspace: memoryview | None,
        *,
        alignment: int,
        smallest_nbytes: int,
    ) -> None:
        _reap()
        views = [planned.cast("B")] + ([workspace.cast("B")] if workspace is not None else [])
        self.begin = address_of(planned)
        self.nbytes = planned.nbytes
        where = (address_of(workspace), workspace.nbytes) if workspace is not None else (0, 0)
        number = library.stow_open(self.begin, self.nbytes, *where, alignment, smallest_nbytes)
        if number < 0:
            raise ExecutionError("256 regions are open, which is the most there can be: close executors first")
        self._library = library
        self._held = _Held(library, number, views)
        self._finalizer = weakref.finalize(self, _drop, self._held)

    def script(self, operators: Sequence[Sequence[Slot]]) -> NativeScript:
        """What `at(t)` means. Raises ExecutionError where an address is outside the planned part."""
        self._check_open()
        check_slots(operators, self.begin, self.nbytes)
        return NativeScript(self._library, self._held, operators)

    def stats(self) -> RegionStats:
        """What was counted so far."""
        self._check_open()
        out = (ctypes.c_int64 * len(astuple(RegionStats())))()
        self._library.stow_stats(self._held.number, out)
        return RegionStats(*out)

    def reset_peaks(self) -> None:
        """Count from now on."""
        self._check_open()
        self._library.stow_reset_peaks(self._held.number)

    def close(self) -> int:
        """Nothing is placed here any more; again is allowed. Returns the number of blocks that are still in use.

        They stay as they are, and the memory with them, until they are gone.
        """
        if not self._finalizer.alive:
            return 0
        stats = self.stats()
        self._finalizer()
        return stats.planned_live + stats.workspace_live

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ExecutionError("this region is closed; open a new one")


class NativeScript:
    """The slots of each operator of a pass; used by one thread at a time.

    `at(t)` ends the operator before and begins operator t; `done()` ends it. Both return how many slots of the operator
    that they ended no allocation took: then `missed` says which, and those results are not where the plan has them.
    They return -1 where no script is entered or there is no such operator. Each is one call into the library, with
    nothing of Python around it.
    """

    def __init__(self, library: ctypes.PyDLL, held: _Held, operators: Sequence[Sequence[Slot]]) -> None:
        self._library = library
        self._slots = [tuple(slots) for slots in operators]
        self.at = cast("Callable[[int], int]", library.stow_at)
        self.done = cast("Callable[[], int]", library.stow_done)
        starts = array("q", [0])
        for slots in self._slots:
            starts.append(starts[-1] + len(slots))
        flat = [_Slot(*astuple(slot)) for slots in self._slots for slot in slots]
        self._handle: int = library.stow_script(
            held.number, starts.buffer_info()[0], len(self._slots), (_Slot * len(flat))(*flat)
        )
        held.scripts.append(self._handle)
        self._held = held

    def enter(self) -> None:
        """`at` of this thread speaks of this script from now on. Raises ExecutionError after the region was closed."""
        if self._held.dropped:
            raise ExecutionError("the region of this script is closed; open a new one")
        self._library.stow_enter(self._handle)

    def leave(self) -> None:
        """End the operator that runs, and go back to the script that was entered before this one."""
        self._library.stow_leave()

    def missed(self) -> tuple[int, ...]:
        """Positions of the slots that the operator that ended last did not take."""
        count = self._library.stow_missed(None, 0)
        out = (ctypes.c_int64 * count)()
        self._library.stow_missed(out, count)
        return tuple(out)

    def logging(self, on: bool) -> None:
        """Whether `log` is kept for this thread."""
        self._library.stow_logging(int(on))

    def log(self) -> tuple[Allocation, ...]:
        """Allocations of the operator that runs or ended last, in their order."""
        count = self._library.stow_log(None, 0)
        out = (_Allocation * count)()
        self._library.stow_log(out, count)
        return tuple(Allocation(a.nbytes, a.address, PLACES[a.place]) for a in out)

    def slots(self, t: int) -> tuple[Slot, ...]:
        """The slots of operator t as they are now."""
        return self._slots[t]

    def learn(self, t: int, addresses: Sequence[int]) -> tuple[bool, ...]:
        """After operator t ran with `logging` on: `addresses[i]` is where the result of slot i is.

        Sets how many allocations of its size each slot lets pass. False for a slot whose result is in no block of its
        size that this thread allocated: it is never taken from now on, and its result is to be copied each time.
        """
        log = self.log()
        learned: list[Slot] = []
        for slot, address in zip(self._slots[t], addresses, strict=True):
            same = [a.address for a in log if a.nbytes == slot.nbytes]
            # The last of them: an earlier one at that address was a temporary that is gone.
            found = max((k for k, a in enumerate(same) if a == address), default=_NEVER)
            learned.append(Slot(slot.nbytes, slot.address, found))
        for k, slot in enumerate(learned):
            self._library.stow_amend(self._handle, t, k, slot.skip)
        self._slots[t] = tuple(learned)
        return tuple(slot.skip != _NEVER for slot in learned)


Region: TypeAlias = NativeRegion | CopyRegion
Script: TypeAlias = NativeScript | CopyScript


class _Held:
    """What a region holds: its number, its memory, its scripts."""

    def __init__(self, library: ctypes.PyDLL, number: int, views: list[memoryview]) -> None:
        self.library = library
        self.number = number
        self.views = views
        self.scripts: list[int] = []
        self.dropped = False


_lingering: list[_Held] = []
_lock = threading.RLock()  # a region may be forgotten, and so dropped, while another is


def _drop(held: _Held) -> None:
    """Give the region back, or keep it until its last tensor is gone."""
    held.dropped = True
    with _lock:
        _lingering.append(held)
    _reap()


def _reap() -> None:
    """Give back the dropped regions that nothing uses any more."""
    with _lock:
        for held in tuple(_lingering):
            if held in _lingering and held.library.stow_close(held.number):
                _lingering.remove(held)
                while held.scripts:
                    held.library.stow_script_free(held.scripts.pop())
                held.views.clear()
