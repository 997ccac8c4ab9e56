"""Gaps in the phases of a watch, those of like phases merged: what `coarse` makes columns of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..linear import Floats
from .model import from_write_on
from .problem import ResidencyProblem

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """The gaps of a problem as arrays. `joins`, `due`: the instants from which an absent item is away, and by which it
    is back. `chains`: indices of the dirty gaps of each item, in their order from its write on."""

    nbytes: Floats
    start: Ints
    end: Ints
    joins: Ints
    due: Ints
    clean: NDArray[np.bool_]
    chains: tuple[tuple[int, ...], ...]


def gap_arrays(problem: ResidencyProblem) -> Gaps:
    """The gaps of `problem` as arrays, those of no bytes included."""
    count = len(problem.gaps)
    start = np.fromiter((g.start for g in problem.gaps), np.int64, count)
    end = np.fromiter((g.end for g in problem.gaps), np.int64, count)
    clean = np.fromiter((g.clean for g in problem.gaps), np.bool_, count)
    nbytes = np.fromiter((g.nbytes for g in problem.gaps), np.float64, count)
    items = np.fromiter((g.item for g in problem.gaps), np.int64, count)
    dirty = np.flatnonzero(~clean & (nbytes > 0) & (start >= 0))
    dirty = dirty[np.lexsort((start[dirty], items[dirty]))]
    cuts = np.flatnonzero(np.diff(items[dirty])) + 1
    chains = tuple(from_write_on(problem, c.tolist()) for c in np.split(dirty, cuts)) if len(dirty) else ()
    return Gaps(nbytes, start, end, 2 * start + 2, 2 * end, clean, chains)


@dataclass(frozen=True, slots=True)
class Group:
    """Gaps of like phases, or chains of gaps of like phases: `members` are tuples of the gaps that matter, each with
    as many as there are `spans`.

    `nbytes` are those of all members per gap, `moved_nbytes` those of a store: the same, but for items whose gaps are
    of different sizes, where it is the least of them.

    A span (first, count) says that gap number k is away at watched instants first, first + 1, ..., `count` of them,
    cyclically. Only where dirty: `stores[k]` are (phase, most) of the columns z that may serve gap k and no gap
    before, `aheads[k]` (arrival, deadline, most) likewise of the y, in phases; a deadline in the next pass is so many
    phases later.
    """

    members: tuple[tuple[int, ...], ...]
    nbytes: tuple[float, ...]
    moved_nbytes: float
    spans: tuple[tuple[int, int], ...]
    dirty: bool
    stores: tuple[tuple[tuple[int, int], ...], ...] = ()
    aheads: tuple[tuple[tuple[int, int, int], ...], ...] = ()


def first_phase(watch: Ints, instants: Ints, steps: int) -> Ints:
    """The first watched instant at or after each instant, counted on from pass to pass: it ends the phase."""
    turn, within = np.divmod(instants, 2 * steps)
    return turn * len(watch) + np.searchsorted(watch, within, side="left")


def make_groups(gaps: Gaps, watch: Ints, steps: int) -> tuple[Group, ...]:
    """Gaps that cover a watched instant, merged where their phases agree; the clean ones first."""
    first = first_phase(watch, gaps.joins, steps)
    count = first_phase(watch, gaps.due, steps) - first
    first %= len(watch)
    return (*_clean_groups(gaps, first, count, len(watch)), *_chain_groups(gaps, watch, first, count, steps))


def _clean_groups(gaps: Gaps, first: Ints, count: Ints, phases: int) -> Iterator[Group]:
    alone = np.flatnonzero(gaps.clean & (gaps.nbytes > 0) & (gaps.start >= 0) & (count > 0))
    keys = first[alone] * (phases + 1) + count[alone]
    order = np.lexsort((gaps.start[alone], keys))
    alone, keys = alone[order], keys[order]
    for members in np.split(alone, np.flatnonzero(np.diff(keys)) + 1) if len(alone) else ():
        g, nbytes = int(members[0]), float(gaps.nbytes[members].sum())
        span = (int(first[g]), int(count[g]))
        yield Group(tuple((m,) for m in members.tolist()), (nbytes,), nbytes, (span,), dirty=False)


@dataclass(frozen=True, slots=True)
class _Chain:
    """What of the dirty gaps of an item there is in a watch; `spare`: a window and the number of its y that no gap
    that matters can use."""

    members: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    stores: tuple[tuple[tuple[int, int], ...], ...]
    aheads: tuple[tuple[tuple[int, int, int], ...], ...]
    spare: tuple[int, int, int]


def _chain_groups(gaps: Gaps, watch: Ints, first: Ints, count: Ints, steps: int) -> Iterator[Group]:
    """Chains merged where all phases agree. The y that no gap that matters can use are a group without spans: the
    stores ahead of all items are one pool, so none may be left out but those that begin and end in one phase."""
    lists = _Lists(
        gaps.start.tolist(),
        first.tolist(),
        count.tolist(),
        first_phase(watch, gaps.joins, steps).tolist(),
        first_phase(watch, 2 * gaps.start + 1, steps).tolist(),
        (gaps.end > gaps.start + 1).tolist(),
    )
    sizes = gaps.nbytes.tolist()
    found: dict[tuple[object, ...], tuple[list[_Chain], list[float]]] = {}
    spare: dict[tuple[int, int], float] = {}
    for mine in gaps.chains:
        chain, least = _in_phases(mine, lists, len(watch)), min(sizes[g] for g in mine)
        since, last, most = chain.spare
        if most and since < last:
            spare[since, last] = spare.get((since, last), 0.0) + most * least
        if chain.spans:
            # Sizes that differ within an item have no common factor with those of others.
            alone = mine[0] if any(sizes[g] != least for g in mine) else -1
            chains, moved = found.setdefault((chain.spans, chain.stores, chain.aheads, alone), ([], []))
            chains.append(chain)
            moved.append(least)
    for chains, moved in found.values():
        nbytes = tuple(math.fsum(sizes[g] for g in mine) for mine in zip(*(c.members for c in chains), strict=True))
        one, members = chains[0], tuple(c.members for c in chains)
        yield Group(members, nbytes, math.fsum(moved), one.spans, True, one.stores, one.aheads)
    for (since, last), nbytes in spare.items():
        yield Group((), (), nbytes, (), True, (), (((since, last, 1),),))


@dataclass(frozen=True, slots=True)
class _Lists:
    """Per gap: where it starts, its span, the phases in which a y of it arrives and in which one before it is due, and
    whether it can be absent."""

    start: list[int]
    first: list[int]
    count: list[int]
    arrives: list[int]
    deadline: list[int]
    longer: list[bool]


def _in_phases(mine: tuple[int, ...], lists: _Lists, phases: int) -> _Chain:
    members, spans = list[int](), list[tuple[int, int]]()
    stores, aheads = list[tuple[tuple[int, int], ...]](), list[tuple[tuple[int, int, int], ...]]()
    joined: dict[int, int] = {}
    origin, since, pauses, window = mine[0], lists.arrives[mine[0]], 0, (0, 0)
    for g in mine:
        turn = phases if lists.start[g] < lists.start[origin] else 0
        window = (since - phases, lists.deadline[g] + turn - phases)
        window = window if since >= phases else (since, lists.deadline[g] + turn)
        if lists.longer[g]:
            joined[lists.first[g]] = joined.get(lists.first[g], 0) + 1
        if lists.count[g] > 0:
            members.append(g)
            spans.append((lists.first[g], lists.count[g]))
            stores.append(tuple(joined.items()))
            aheads.append(((*window, pauses),) if pauses else ())
            joined, origin, since, pauses = {}, g, lists.arrives[g], 0
            window = (0, 0)
        pauses += 1
    return _Chain(tuple(members), tuple(spans), tuple(stores), tuple(aheads), (window[0], window[1], pauses - 1))
