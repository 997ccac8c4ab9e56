"""The branch and bound that finds a packing within a capacity, or proves that there is none; compiled by numba.

A state gives every body the lowest base that it may still have (`low`); placed bodies are at it. A decision takes a
body b: either b lies at low[b], or above it. Among all packings within the capacity consider one, P, that minimises
the sum of w_b x base_b for some positive weights w. In P nothing can be moved down alone, so if b is above the free
base low[b], an unplaced body c overlaps b there; b then rests above c, at low[c] + (height of c) or higher. The least
of these over all such c is the next low[b], and where there is no such c, b lies at low[b] without a decision. Every
other deduction is implied by the state, so P is never cut off: an exhausted search proves that nothing fits.

The ideas are those of Moffitt, "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine Learning"
(ASPLOS 2023): canonical placements, section floors, section inference, dominance, dynamic decomposition, several
preorderings in turn. Different are: decisions in any order (not by rising offset), the bound by release dates and the
deductions from it (as in one-machine scheduling: Carlier, "The one-machine sequencing problem", EJOR 11, 1982), and
weights of sections learned from failures (Boussemart et al., "Boosting systematic search by weighting constraints",
ECAI 2004).

Boxes, sections (maximal live sets) and units are those of `compact`. Loops are spelt out: this is compiled code.
"""

from __future__ import annotations

from typing import NamedTuple

from .jit import compiled
from .layout import (
    ALIGNMENT,
    BEGIN,
    BODY,
    CEILING,
    CUT,
    DIRTY,
    DONE,
    END,
    FAR,
    FIRST,
    FLOOR,
    FULL,
    HI,
    IN_PART,
    LAST,
    LEFT,
    LENGTH,
    LO,
    LOW,
    MARK,
    MEETS,
    NEXT,
    NODES,
    OTHER,
    OWNER,
    PARTS,
    PARTS_BEFORE,
    PLACED,
    QUEUE,
    RIGHT,
    SLACK,
    SPLIT,
    START,
    TOP,
    TRAIL,
    TWIN,
    UNPLACED,
    Array,
    Frames,
    Model,
    State,
)

# What `search` answers.
NOTHING_FITS, FOUND, LIMIT = 0, 1, 2

# How `choose` picks the body to decide.
LOWEST, TIGHTEST, BALANCED, LEANING = 0, 1, 2, 3


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


@compiled
def mark_placed(model: Model, state: State, body: int, change: int) -> None:
    """Count a body as placed (change -1) or as unplaced again (+1)."""
    state.body[body, DONE] = 1 if change < 0 else 0
    state.counts[PLACED] -= change
    for k in range(model.body[body, BEGIN], model.body[body + 1, BEGIN]):
        for s in range(model.box[k, FIRST], model.box[k, LAST]):
            state.section[s, UNPLACED] += change
    for s in range(model.body[body, LEFT], model.body[body, RIGHT] - 1):
        state.section[s, CUT] += change


@compiled
def place(model: Model, state: State, body: int, capacity: int) -> bool:
    """Fix a body at its lowest base and lift what it meets there; False where that no longer fits."""
    mark_placed(model, state, body, -1)
    touch(model, state, body)
    base = state.body[body, LOW]
    for k in range(model.body[body, BEGIN], model.body[body + 1, BEGIN]):
        for s in range(model.box[k, FIRST], model.box[k, LAST]):
            if base + model.box[k, HI] > state.section[s, CEILING]:
                note(state, s, CEILING, base + model.box[k, HI])
    for e in range(model.body[body, MEETS], model.body[body + 1, MEETS]):
        j = model.pair[e, 1]
        c = model.box[j, OWNER]
        if state.body[c, DONE] == 1:
            continue
        k = model.pair[e, 0]
        if (
            base + model.box[k, HI] > state.body[c, LOW] + model.box[j, LO]
            and base + model.box[k, LO] < state.body[c, LOW] + model.box[j, HI]
            and not lift(model, state, c, base + model.box[k, HI] - model.box[j, LO], capacity)
        ):
            return False
    return True


@compiled
def next_base(model: Model, state: State, body: int, dominance: bool) -> int:
    """The lowest base of a body that is not at its lowest one; FAR where it is there without loss."""
    base = state.body[body, LOW]
    if not dominance:
        return base + 1
    found = FAR
    for e in range(model.body[body, MEETS], model.body[body + 1, MEETS]):
        j = model.pair[e, 1]
        c = model.box[j, OWNER]
        if state.body[c, DONE] == 1:
            continue
        k = model.pair[e, 0]
        if state.body[c, LOW] + model.box[j, LO] < base + model.box[k, HI]:
            found = min(found, max(base + 1, state.body[c, LOW] + model.box[j, HI] - model.box[k, LO]))
    return found


