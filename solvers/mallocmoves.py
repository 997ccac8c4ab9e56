"""The moves of the mallocGame: which are legal for the next use, and what each does to the board."""

from __future__ import annotations

import numpy as np

from .heap import Ints
from .mallocgame import Action, Board, MallocGame, Move, Use


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
