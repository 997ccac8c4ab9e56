"""Threads that read for a module, all of them there before the first read."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from ...ir.errors import ExecutionError


def started_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of so many `threads` that run already: `submit` starts none, so it cannot fail for want of one.

    Raises ExecutionError, with no thread left behind, where the system gives fewer.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    begun: list[Future[bool]] = []
    go = threading.Event()  # while all before wait for it, each `submit` starts one more
    try:
        for _ in range(threads):
            begun.append(pool.submit(go.wait))  # noqa: PERF401 - those before one that fails are counted
    except BaseException as error:
        go.set()
        pool.shutdown(cancel_futures=True)
        if not isinstance(error, RuntimeError):
            raise
        raise ExecutionError(
            f"the system gives {len(begun)} of the {threads} threads that read '{name}' ({error}); allow more threads "
            "(ulimit -u), or free memory for their stacks"
        ) from error
    go.set()
    return pool
