"""What follows from a decision of the packing search: lowest bases, section by section; compiled by numba.

The argument stands in `kernel`. Loops are spelt out: this is compiled code.
"""

from __future__ import annotations

from typing import NamedTuple

from ..jit import compiled
from .layout import (
    ALIGNMENT,
    BEGIN,
    CEILING,
    DIRTY,
    DONE,
    FAR,
    FIRST,
    FLOOR,
    FULL,
    HI,
    LAST,
    LO,
    LOW,
    MARK,
    MEETS,
    OWNER,
    QUEUE,
    SLACK,
    TOP,
    TRAIL,
    TWIN,
    Model,
    State,
)


class Tricks(NamedTuple):
    """Switches of the search. Each reduces its work; without any of them it still finds and proves the same.

    `section_inference`: the bytes still to come must fit above the floor of every section.
    `release_dates`: that bound counts the holes below bodies that cannot come down (else the floor alone).
    `not_first`: a body that would leave too much waste as the lowest of its section lies above another one.
    `dominance`: a body above a free place rests on another; without one that can reach there, it takes the place.
    `twins`: bodies alike in everything stand in one order.
    `decomposition`: what no unplaced body connects any more is searched apart: a dead part is not retried with every
        packing of the others.
    `learning`: sections where the search failed are decided first.
    """

    section_inference: bool = True
    release_dates: bool = True
    not_first: bool = True
    dominance: bool = True
    twins: bool = True
    decomposition: bool = True
    learning: bool = True


@compiled
def record(state: State, at: int, was: int) -> None:
    """Remember a value that is about to change, once between decisions."""
    t = state.counts[TRAIL]
    if state.stamp[at] == state.counts[MARK]:
        return
    if t == len(state.trail):
        state.counts[FULL] = 1
        return
    state.stamp[at] = state.counts[MARK]
    state.trail[t, 0] = at
    state.trail[t, 1] = was
    state.counts[TRAIL] = t + 1


@compiled
def touch(model: Model, state: State, body: int) -> None:
    """Have the sections of a body looked at again."""
    for k in range(model.body[body, BEGIN], model.body[body + 1, BEGIN]):
        for s in range(model.box[k, FIRST], model.box[k, LAST]):
            if not state.section[s, DIRTY]:
                state.section[s, DIRTY] = 1
                state.queue[state.counts[QUEUE]] = s
                state.counts[QUEUE] += 1


@compiled
def note(state: State, s: int, column: int, value: int) -> None:
    """Set one of the first three columns of a section, so that it can be undone."""
    if state.section[s, column] != value:
        record(state, len(state.body) + column * len(state.section) + s, state.section[s, column])
        state.section[s, column] = value


@compiled
def blame(model: Model, state: State, body: int) -> None:
    """A failure at a body is shared by its sections."""
    for k in range(model.body[body, BEGIN], model.body[body + 1, BEGIN]):
        for s in range(model.box[k, FIRST], model.box[k, LAST]):
            state.weight[s] += 1.0 / (model.box[k, LAST] - model.box[k, FIRST])


@compiled
def free_base(model: Model, state: State, body: int, base: int) -> int:
    """The lowest aligned base at or above `base` where the body meets nothing placed."""
    align = model.body[body, ALIGNMENT]
    base = (base + align - 1) // align * align
    below = False  # whether something placed could be above the base at all
    for k in range(model.body[body, BEGIN], model.body[body + 1, BEGIN]):
        for s in range(model.box[k, FIRST], model.box[k, LAST]):
            if state.section[s, CEILING] > base + model.box[k, LO]:
                below = True
                break
    while below:
        below = False
        for e in range(model.body[body, MEETS], model.body[body + 1, MEETS]):
            j = model.pair[e, 1]
            c = model.box[j, OWNER]
            if state.body[c, DONE] == 1:
                k = model.pair[e, 0]
                if (
                    state.body[c, LOW] + model.box[j, HI] > base + model.box[k, LO]
                    and state.body[c, LOW] + model.box[j, LO] < base + model.box[k, HI]
                ):
                    base = state.body[c, LOW] + model.box[j, HI] - model.box[k, LO]
                    base = (base + align - 1) // align * align
                    below = True
    return base