@compiled
def undo(model: Model, state: State, length: int) -> None:
    """Take back all changes after the trail had this length; nothing is left to propagate."""
    bodies, live_sets = len(state.body), len(state.section)
    for t in range(state.counts[TRAIL] - 1, length - 1, -1):
        at = state.trail[t, 0]
        if at < bodies:
            state.body[at, LOW] = state.trail[t, 1]
        else:
            at -= bodies
            state.section[at % live_sets, at // live_sets] = state.trail[t, 1]
    state.counts[TRAIL] = length
    for i in range(state.counts[QUEUE]):
        state.section[state.queue[i], DIRTY] = 0
    state.counts[QUEUE] = 0


@compiled
def choose(model: Model, state: State, rank: Array, how: int, learning: bool, start: int, end: int) -> int:
    """The body to decide in sections [start, end): one below which nothing unplaced can lie; -1 if all are placed.

    LOWEST: the lowest address first. The others: the body that crosses the section with the least left over its weight,
    where what is left is counted from the floor (TIGHTEST), from address zero (BALANCED), or in between (LEANING).
    Ties go to the lower rank.
    """
    best, least = -1, 0.0
    for b in range(len(model.body) - 1):
        if state.body[b, DONE] == 1 or model.body[b, LEFT] < start or model.body[b, RIGHT] > end:
            continue
        score = 1e300
        resting = True
        for k in range(model.body[b, BEGIN], model.body[b + 1, BEGIN]):
            at = state.body[b, LOW] + model.box[k, LO]
            for s in range(model.box[k, FIRST], model.box[k, LAST]):
                floor = state.section[s, FLOOR]
                if floor < at:
                    resting = False
                    break
                weight = state.weight[s] if learning else 1.0
                if how == LOWEST:
                    value = float(floor)
                elif how == TIGHTEST:
                    value = (state.section[s, SLACK] + 0.1 * floor) / weight
                elif how == BALANCED:
                    value = (state.section[s, SLACK] + floor) / weight
                else:
                    value = state.section[s, SLACK] / weight + floor
                score = min(score, value)
            if not resting:
                break
        if resting and (best < 0 or score < least or (score == least and rank[b] < rank[best])):
            best, least = b, score
    if best < 0:  # bodies of several boxes may lie crosswise: then the lowest base of all
        for b in range(len(model.body) - 1):
            if state.body[b, DONE] == 1 or model.body[b, LEFT] < start or model.body[b, RIGHT] > end:
                continue
            if best < 0 or (state.body[b, LOW], rank[b]) < (state.body[best, LOW], rank[best]):
                best = b
    return best


@compiled
def split(model: Model, state: State, frames: Frames, part: int, level: int, body: int) -> int:
    """Parts into which placing `body` splits `part`: the first of them, or `part` where it stays whole."""
    parts = state.counts[PARTS]
    start = frames.part[part, START]
    for s in range(model.body[body, LEFT], model.body[body, RIGHT]):
        if s + 1 < frames.part[part, END] and (s + 1 < model.body[body, RIGHT]) and state.section[s, CUT] == 0:
            frames.part[parts, START], frames.part[parts, END] = start, s + 1
            frames.part[parts, SPLIT], frames.part[parts, NEXT] = level, parts + 1
            parts += 1
            start = s + 1
    if parts == state.counts[PARTS]:
        return part
    frames.part[parts, START], frames.part[parts, END] = start, frames.part[part, END]
    frames.part[parts, SPLIT], frames.part[parts, NEXT] = level, frames.part[part, NEXT]
    first = state.counts[PARTS]
    state.counts[PARTS] = parts + 1
    return first


@compiled
def search(
    model: Model,
    state: State,
    frames: Frames,
    rank: Array,
    how: int,
    capacity: int,
    limit: int,
    tricks: Tricks,
    stop: Array,
) -> int:
    """NOTHING_FITS, FOUND (bases are state.low) or LIMIT, after `limit` decisions or when stop[0] is set."""
    bodies = len(model.body) - 1
    frames.part[0, START], frames.part[0, END] = 0, len(model.start) - 1
    frames.part[0, SPLIT], frames.part[0, NEXT] = -1, -1
    state.counts[PARTS] = 1
    level, part = 0, 0
    going = propagate(model, state, capacity, tricks)
    while True:
        if state.counts[FULL] != 0:
            return LIMIT
        if going:
            if state.counts[PLACED] == bodies:
                return FOUND
            start, end = frames.part[part, START], frames.part[part, END]
            body = choose(model, state, rank, how, tricks.learning, start, end)
            if body < 0:
                part = frames.part[part, NEXT]
                continue
            if state.counts[NODES] >= limit or stop[0] != 0:
                return LIMIT
            state.counts[NODES] += 1
            state.counts[MARK] += 1
            frames.decision[level, BODY], frames.decision[level, LENGTH] = body, state.counts[TRAIL]
            frames.decision[level, OTHER] = next_base(model, state, body, tricks.dominance)
            frames.decision[level, IN_PART], frames.decision[level, PARTS_BEFORE] = part, state.counts[PARTS]
            level += 1
            going = place(model, state, body, capacity) and propagate(model, state, capacity, tricks)
            if going and tricks.decomposition:
                part = split(model, state, frames, part, level - 1, body)
        else:
            if level == 0:
                return NOTHING_FITS
            level -= 1
            body = frames.decision[level, BODY]
            undo(model, state, frames.decision[level, LENGTH])
            mark_placed(model, state, body, 1)
            state.counts[PARTS] = frames.decision[level, PARTS_BEFORE]
            # A part that is dead stays dead whatever its neighbours do: their decisions are not tried again.
            if frames.decision[level, IN_PART] != part and frames.part[part, SPLIT] != level:
                continue
            part = frames.decision[level, IN_PART]
            state.counts[MARK] += 1
            if frames.decision[level, OTHER] < FAR:
                going = lift(model, state, body, frames.decision[level, OTHER], capacity)
                going = going and propagate(model, state, capacity, tricks)
