"""The mallocGame: mapping buffers to a fast memory, one use after another, as a game for one player.

Source: Wang et al., "Optimizing Memory Mapping Using Deep Reinforcement Learning", arXiv 2305.07440, the section that
defines the game. Uses of buffers come in program order; each is a move:

    COPY     the buffer comes by a copy that runs behind earlier steps
    NO_COPY  it stays where it was for its use before
    DROP     it is not kept; here its operator waits for it, as nothing can be used outside the fast memory

Each step's duration is a supply of copy time, which copies demand. COPY takes the shortest interval before the use
whose remaining supply is enough; there must be an address that is free throughout it, found by best fit in the grid of
addresses and steps. NO_COPY needs its address free since the use before. The return is the time saved against dropping
everything. `mallocsearch` plays it.

Adapted, beyond DROP: steps repeat cyclically, so the first use of a periodic buffer may be kept from, or copied during,
the pass before; what was written must be stored when it leaves, behind later steps for COPY, while all waits for DROP;
a use for which no address is left makes the game incomplete, at the price of one more load, instead of lost: addresses
can be packed anew. Bytes are accounted so that every later use still fits beside what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np

from .heap import Heap, Ints


class Action(IntEnum):
    """What a move does; the order is that of preference in a greedy game."""

    NO_COPY = 0
    COPY = 1
    DROP = 2


@dataclass(frozen=True, slots=True)
class Buffer:
    """`nbytes` at an address that is a multiple of `alignment`; nanoseconds to copy it in and out.

    A `periodic` buffer is there in every pass, with a clean copy below at its beginning; the others are made in it.
    """

    nbytes: int
    alignment: int
    load_ns: int
    store_ns: int
    periodic: bool


@dataclass(frozen=True, slots=True)
class Use:
    """Buffer `buffer` is needed in the steps `first` to `last` without a pause; `last` may lie in the next pass.

    `removable`: whether it may leave before this use at all, since its use before. `written`: some step here writes it.
    """

    buffer: int
    first: int
    last: int
    removable: bool
    written: bool


@dataclass(frozen=True)
class MallocGame:
    """Steps with durations, a capacity in bytes, buffers, and their uses in the order of the first steps.

    `shared_channel`: copies in and out take turns, so their supply is one.

    Raises:
        ValueError: uses out of order, of unknown buffers, or outside the pass.
    """

    durations_ns: tuple[int, ...]
    capacity: int
    buffers: tuple[Buffer, ...]
    uses: tuple[Use, ...]
    shared_channel: bool = False

    def __post_init__(self) -> None:
        steps, before = len(self.durations_ns), 0
        for k, use in enumerate(self.uses):
            if not 0 <= use.buffer < len(self.buffers):
                raise ValueError(f"use {k} is of buffer {use.buffer}; there are {len(self.buffers)}")
            if not before <= use.first < steps or not use.first <= use.last < use.first + steps:
                raise ValueError(
                    f"use {k} of steps {use.first} to {use.last} is out of order or outside the {steps} steps; "
                    "give uses in the order of their first steps"
                )
            before = use.first

    @property
    def steps(self) -> int:
        """Number of steps of a pass."""
        return len(self.durations_ns)

    @cached_property
    def uses_of(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the uses of each buffer, in order."""
        found: list[list[int]] = [[] for _ in self.buffers]
        for k, use in enumerate(self.uses):
            found[use.buffer].append(k)
        return tuple(map(tuple, found))

    def begins_dirty(self, buffer: int) -> bool:
        """Whether a buffer may hold what its copy below does not when a pass begins: a periodic one that is written."""
        return self.buffers[buffer].periodic and any(self.uses[k].written for k in self.uses_of[buffer])

    def use_before(self, k: int) -> Use:
        """The use of the same buffer before use `k`; before the first one comes the last."""
        mine = self.uses_of[self.uses[k].buffer]
        return self.uses[mine[mine.index(k) - 1]]

    @cached_property
    def worst_ns(self) -> int:
        """Nanoseconds that the operators wait if everything is dropped before every use."""
        total = 0
        for number, mine in enumerate(self.uses_of):
            dirty = self.begins_dirty(number)
            for k in mine:
                use, buffer = self.uses[k], self.buffers[self.uses[k].buffer]
                if use.removable:
                    total += buffer.load_ns + (buffer.store_ns if dirty else 0)
                    dirty = False
                dirty = dirty or use.written
        return total


@dataclass(frozen=True, slots=True)
class Move:
    """A move with all that follows from it. `offset` -1: no address was found.

    The buffer comes at instant `start` (below 0: in the pass before). `left_at`: until when it keeps its old address to
    be stored behind later steps, None if nothing is. `around`: NO_COPY across the end of the pass, whose other side is
    pinned to the same address. `loads` and `stores` are grants of (step, nanoseconds) of supply.
    """

    action: Action
    offset: int
    start: int
    cost_ns: int
    left_at: int | None = None
    around: bool = False
    loads: tuple[tuple[int, int], ...] = ()
    stores: tuple[tuple[int, int], ...] = ()


@dataclass
class Board:
    """A game under way: what is occupied, what supply is left, and the moves so far."""

    game: MallocGame
    heap: Heap
    held: Ints
    load_left: Ints
    store_left: Ints
    offset: list[int]
    pinned: list[int]
    dirty: list[bool]
    moves: list[Move] = field(default_factory=list[Move])
    stall_ns: int = 0
    complete: bool = True
    lost: bool = False

    def copy(self) -> Board:
        """An independent board with the same moves played."""
        left = self.load_left.copy()
        stores = left if self.store_left is self.load_left else self.store_left.copy()
        return Board(
            self.game,
            self.heap.copy(),
            self.held.copy(),
            left,
            stores,
            self.offset.copy(),
            self.pinned.copy(),
            self.dirty.copy(),
            self.moves.copy(),
            self.stall_ns,
            self.complete,
            self.lost,
        )

    @property
    def over(self) -> bool:
        """Whether every use has had its move, or some use could not be served."""
        return self.lost or len(self.moves) == len(self.game.uses)


def new_board(game: MallocGame) -> Board:
    """The board before the first move. `held` starts with what the uses themselves need at each step."""
    held = np.zeros(game.steps, dtype=np.int64)
    for use in game.uses:
        held[np.arange(use.first, use.last + 1) % game.steps] += game.buffers[use.buffer].nbytes
    supply = np.asarray(game.durations_ns, dtype=np.int64)
    left, count = supply.copy(), len(game.buffers)
    return Board(
        game=game,
        heap=Heap(game.steps, game.capacity),
        held=held,
        load_left=left,
        store_left=left if game.shared_channel else supply.copy(),
        offset=[-1] * count,
        pinned=[-1] * count,
        dirty=[game.begins_dirty(b) for b in range(count)],
    )
