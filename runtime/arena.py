"""One block of memory in which a whole plan lives."""

from __future__ import annotations

import gc

from ..ir.errors import ExecutionError
from .memory import available_nbytes
from .pages import Pages


class Arena:
    """An anonymous mapping of `nbytes`, rounded up to pages, every page present before the constructor returns.

    So no step meets a page fault, and too little memory is an ExecutionError here rather than a killed process later.
    Its pages are large ones where the system has them: into these a disk reads faster, with less of a core (`Pages`).
    """

    def __init__(self, nbytes: int, *, tier: str = "dram") -> None:
        available = available_nbytes()
        if nbytes > available:
            raise ExecutionError(
                f"the arena of tier '{tier}' needs {nbytes} bytes, {available} bytes of memory are available; "
                f"plan with a smaller --tier {tier}=SIZE or free memory"
            )
        pages: Pages | None = None
        try:
            self._pages = pages = Pages(nbytes)
            pages.populate()
        except OSError as error:
            if pages is not None:
                pages.close()
            raise ExecutionError(f"the system gives no {nbytes} bytes for tier '{tier}': {error}") from error
        self.nbytes, self.address = pages.nbytes, pages.address

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Bytes [offset, offset + nbytes), writable."""
        if self.closed:
            raise ExecutionError("the arena is closed")
        assert 0 <= offset <= offset + nbytes <= self.nbytes, (offset, nbytes, self.nbytes)
        return self._pages.whole[offset : offset + nbytes]

    def keep_from_children(self) -> None:
        """A child of a fork finds zeros here, where the system can do that: while it lives, nothing that is written
        here is copied first."""
        self._pages.keep_from_children()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pages.closed

    def close(self) -> None:
        """Give the memory back. Views that are still held read zeros from then on."""
        if self.closed:
            return
        try:
            self._pages.close()
        except BufferError:
            # Somebody holds a view, a traceback perhaps. The pages go now, the addresses with the last view.
            gc.collect()
            self._pages.drop()
