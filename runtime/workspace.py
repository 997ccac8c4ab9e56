"""What a kernel allocates for itself: the growth of the resident peak while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from statistics import median

from ..ir.errors import ExecutionError
from .memory import current_rss_nbytes, peak_rss_nbytes, reset_peak, settle_allocator, trim_heap

_RUNS = 3


def measure_workspace(run: Callable[[], None]) -> int:
    """Bytes by which the resident peak grows while `run` runs, beyond what is resident before it.

    `run` is called four times. The first call is not measured, so that operands are touched and code is loaded; the
    median of the others is what it allocates, touches and frees. Exact to some hundred KiB, since the kernel counts
    resident pages in batches per thread, and only while no other thread allocates. Raises ExecutionError where the
    system does not let a process reset its peak (proc(5), clear_refs), as in some sandboxes.
    """
    with returned_on_free():
        run()
        return round(median(_growth(run) for _ in range(_RUNS)))


@contextmanager
def returned_on_free() -> Generator[None]:
    """Inside the block, glibc maps every block of a page or more by itself and returns it when it is freed.

    Otherwise memory that an earlier call freed hides what the next one needs. Afterwards the allocator is as the
    executor wants it. Without effect where the C library is another.
    """
    settle_allocator(mapped_nbytes=4096, trimmed_nbytes=0)
    trim_heap()
    try:
        yield
    finally:
        settle_allocator()


def _growth(run: Callable[[], None]) -> int:
    if not reset_peak():
        raise ExecutionError(
            "'/proc/self/clear_refs' cannot be written, so the peak of one kernel cannot be told from that of the "
            "process; plan without --profile"
        )
    trim_heap()  # a free block inside the heap keeps its pages, and the next run that fits would not be seen
    before = current_rss_nbytes()
    run()
    return max(0, peak_rss_nbytes() - before)
