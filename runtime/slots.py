"""Where spilled bytes lie in the scratch file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph
from ..ir.plan import Transfer
from .directio import BLOCK


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes [lo, hi) of a spilled storage lie at `offset` of the scratch file."""

    lo: int
    hi: int
    offset: int


def make_slots(graph: Graph, spilled: Iterable[Transfer]) -> tuple[dict[str, list[Slot]], int]:
    """A place in the scratch file for each range that is ever spilled, on block boundaries; and the bytes of the file.

    What several operators write in turn may leave once in part and later whole, each time with other bytes: the
    part and the rest have places of their own then, which hold whatever was stored last.
    """
    ranges: dict[str, set[tuple[int, int]]] = {}
    for t in spilled:
        ranges.setdefault(t.storage, set()).add((t.lo, t.hi))
    slots: dict[str, list[Slot]] = {}
    end = 0
    writers: dict[str, set[str]] = {}
    for op in graph.operators:
        for storage in graph.writes(op):
            writers.setdefault(storage, set()).add(op.id)
    for storage, found in ranges.items():
        for lo, hi in _apart(found) if len(writers.get(storage, ())) > 1 else sorted(found):
            before = slots.setdefault(storage, [])
            if before and before[-1].hi > lo:
                raise PlanMismatchError(
                    f"'{storage}' is stored as bytes [{before[-1].lo}, {before[-1].hi}) and as [{lo}, {hi}), which "
                    "overlap; plan again"
                )
            before.append(Slot(lo, hi, end))
            end += -(-(hi - lo) // BLOCK) * BLOCK
    return slots, end


def _apart(ranges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """What the ranges cover, cut wherever one of them begins or ends."""
    edges = sorted({edge for both in ranges for edge in both})
    return [(a, b) for a, b in pairwise(edges) if any(lo <= a and b <= hi for lo, hi in ranges)]
