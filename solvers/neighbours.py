"""Compiled searches among intervals of a cyclic pass: who touches a window, who shares addresses, since when they are
free. There are hundreds of thousands of such questions in the placement of a large graph.

The pass is divided into blocks of steps. A row that begins in a block is in the list of the block. One that lasts over
the first step of a block and began before is in the list of a node above the block in a binary tree over the blocks, so
that an interval is in few lists however long it is. Importing this imports numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .jit import compiled

Ints = NDArray[np.int64]

ENTRIES, ROWS, SEARCHES, STEPS, SIZE, FEW = 0, 1, 2, 3, 4, 5
"""Of `Lists.numbers`: entries in use, rows, searches made, steps of the pass, steps of a block, and up to how many rows
it takes longer to choose some of them than to look at all."""

LOW, HIGH, START, END = 0, 1, 2, 3
"""Of the columns that say what lies where: addresses [LOW, HIGH), -1 where there are none, in steps [START, END)."""


class Lists(NamedTuple):
    """Linked lists of rows: `heads` of the blocks' own, then of the tree's nodes, -1 where a list is empty; of each of
    `entries` the row and the next. `seen`: the last search that met a row."""

    heads: Ints
    entries: Ints
    seen: Ints
    numbers: Ints


@compiled
def make_lists(steps: int, blocks: int, few: int, rows: int, entries: int) -> Lists:
    """Empty lists for a pass of so many steps in at most so many blocks (up to a power of two)."""
    size = -(-steps // blocks)
    count = 1
    while count * size < steps:
        count *= 2
    return Lists(
        np.full(3 * count, -1, np.int64),
        np.zeros((2, entries), np.int64),
        np.zeros(rows, np.int64),
        np.array([0, 0, 0, steps, size, few], np.int64),
    )


@compiled
def most_entries(lists: Lists) -> int:
    """Entries that one row may take: its own, and two for each level of the tree in each of two passes."""
    levels, count = 1, len(lists.heads) // 3
    while count:
        levels, count = levels + 1, count // 2
    return 1 + 4 * levels


@compiled
def add_row(lists: Lists, row: int, start: int, end: int) -> None:
    """Row `row` lasts in [start, end)."""
    heads, entries, numbers = lists.heads, lists.entries, lists.numbers
    steps, size = numbers[STEPS], numbers[SIZE]
    numbers[ROWS] = max(numbers[ROWS], row + 1)
    count = len(heads) // 3
    first = start % steps
    last = first + end - start - 1
    block = first // size
    used = numbers[ENTRIES]
    entries[0, used], entries[1, used] = row, heads[block]
    heads[block] = used
    used += 1
    for turn in range(2):  # to the end of the pass, then from its beginning
        low = count + (0 if turn == 1 else block + 1)
        high = count + (last - steps if turn == 1 else min(last, steps - 1)) // size + 1
        while low < high:
            for node in (low if low % 2 == 1 else -1, high - 1 if high % 2 == 1 else -1):
                if node >= 0:
                    entries[0, used], entries[1, used] = row, heads[count + node]
                    heads[count + node] = used
                    used += 1
            low, high = (low + 1) // 2, high // 2
    numbers[ENTRIES] = used


@compiled
def touching(lists: Lists, start: int, end: int, out: Ints) -> int:
    """Put every row of which some step lies in [start, end), and some others, into `out`, each once; how many."""
    heads, entries, seen, numbers = lists.heads, lists.entries, lists.seen, lists.numbers
    steps, size, rows = numbers[STEPS], numbers[SIZE], numbers[ROWS]
    if rows <= numbers[FEW] or end - start + size >= steps:
        for row in range(rows):
            out[row] = row
        return rows
    numbers[SEARCHES] += 1
    search, found = numbers[SEARCHES], 0
    count = len(heads) // 3
    first = start % steps
    last = first + end - start - 1
    node = count + first // size
    begin, until = first // size, min(last, steps - 1) // size
    turn = 0
    while turn < 3:
        # Who lasts over the beginning of the first block; who begins in the window; in what of it is the next pass.
        if turn == 0:
            at = heads[count + node]
            node //= 2
            turn += node == 0
        elif begin <= until:
            at = heads[begin]
            begin += 1
        else:
            turn += 1
            at, begin, until = -1, 0, (last - steps) // size
        while at >= 0:
            row = entries[0, at]
            if seen[row] != search:
                seen[row] = search
                out[found] = row
                found += 1
            at = entries[1, at]
    return found


@compiled
def free_since(lists: Lists, columns: Ints, i: int, first: int, end: int, since: int, look: int, out: Ints) -> int:
    """The earliest instant from `since` on from which the addresses of row `i` are free until `end`, where its bytes
    are used from step `first` on. `look`: the steps before it in which to look first; each time twice as many."""
    steps = lists.numbers[STEPS]
    low, high = columns[LOW, i], columns[HIGH, i]
    most = first - since
    while True:
        window = look if look < most else max(1, min(most, steps))
        least = steps
        for k in range(touching(lists, first - window, end, out)):
            q = out[k]
            if q != i and columns[LOW, q] < high and columns[HIGH, q] > low:
                least = min(least, age(columns, q, first, end, steps))
        if least <= window:
            return max(first - least, since)
        if look >= most:
            return since
        look *= 2


@compiled
def not_yet_free(
    lists: Lists, columns: Ints, i: int, begin: int, first: int, end: int, bottom: int, out: Ints, ages: Ints
) -> int:
    """Put into `out` the rows whose addresses above `bottom` are not free from `begin` until `end`, with bytes used
    from step `first` on, and into `ages` for how many steps before `first` they are (`age`); how many there are."""
    steps, found = lists.numbers[STEPS], 0
    for k in range(touching(lists, min(begin, first), end, out)):
        q = out[k]
        if q != i and columns[HIGH, q] > bottom:
            free = age(columns, q, first, end, steps)
            if free < first - begin:
                out[found], ages[found] = q, free
                found += 1
    return found


@compiled
def age(columns: Ints, q: int, first: int, end: int, steps: int) -> int:
    """For how many steps before `first` the addresses of row `q` have been free; -1: occupied in some step of
    [first, end). A row without an address counts as free."""
    if columns[LOW, q] < 0:
        return steps
    start, stop = columns[START, q], columns[END, q]
    if (first - start) % steps < stop - start or (start - first) % steps < end - first:
        return -1
    return (first - stop) % steps