@compiled
def lift(model: Model, state: State, body: int, base: int, capacity: int) -> bool:
    """Raise the lowest base of an unplaced body, and of the twins above it; False where it no longer fits."""
    while True:
        base = free_base(model, state, body, base)
        if base + model.body[body, TOP] > capacity:
            blame(model, state, body)
            return False
        if base <= state.body[body, LOW]:
            return True
        record(state, body, state.body[body, LOW])
        state.body[body, LOW] = base
        touch(model, state, body)
        following = model.body[body, TWIN]
        if following < 0 or state.body[following, DONE] == 1:
            return True
        k = model.body[body, BEGIN]
        base += model.box[k, HI] - model.box[k, LO]
        body = following


@compiled
def sort_section(model: Model, state: State, s: int) -> None:
    """Boxes of a section by their lowest addresses. The order needs no undoing: it is only ever sorted again."""
    order = state.order
    for i in range(model.start[s] + 1, model.start[s + 1]):
        x = order[i]
        r = state.body[model.box[x, OWNER], LOW] + model.box[x, LO]
        q = i - 1
        while q >= model.start[s] and state.body[model.box[order[q], OWNER], LOW] + model.box[order[q], LO] > r:
            order[q + 1] = order[q]
            q -= 1
        order[q + 1] = x


@compiled
def propagate(model: Model, state: State, capacity: int, tricks: Tricks) -> bool:
    """All that follows from the lowest bases, section by section; False where nothing can follow.

    Boxes of a section, by lowest address r_1 <= r_2 <= ..., reach at least t_k = max(t_{k-1}, r_k) + size_k, whatever
    their order: they are jobs on one machine with release dates. The first box at or above the lowest unplaced one, f,
    begins at f + waste at most, where waste is what the section has left; a box that cannot is above one that can.
    """
    while state.counts[QUEUE] > 0:
        state.counts[QUEUE] -= 1
        s = int(state.queue[state.counts[QUEUE]])
        state.section[s, DIRTY] = 0
        sort_section(model, state, s)
        reached = 0
        lowest = FAR
        total = 0
        for i in range(model.start[s], model.start[s + 1]):
            x = state.order[i]
            r = state.body[model.box[x, OWNER], LOW] + model.box[x, LO]
            if lowest == FAR and state.body[model.box[x, OWNER], DONE] == 0:
                lowest = r
            if r > reached and (tricks.release_dates or total == 0):
                reached = r
            reached += model.box[x, HI] - model.box[x, LO]
            if lowest < FAR:
                total += model.box[x, HI] - model.box[x, LO]
        note(state, s, FLOOR, lowest)
        if not tricks.section_inference:
            continue
        if reached > capacity:
            state.weight[s] += 1.0
            return False
        note(state, s, SLACK, capacity - reached)
        if lowest < FAR and tricks.not_first and not raise_later(model, state, s, lowest, capacity - total, capacity):
            return False
    return True


@compiled
def raise_later(model: Model, state: State, s: int, lowest: int, latest: int, capacity: int) -> bool:
    """Boxes that begin above `latest` are not the first at or above `lowest`: they lie above one that may be."""
    start, end = model.start[s], model.start[s + 1]
    above = FAR
    for i in range(start, end):
        x = state.order[i]
        r = state.body[model.box[x, OWNER], LOW] + model.box[x, LO]
        if r > latest:
            break
        if r >= lowest:
            above = min(above, r + model.box[x, HI] - model.box[x, LO])
    for i in range(end - 1, start - 1, -1):
        x = state.order[i]
        b = model.box[x, OWNER]
        r = state.body[b, LOW] + model.box[x, LO]
        if r <= latest:
            break
        if r < above and state.body[b, DONE] == 0 and not lift(model, state, b, above - model.box[x, LO], capacity):
            return False
    return True
