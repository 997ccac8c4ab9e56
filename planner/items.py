"""What strategies decide on: storages with the steps that touch them, and the pauses between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, lcm

from ..ir.graph import Graph, Storage
from ..ir.uses import Uses, storage_uses


@dataclass(frozen=True, slots=True)
class Item:
    """A storage as strategies see it: the steps that touch it, in order, and the bytes it takes when placed.

    `homed` items have a copy below and are used pass after pass; the others live from their first step (an input from
    the beginning of the pass) to their last (an output to its end). `writes` are the touches that change it: a homed
    item with any must be stored before it is dropped. A storage that is made anew within a pass (recomputation) is an
    item for each time.
    """

    storage: str
    nbytes: int
    homed: bool
    touches: tuple[int, ...]
    writes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemGap:
    """The time between use number `before` of item `item` and the next one; steps as in `solvers` (end may wrap).

    `clean`: what the copy below holds is what the item holds, so that it may be dropped for nothing. An item that is
    written is dirty from its last write of a pass until it is stored, which then holds until the next one.
    """

    item: int
    before: int
    start: int
    end: int
    clean: bool


def items_of(
    graph: Graph, order: tuple[str, ...], home_alignment: int | None = None, fast_alignment: int | None = None
) -> tuple[Item, ...]:
    """The items of a graph in an order of its operators: in whole blocks of the tiers' alignments, of the home tier for
    what is homed; or, without these, with their own bytes."""

    def placed_nbytes(storage: Storage) -> int:
        if home_alignment is None or fast_alignment is None:
            return storage.nbytes
        return round_up(storage.nbytes, home_alignment if storage.homed else lcm(storage.alignment, fast_alignment))

    uses = storage_uses(graph, order)
    first, last = _boundary(graph, len(order))
    return tuple(
        Item(s.id, placed_nbytes(s), s.homed, touches, writes)
        for s in graph.storages
        if s.nbytes > 0 and s.id in uses
        for touches, writes in _lives(s, uses[s.id], order, first.get(s.id, ()), last.get(s.id, ()))
    )


def beside(items: Sequence[Item], steps: int) -> tuple[int, ...]:
    """Bytes of the items that each step touches."""
    found = [0] * steps
    for item in items:
        for t in item.touches:
            found[t] += item.nbytes
    return tuple(found)


def _lives(
    storage: Storage, uses: Uses, order: tuple[str, ...], first: tuple[int, ...], last: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(touches, writes) of each time that a storage is made; one for most."""
    touches, writes = (*first, *uses.touches, *last), uses.writes
    anew = not storage.homed and not first and len({order[w] for w in writes}) == 1 < len(writes)
    if not anew:
        if touches:
            yield tuple(sorted(set(touches))), writes
        return
    for begin, end in pairwise((*writes, len(order))):
        yield tuple(sorted({t for t in touches if begin <= t < end})), (begin,)


def _boundary(graph: Graph, steps: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Inputs are written before the first step and outputs read after the last: they count as used there."""
    if not steps:
        return {}, {}
    return (
        dict.fromkeys(graph.storages_of(graph.inputs), (0,)),
        dict.fromkeys(graph.storages_of(graph.outputs), (steps - 1,)),
    )


def round_up(nbytes: int, alignment: int) -> int:
    """The next multiple of `alignment` at or above `nbytes`."""
    return -(-nbytes // alignment) * alignment


def extent(storages: Sequence[Storage]) -> int:
    """Bytes of the least range of addresses that holds these side by side: each begins at a multiple of what divides
    all their alignments, so all but the last one take as much more as leads to the next such multiple."""
    step = gcd(*(s.alignment for s in storages)) or 1
    taken = [round_up(s.nbytes, step) for s in storages]
    return sum(taken) - max((n - s.nbytes for n, s in zip(taken, storages, strict=True)), default=0)
