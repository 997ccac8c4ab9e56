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

from ..jit import compiled
from .deduce import Tricks, lift, note, propagate, touch
from .layout import (
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
    TRAIL,
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
