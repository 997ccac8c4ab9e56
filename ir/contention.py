"""How long a step takes while links move bytes: a link lends from what computes (`Link.contention`)."""

from __future__ import annotations

from collections import deque
from math import ceil, inf

from .machine import ROUNDING_NS


class Contention:
    """Spans of virtual time in which lanes move bytes, each lane's in their order, and what they do to computing.

    While spans of the shares c1, c2, ... last, a nanosecond of computing takes 1 + c1 + c2 + ... of them. Questions
    must come in the order of time: what lies before one is forgotten.
    """

    def __init__(self, lanes: int) -> None:
        self._spans: list[deque[tuple[int, int, float]]] = [deque() for _ in range(lanes)]

    def add(self, lane: int, start_ns: int, end_ns: int, share: float) -> None:
        """Lane `lane` moves bytes in [start_ns, end_ns), which begins where its last span ended, or later."""
        if share and end_ns > start_ns:
            self._spans[lane].append((start_ns, end_ns, share))

    def end_ns(self, start_ns: int, duration_ns: int) -> int:
        """When a step is complete that starts at `start_ns` and computes for `duration_ns`; rounded up."""
        now, left = start_ns, float(duration_ns)
        while True:
            pace, change = 1.0, inf
            for spans in self._spans:
                while spans and spans[0][1] <= now:
                    spans.popleft()
                if spans:
                    begin, end, share = spans[0]
                    pace += share if begin <= now else 0.0
                    change = min(change, end if begin <= now else begin)
            end = now + max(0, ceil(left * pace - ROUNDING_NS))
            if end <= change:
                return end
            left -= (change - now) / pace
            now = int(change)

    def after(self, end_ns: int) -> list[tuple[tuple[int, int, float], ...]]:
        """What of the spans lies after `end_ns`, from there."""
        return [
            tuple((max(a - end_ns, 0), b - end_ns, share) for a, b, share in spans if b > end_ns)
            for spans in self._spans
        ]
