"""One thread at a time: what an executor does is done by one, and its end waits until that is over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..ir.errors import ExecutionError

Result = TypeVar("Result")


@dataclass(slots=True)
class _Turn:
    """In one process: the lock, whether its holder is at work, and whether an end was asked for meanwhile."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    working: bool = False
    ending: bool = False


class Alone:
    """Threads that want to work on one thing take turns; a child of a fork, which has no thread but one, has its own.

    Whoever calls again from within its own work (a signal's handler runs between two of its instructions) is refused;
    an end that it asks for comes when the work is over.
    """

    def __init__(self) -> None:
        self._turns: dict[int, _Turn] = {}

    def _turn(self) -> _Turn:
        here = os.getpid()
        return self._turns.get(here) or self._turns.setdefault(here, _Turn())

    def do(self, work: Callable[[], Result], end: Callable[[], None]) -> Result:
        """What `work` returns; `end` follows it if that was asked for meanwhile.

        Raises ExecutionError where this very thread is at work already.
        """
        turn = self._turn()
        with turn.lock:
            if turn.working:
                raise ExecutionError(
                    "this thread is amid a pass of this executor (in the handler of a signal, perhaps); call again "
                    "when that has returned"
                )
            try:
                turn.working = True
                return work()
            finally:
                turn.working = False
                if turn.ending:
                    end()

    def finish(self, end: Callable[[], None]) -> None:
        """Do `end` when nobody works any more: now, or behind the work of this very thread."""
        turn = self._turn()
        with turn.lock:
            turn.ending = True
            if not turn.working:
                end()
