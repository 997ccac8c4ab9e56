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


def legal_moves(board: Board) -> list[Move]:
    """Every legal move for the next use, at most one of each action, in the order of `Action`.

    Empty when the use cannot be served: what may not leave would not fit.
    """
    game = board.game
    k = len(board.moves)
    use, buffer = game.uses[k], game.buffers[game.uses[k].buffer]
    first = k == game.uses_of[use.buffer][0]
    if first and not (buffer.periodic and use.removable):
        return [_defined(board, use)]
    other = game.use_before(k)
    before = other.last + 1 - (game.steps if first else 0)
    stay = _stay_around(board, use, other, before) if first else _stay(board, k, before)
    moves = [stay, *((_copy(board, k, before), _dropped(board, k)) if use.removable else ())]
    if not use.removable and stay is None and _bytes_fit(board, before, use.first, buffer.nbytes):
        moves = [Move(Action.NO_COPY, -1, before, buffer.load_ns)]
    return [m for m in moves if m is not None]


def play(board: Board, move: Move) -> None:
    """Make a move of `legal_moves`."""
    game = board.game
    k = len(board.moves)
    use, buffer = game.uses[k], game.buffers[game.uses[k].buffer]
    if move.left_at is not None:
        before = game.use_before(k).last + 1
        _hold(board, before, move.left_at, board.offset[use.buffer], buffer.nbytes)
    if move.around:
        other = game.use_before(k)
        board.pinned[use.buffer] = move.offset
        start, end = _around(game, use, other)
        board.heap.take(start, end, move.offset, buffer.nbytes)
    elif move.offset >= 0:
        until = use.first if _pin(board, k) is not None else use.last + 1  # a pinned use has its place already
        board.heap.take(move.start, until, move.offset, buffer.nbytes)
    board.held[np.arange(move.start, use.first) % game.steps] += buffer.nbytes
    for left, grants in ((board.load_left, move.loads), (board.store_left, move.stores)):
        for step, nanoseconds in grants:
            left[step] -= nanoseconds
    stays = move.action == Action.NO_COPY
    board.dirty[use.buffer] = use.written or (board.dirty[use.buffer] and stays)
    board.offset[use.buffer] = move.offset
    board.complete &= move.offset >= 0
    board.stall_ns += move.cost_ns
    board.moves.append(move)


def _around(game: MallocGame, use: Use, other: Use) -> tuple[int, int]:
    """From the last use in the pass before through the first one; the whole cycle if that is the same use."""
    return (use.first, use.first + game.steps) if other is use else (other.first - game.steps, use.last + 1)


def _hold(board: Board, start: int, end: int, offset: int, nbytes: int) -> None:
    board.held[np.arange(start, end) % board.game.steps] += nbytes
    if offset >= 0:
        board.heap.take(start, end, offset, nbytes)


def _bytes_fit(board: Board, start: int, end: int, nbytes: int) -> bool:
    """Whether `nbytes` more fit at all steps of [start, end) beside everything that is or will be needed there."""
    if start >= end:
        return True
    return int(board.held[np.arange(start, end) % board.game.steps].max()) + nbytes <= board.game.capacity


def _defined(board: Board, use: Use) -> Move:
    """The first use of what is made here, or of what never leaves: it is where it is, if there is an address."""
    buffer = board.game.buffers[use.buffer]
    offset = board.heap.best_fit(use.first, use.last + 1, buffer.nbytes, buffer.alignment)
    cost = 0 if offset is not None else buffer.load_ns
    return Move(Action.NO_COPY, -1 if offset is None else offset, use.first, cost)


def _stay(board: Board, k: int, before: int) -> Move | None:
    use = board.game.uses[k]
    buffer, offset, pinned = board.game.buffers[use.buffer], board.offset[use.buffer], _pin(board, k)
    if not _bytes_fit(board, before, use.first, buffer.nbytes) or (pinned is not None and pinned != offset):
        return None
    until = use.first if pinned is not None else use.last + 1
    if offset >= 0 and not board.heap.is_free(before, until, offset, buffer.nbytes):
        return None
    return Move(Action.NO_COPY, offset, before, 0)


