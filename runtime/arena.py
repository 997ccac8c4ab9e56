"""One block of memory in which a whole plan lives."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap

from ..ir.errors import ExecutionError
from .memory import available_nbytes

_MADV_POPULATE_WRITE = 23  # <linux/mman.h>, since Linux 5.14; Python has no name for it yet


class Arena:
    """An anonymous mapping of `nbytes`, rounded up to pages, every page present before the constructor returns.

    So no step meets a page fault, and too little memory is an ExecutionError here rather than a killed process later.
    Small pages on purpose: huge ones read and multiplied no faster where measured, and round what is resident up.
    """

    def __init__(self, nbytes: int, *, tier: str = "dram") -> None:
        self.nbytes = max(-(-nbytes // mmap.PAGESIZE), 1) * mmap.PAGESIZE
        available = available_nbytes()
        if self.nbytes > available:
            raise ExecutionError(
                f"the arena of tier '{tier}' needs {self.nbytes} bytes, {available} bytes of memory are available; "
                f"plan with a smaller --tier {tier}=SIZE or free memory"
            )
        try:
            self._map = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise ExecutionError(f"the system gives no {self.nbytes} bytes for tier '{tier}': {error}") from error
        try:
            self._populate()
        except OSError as error:
            self._map.close()
            raise ExecutionError(f"the system gives no {self.nbytes} bytes for tier '{tier}': {error}") from error
        self._view: memoryview | None = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def _populate(self) -> None:
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            for page in range(0, self.nbytes, mmap.PAGESIZE):  # a kernel before 5.14
                self._map[page] = 0

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Bytes [offset, offset + nbytes), writable."""
        if self._view is None:
            raise ExecutionError("the arena is closed")
        assert 0 <= offset <= offset + nbytes <= self.nbytes, (offset, nbytes, self.nbytes)
        return self._view[offset : offset + nbytes]

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._view is None

    def close(self) -> None:
        """Give the memory back. Views that are still held read zeros from then on."""
        if self._view is None:
            return
        self._view.release()
        self._view = None
        try:
            self._map.close()
        except BufferError:
            # Somebody holds a view, a traceback perhaps. The pages go now, the addresses with the last view.
            gc.collect()
            self._map.madvise(mmap.MADV_DONTNEED)
