"""Filling memory as a lane fills it: in requests of one size, several of them under way at once."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from .lanes import REQUESTS, Cancelled

Move = Callable[[Cancelled], None]


def cuts(lo: int, hi: int, chunk: int, shift: int) -> list[tuple[int, int]]:
    """[lo, hi) cut where position + `shift` is a multiple of `chunk`."""
    edges = [lo, *range(lo + chunk - (lo + shift) % chunk, hi, chunk), hi]
    return list(pairwise(edges)) if lo < hi else []


def run_together(moves: Sequence[Move], at_once: int = REQUESTS) -> None:
    """Run all of `moves`, begun in their order, `at_once` at a time, of which the calling thread runs one.

    With one request at a time a disk waits between two. Raises what the first one to fail raised, when none is under
    way any more; what is left is not begun then, and what is under way is told that it is cancelled.
    """
    left = iter(moves)  # a list's iterator is safe to share: each move goes to one thread
    failed: list[BaseException] = []
    helpers = [
        threading.Thread(target=_take, args=(left, failed), name="tensorstow filling", daemon=True)
        for _ in range(min(at_once, len(moves)) - 1)
    ]
    started: list[threading.Thread] = []
    try:
        for helper in helpers:
            try:
                helper.start()
            except RuntimeError:  # the system gives no more threads: fewer take longer
                break
            started.append(helper)
        _take(left, failed)
        for helper in started:
            helper.join()
    except BaseException as error:  # an interrupt
        failed.append(error)
        for helper in started:
            helper.join()
        raise
    if failed:
        raise failed[0]


def _take(left: Iterator[Move], failed: list[BaseException]) -> None:
    """Run what is left, until there is none or one has failed."""
    for move in left:
        if failed:
            return
        try:
            move(lambda: bool(failed))
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that called
            # The frames hold views of memory, which must not live as long as the error.
            traceback.clear_frames(error.__traceback__)
            failed.append(error)
            return
