"""From the fractions of the residency LP to decisions about whole items, and one that is kept in part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..solvers.residency import rounding
from .instance import Instance
from .one_way import bound_nbytes, store_link
from .stays import Decisions

PART_NBYTES = 256 << 10
"""Parts smaller than this are not worth a transfer of their own."""


def diffuse(instance: Instance, absent: Sequence[float], phase: float) -> set[int]:
    """Indices of the gaps to evict: in the order of use, evict whenever the bytes that the LP wants absent exceed what
    was evicted so far by the share `phase` of the gap at hand. The loads stay spread over the pass as the LP has them.
    """
    gaps, steps = instance.gaps, instance.steps
    order = sorted(range(len(gaps)), key=lambda g: gaps[g].end % steps)
    owed = 0.0
    evicted: set[int] = set()
    for g in order:
        nbytes = instance.items[gaps[g].item].nbytes
        owed += absent[g] * nbytes
        if absent[g] > 1e-6 and owed >= phase * nbytes:
            evicted.add(g)
            owed -= nbytes
    return evicted


WINDOWS = 16
"""Parts of the order within which `largest_first` is free to choose; within a part loads may come in any rhythm."""


def largest_first(instance: Instance, absent: Sequence[float]) -> set[int]:
    """Indices of the gaps to evict: in each window of the order as many bytes as the LP wants absent there, from the
    largest items down, what is left over carried on. Fewer transfers: each one costs the computing threads a little.
    """
    gaps, steps = instance.gaps, instance.steps
    order = sorted(range(len(gaps)), key=lambda g: gaps[g].end % steps)
    sizes = [instance.items[gap.item].nbytes for gap in gaps]
    owed = 0.0
    evicted: set[int] = set()
    for window in range(WINDOWS):
        members = order[window * len(order) // WINDOWS : (window + 1) * len(order) // WINDOWS]
        owed += sum(absent[g] * sizes[g] for g in members)
        for g in sorted((g for g in members if absent[g] > 1e-6), key=lambda g: (-sizes[g], g)):
            if owed >= 0.5 * sizes[g]:
                evicted.add(g)
                owed -= sizes[g]
    return evicted


def spread_evictions(instance: Instance, absent: Sequence[float], nbytes: int) -> list[float]:
    """Fractions absent with `nbytes` more of the weights evicted: the same share of what is kept of each."""
    gaps, items = instance.gaps, instance.items
    kept = sum((1.0 - absent[g]) * items[gap.item].nbytes for g, gap in enumerate(gaps) if gap.clean)
    share = min(1.0, nbytes / kept) if kept > 0 else 0.0
    return [e + (1.0 - e) * share if gap.clean else e for e, gap in zip(absent, gaps, strict=True)]


def fluid(
    instance: Instance, absent: Sequence[float], least_nbytes: int
) -> tuple[set[int], dict[tuple[int, int], int]]:
    """Indices of the gaps to evict, and the bytes kept in them: the fractions as they are, to the block.

    A part below `least_nbytes` is not worth a transfer of its own: it goes with the rest, or stays with it.
    """
    evicted: set[int] = set()
    kept: dict[tuple[int, int], int] = {}
    back = store_link(instance) is not None
    for g, gap in enumerate(instance.gaps):
        if not (back or gap.clean):  # it cannot leave: a link of almost no rate let the LP think of it
            continue
        nbytes = instance.items[gap.item].nbytes
        unit = instance.block_nbytes
        stays = int((1.0 - absent[g]) * nbytes) // unit * unit
        if absent[g] * nbytes < min(least_nbytes, nbytes / 2):
            continue
        evicted.add(g)
        if stays >= least_nbytes:
            kept[gap.item, gap.before] = stays
    return evicted, kept


def threshold(instance: Instance, absent: Sequence[float]) -> set[int]:
    """Indices of the gaps that the LP wants absent for more than a half, but for those in which nothing can leave."""
    back = store_link(instance) is not None
    return {g for g, gap in enumerate(instance.gaps) if absent[g] > 0.5 and (back or gap.clean)}


def spare_small(instance: Instance, evicted: set[int]) -> set[int]:
    """`evicted` without the gaps of items that are not worth a transfer of their own."""
    return {g for g in evicted if _large(instance, g)}


def worth_moving(instance: Instance) -> int:
    """The fewest bytes that are worth a transfer of their own: `PART_NBYTES`, or a thousandth of a small capacity."""
    return min(PART_NBYTES, instance.capacity_nbytes // 1000)


def _large(instance: Instance, g: int) -> bool:
    return instance.items[instance.gaps[g].item].nbytes >= worth_moving(instance)


def repair(instance: Instance, absent: Sequence[float], evicted: set[int], capacity_nbytes: int) -> bool:
    """Evict more, in place, until what is kept fits at every step (`rounding.repair`): what is not worth a transfer of
    its own last. False where it cannot."""
    out = _mask(instance, evicted)
    worth = [e if _large(instance, g) else 0.0 for g, e in enumerate(absent[: len(out)])]
    fits = rounding.repair(_pauses(instance), worth, out, capacity_nbytes)
    evicted.update(np.flatnonzero(out).tolist())
    return fits


def fill(
    instance: Instance, absent: Sequence[float], evicted: set[int], capacity_nbytes: int
) -> dict[tuple[int, int], int]:
    """Keep a part of one evicted item: as many bytes as the LP keeps in all and the rounding does not.

    The bytes that stay must also fit beside everything at every step. Returns the kept bytes by gap, at most one.
    """
    gaps, items = instance.gaps, instance.items
    alone = [
        g for g in evicted if len(items[gaps[g].item].touches) == 1 and gaps[g].clean and absent[g] < 1.0 - 1e-6
    ] or [g for g in evicted if len(items[gaps[g].item].touches) == 1 and gaps[g].clean]
    wanted = sum((1.0 - absent[g]) * items[gaps[g].item].nbytes for g in range(len(gaps)) if gaps[g].clean)
    kept = sum(items[gaps[g].item].nbytes for g in range(len(gaps)) if gaps[g].clean and g not in evicted)
    room = capacity_nbytes - int(kept_profile(instance, evicted).max(initial=0))
    unit = instance.block_nbytes
    spare = int(min(wanted - kept, room)) // unit * unit
    if spare <= 0 or not alone:
        return {}
    best = max(alone, key=lambda g: (min(items[gaps[g].item].nbytes, spare), 1.0 - absent[g]))
    nbytes = min(spare, items[gaps[best].item].nbytes - unit)
    return {(gaps[best].item, gaps[best].before): nbytes} if nbytes > 0 else {}


def kept_profile(instance: Instance, evicted: set[int]) -> NDArray[np.int64]:
    """Bytes at each step of operands, results and the items kept over it."""
    return rounding.held_profile(_pauses(instance), _mask(instance, evicted))


def _pauses(instance: Instance) -> rounding.Pauses:
    """The gaps, with the bytes that their items take when placed; those in which nothing can leave count beside them,
    with each step's own bytes."""
    back = store_link(instance) is not None
    rows = [(g.start, g.end, instance.items[g.item].nbytes if back or g.clean else 0) for g in instance.gaps]
    start, end, nbytes = np.asarray(rows, dtype=np.int64).reshape(-1, 3).T
    base = instance.base_nbytes if back else bound_nbytes(instance)
    return rounding.Pauses(start, end, nbytes, np.asarray(base, dtype=np.int64))


def _mask(instance: Instance, evicted: set[int]) -> NDArray[np.bool_]:
    out = np.zeros(len(instance.gaps), dtype=np.bool_)
    out[list(evicted)] = True
    return out


def to_decisions(
    instance: Instance, evicted: set[int], kept_nbytes: dict[tuple[int, int], int], stall_ns: Sequence[float]
) -> Decisions:
    """Decisions with prefetching, and the waits that the LP expects."""
    gaps = instance.gaps
    return Decisions(
        frozenset((gaps[g].item, gaps[g].before) for g in evicted),
        kept_nbytes,
        prefetch=True,
        stall_ns=tuple(round(q) for q in stall_ns),
    )
