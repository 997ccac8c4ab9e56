"""The arrays of the exact search and their columns; which boxes meet, and which live in each section."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled

Array = NDArray[Any]

FAR = 1 << 61
"""Above every address: no alternative."""

# Columns. Few wide arrays instead of many narrow ones: that is less to compile, and a cache line holds a row.
BEGIN, ALIGNMENT, TOP, LEFT, RIGHT, TWIN, MEETS = 0, 1, 2, 3, 4, 5, 6  # Model.body
OWNER, FIRST, LAST, LO, HI = 0, 1, 2, 3, 4  # Model.box
LOW, DONE = 0, 1  # State.body
SLACK, CEILING, FLOOR, UNPLACED, CUT, DIRTY = 0, 1, 2, 3, 4, 5  # State.section; the trail holds the first three
TRAIL, QUEUE, PLACED, NODES, PARTS, MARK, FULL = 0, 1, 2, 3, 4, 5, 6  # State.counts
BODY, OTHER, LENGTH, IN_PART, PARTS_BEFORE = 0, 1, 2, 3, 4  # Frames.decision
START, END, SPLIT, NEXT = 0, 1, 2, 3  # Frames.part


class Model(NamedTuple):
    """What does not change.

    `body`: boxes k of body i are [BEGIN of i, BEGIN of i + 1), its sections lie in [LEFT, RIGHT), TOP is its height,
    TWIN the next body that is alike (-1: none). `box`: sections [FIRST, LAST), addresses [LO, HI) above the base. The
    boxes that body i meets are rows (own box, other box) [MEETS of i, MEETS of i + 1) of `pair`. The boxes of section s
    are [start[s], start[s + 1]) of `State.order`.
    """

    body: Array
    box: Array
    start: Array
    pair: Array


class State(NamedTuple):
    """What changes.

    `body`: the lowest base, and whether it is final. `section`: SLACK is what is left, CEILING the highest end of what
    is placed, FLOOR the lowest address of what is not, UNPLACED the number of boxes to come, CUT that of unplaced
    bodies that cross to the next section. `stamp` tells what is on the `trail` (place, old value) since the last
    decision.
    """

    body: Array
    section: Array
    queue: Array
    order: Array
    trail: Array
    stamp: Array
    counts: Array
    weight: Array


class Frames(NamedTuple):
    """The stack of decisions (body, its other base, length of the trail, part, parts before), and the parts: sections
    [START, END), the decision that split them off, the part to search after."""

    decision: Array
    part: Array


@compiled
def meetings(begin: Array, owner: Array, first: Array, last: Array, by_first: Array) -> Any:
    """For each body where its rows begin, and the rows (own box, box of another body at the same time)."""
    bodies, boxes = len(begin) - 1, len(owner)
    starts = np.zeros(bodies + 1, np.int64)
    pair = np.zeros((0, 2), np.int32)
    for write in range(2):
        at = 0
        for i in range(bodies):
            for k in range(begin[i], begin[i + 1]):
                for q in range(boxes):
                    j = by_first[q]
                    if first[j] >= last[k]:
                        break
                    if last[j] > first[k] and owner[j] != i:
                        if write == 1:
                            pair[at, 0], pair[at, 1] = k, j
                        at += 1
            starts[i + 1] = at
        if write == 0:
            pair = np.zeros((at, 2), np.int32)
    return starts, pair


@compiled
def sections(first: Array, last: Array, live_sets: int) -> Any:
    """Boxes of each section, by index: positions and boxes."""
    start = np.zeros(live_sets + 1, np.int64)
    for k in range(len(first)):
        for s in range(first[k], last[k]):
            start[s + 1] += 1
    for s in range(live_sets):
        start[s + 1] += start[s]
    at = start.copy()
    order = np.zeros(start[live_sets], np.int64)
    for k in range(len(first)):
        for s in range(first[k], last[k]):
            order[at[s]] = k
            at[s] += 1
    return start, order