def _stay_around(board: Board, use: Use, other: Use, before: int) -> Move | None:
    """Kept from the last use of the pass before, which is pinned to the same address."""
    buffer, steps = board.game.buffers[use.buffer], board.game.steps
    if not _bytes_fit(board, before, use.first, buffer.nbytes):
        return None
    start, end = _around(board.game, use, other)
    if end - start > steps:
        return None
    offset = board.heap.best_fit(start, end, buffer.nbytes, buffer.alignment)
    return None if offset is None else Move(Action.NO_COPY, offset, before, 0, around=True)


def _pin(board: Board, k: int) -> int | None:
    """The address that a periodic buffer's last use is pinned to, if this is that use."""
    buffer = board.game.uses[k].buffer
    mine = board.game.uses_of[buffer]
    return board.pinned[buffer] if board.pinned[buffer] >= 0 and k == mine[-1] and len(mine) > 1 else None


def _copy(board: Board, k: int, before: int) -> Move | None:
    """The shortest interval before the use whose supply is enough, behind the store if one is needed."""
    use = board.game.uses[k]
    buffer = board.game.buffers[use.buffer]
    loads = _latest_supply(board.load_left, before, use.first, buffer.load_ns)
    if loads is None:
        return None
    start, load_grants = loads
    left_at, store_grants, cost = None, (), 0
    if board.dirty[use.buffer] and k == board.game.uses_of[use.buffer][0]:
        cost = buffer.store_ns  # of the pass before, where its address is not known yet: all waits for the store
    elif board.dirty[use.buffer]:
        left = board.store_left.copy()
        if board.store_left is board.load_left:
            for step, nanoseconds in load_grants:
                left[step] -= nanoseconds
        stores = _earliest_supply(left, before, start, buffer.store_ns)
        if stores is None:
            return None
        left_at, store_grants = stores
        offset = board.offset[use.buffer]
        if not _bytes_fit(board, before, left_at, buffer.nbytes):
            return None
        if offset >= 0 and not board.heap.is_free(before, left_at, offset, buffer.nbytes):
            return None
    if not _bytes_fit(board, start, use.first, buffer.nbytes):
        return None
    offset = _address(board, k, start)
    if offset is None:
        return None
    return Move(Action.COPY, offset, start, cost, left_at, loads=load_grants, stores=store_grants)


def _dropped(board: Board, k: int) -> Move:
    use = board.game.uses[k]
    buffer = board.game.buffers[use.buffer]
    cost = buffer.load_ns + (buffer.store_ns if board.dirty[use.buffer] else 0)
    offset = _address(board, k, use.first)
    if offset is None:
        return Move(Action.DROP, -1, use.first, cost + buffer.load_ns)
    return Move(Action.DROP, offset, use.first, cost)


def _address(board: Board, k: int, start: int) -> int | None:
    use = board.game.uses[k]
    buffer, pinned = board.game.buffers[use.buffer], _pin(board, k)
    if pinned is None:
        return board.heap.best_fit(start, use.last + 1, buffer.nbytes, buffer.alignment)
    return pinned if board.heap.is_free(start, use.first, pinned, buffer.nbytes) else None


Grants = tuple[tuple[int, int], ...]


def _latest_supply(left: Ints, before: int, end: int, needed_ns: int) -> tuple[int, Grants] | None:
    """The latest start in [before, end] from which supply of `needed_ns` is left until `end`, and the grants."""
    steps = np.arange(end - 1, before - 1, -1)
    return _supply(left, steps, needed_ns, end, 0)


def _earliest_supply(left: Ints, start: int, latest: int, needed_ns: int) -> tuple[int, Grants] | None:
    """The earliest end in [start, latest] until which supply of `needed_ns` is left from `start`, and the grants."""
    return _supply(left, np.arange(start, latest), needed_ns, start, 1)


def _supply(left: Ints, order: Ints, needed_ns: int, at: int, beyond: int) -> tuple[int, Grants] | None:
    if needed_ns <= 0:
        return at, ()
    sums = np.cumsum(left[order % len(left)])
    if not len(order) or sums[-1] < needed_ns:
        return None
    count = int(np.searchsorted(sums, needed_ns)) + 1
    taken = np.minimum(sums[:count], needed_ns)
    shares = np.diff(np.concatenate([[0], taken]))
    grants = tuple((int(t) % len(left), int(n)) for t, n in zip(order[:count], shares, strict=True) if n)
    return int(order[count - 1]) + beyond, grants
