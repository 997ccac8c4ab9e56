"""Memory on pages of its own, where the system can, on large ones.

A request to a disk names the pieces of physical memory that it fills, and a disk takes only so many pieces a request
(`max_segments` of its queue): on small pages a megabyte may be 256 of them. On pages of two megabytes it is one piece,
or two: fewer and larger requests reach the disk, and a core spends less on each.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from contextlib import suppress
from functools import cache
from pathlib import Path

# Of <linux/mman.h>; Python has no names for them yet.
_MADV_WIPEONFORK = 18  # since Linux 4.14
_MADV_POPULATE_WRITE = 23  # since Linux 5.14
_HUGE_PAGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MOST_HUGE_NBYTES = 32 << 20  # where a large page is larger than that, there is hardly one to be had


class Pages:
    """An anonymous private mapping of `nbytes`, rounded up to small pages, from `address` on; zeros that are not there
    before they are written or `populate` is called.

    It begins at a boundary of large pages, and consists of them but for its end: what becomes resident is not rounded
    up. Raises OSError where the system gives no such mapping.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = max(-(-nbytes // mmap.PAGESIZE), 1) * mmap.PAGESIZE
        huge = huge_page_nbytes()
        spare = huge if self.nbytes >= huge > 0 else 0  # addresses only, to begin at a boundary
        self._map = mmap.mmap(-1, self.nbytes + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._start = -begin % huge if spare else 0
        if huge:
            self._advise(self.nbytes // huge * huge)
        self.address = begin + self._start
        self._view: memoryview | None = memoryview(self._map)[self._start : self._start + self.nbytes]

    def _advise(self, whole: int) -> None:
        """Large pages for the first `whole` bytes, small ones behind: where the system gives large ones to all
        mappings, the last bytes would else take one more."""
        end = self._start + whole
        with suppress(OSError):  # a kernel without them
            if whole:
                self._map.madvise(mmap.MADV_HUGEPAGE, self._start, whole)
            if end < len(self._map):
                self._map.madvise(mmap.MADV_NOHUGEPAGE, end, len(self._map) - end)

    def populate(self) -> None:
        """Make every page resident. Raises OSError where there is too little memory."""
        try:
            self._map.madvise(_MADV_POPULATE_WRITE, self._start, self.nbytes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            for page in range(self._start, self._start + self.nbytes, mmap.PAGESIZE):  # a kernel before 5.14
                self._map[page] = 0

    def keep_from_children(self) -> bool:
        """A child of a fork finds zeros here, if the system can do that; whether it can.

        Else both have the same pages until one of them writes, and the writer then copies what it writes to: for a
        place that is filled in each pass, every pass would pay for it as long as a child lives.
        """
        try:
            self._map.madvise(_MADV_WIPEONFORK, self._start, self.nbytes)
        except OSError:
            return False
        return True

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._view is None

    @property
    def whole(self) -> memoryview:
        """A view of all bytes, writable. Raises ValueError once closed."""
        if self._view is None:
            raise ValueError("the pages were given back")
        return self._view[:]

    def drop(self) -> None:
        """Give the memory back, but not the addresses: views that are still held read zeros from then on."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give memory and addresses back; again is allowed. Raises BufferError while somebody holds a view."""
        if self._view is not None:
            self._view.release()
            self._view = None
        self._map.close()


@cache
def huge_page_nbytes() -> int:
    """Bytes of the system's large page; 0 where there is none that a program may ask for."""
    try:
        nbytes = int(_HUGE_PAGE.read_text())
    except (OSError, ValueError):
        return 0
    return nbytes if nbytes <= _MOST_HUGE_NBYTES and hasattr(mmap, "MADV_HUGEPAGE") else 0
