"""The mallocGame: legality and stalls by hand, search against every game, all answers replayed on a grid."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from tensorstow.solvers.mallocgame import Action, Board, Buffer, MallocGame, Use, new_board
from tensorstow.solvers.mallocmoves import legal_moves, play
from tensorstow.solvers.mallocsearch import play_game
from tensorstow.solvers.result import Status


def streamed(count: int, capacity: int, *, load_ns: int = 10) -> MallocGame:
    """`count` periodic buffers of one byte, buffer i used at step i; one more step at the end; 10 ns a step."""
    buffers = tuple(Buffer(1, 1, load_ns, 0, True) for _ in range(count))
    uses = tuple(Use(i, i, i, removable=True, written=False) for i in range(count))
    return MallocGame((10,) * (count + 1), capacity, buffers, uses)


def choose(board: Board, action: Action) -> None:
    play(board, next(m for m in legal_moves(board) if m.action == action))


def actions(board: Board) -> list[Action]:
    return [m.action for m in legal_moves(board)]


def test_copies_take_the_shortest_interval_whose_supply_is_enough() -> None:
    board = new_board(streamed(3, 3, load_ns=15))
    copy = next(m for m in legal_moves(board) if m.action == Action.COPY)
    assert (copy.start, copy.loads, copy.cost_ns) == (-2, ((3, 10), (2, 5)), 0)
    play(board, copy)
    copy = next(m for m in legal_moves(board) if m.action == Action.COPY)
    assert (copy.start, copy.loads) == (-2, ((0, 10), (2, 5)))  # step 3 has nothing left


def test_what_does_not_fit_beside_later_uses_is_illegal() -> None:
    board = new_board(streamed(3, 2))
    assert actions(board) == [Action.NO_COPY, Action.COPY, Action.DROP]
    choose(board, Action.NO_COPY)  # buffer 0 all round
    assert actions(board) == [Action.COPY, Action.DROP]  # a second one would leave no byte for buffer 2
    choose(board, Action.COPY)  # behind step 0
    assert actions(board) == [Action.DROP]  # behind step 1 there is no byte
    choose(board, Action.DROP)
    assert board.over
    assert (board.complete, board.stall_ns) == (True, 10)
    assert board.game.worst_ns == 30


def test_a_used_up_supply_forbids_the_copy() -> None:
    board = new_board(streamed(3, 3, load_ns=40))
    assert actions(board) == [Action.NO_COPY, Action.DROP]  # the three steps of its gap give 30


def test_what_was_written_is_stored_when_it_leaves() -> None:
    made = Buffer(1, 1, 10, 10, False)
    uses = (Use(0, 0, 0, removable=False, written=True), Use(0, 4, 4, removable=True, written=False))
    board = new_board(MallocGame((10,) * 5, 1, (made,), uses))
    assert actions(board) == [Action.NO_COPY]
    choose(board, Action.NO_COPY)
    moves = {m.action: m for m in legal_moves(board)}
    copy = moves[Action.COPY]
    assert (copy.left_at, copy.start, copy.stores, copy.loads) == (2, 3, ((1, 10),), ((3, 10),))
    assert moves[Action.DROP].cost_ns == 20
    shared = new_board(MallocGame((10,) * 3, 1, (made,), (uses[0], Use(0, 2, 2, True, False)), shared_channel=True))
    choose(shared, Action.NO_COPY)
    assert Action.COPY not in actions(shared)  # one step for both copies


def random_game(seed: int) -> MallocGame:
    """A few buffers used one to three times in a handful of steps; some made in the pass, some written again."""
    r = random.Random(seed)
    steps = r.randint(3, 6)
    buffers: list[Buffer] = []
    uses: list[Use] = []
    for b in range(r.randint(2, 4)):
        periodic = r.random() < 0.6
        buffers.append(Buffer(r.randint(1, 4), r.choice([1, 2]), r.randint(1, 25), r.randint(1, 25), periodic))
        at = sorted(r.sample(range(steps), r.randint(1, min(3, steps))))
        at = [t for k, t in enumerate(at) if not k or t > at[k - 1] + 1]
        if periodic and len(at) > 1 and at[-1] + 1 - steps == at[0]:
            at.pop()
        for k, t in enumerate(at):
            uses.append(Use(b, t, t, removable=periodic or k > 0, written=r.random() < 0.3 or (not periodic and not k)))
    uses.sort(key=lambda u: (u.first, u.buffer))
    durations = tuple(r.randint(1, 20) for _ in range(steps))
    held = new_board(MallocGame(durations, 100, tuple(buffers), tuple(uses))).held
    capacity = int(held.max()) + r.randint(0, 5)
    return MallocGame(durations, capacity, tuple(buffers), tuple(uses), shared_channel=r.random() < 0.3)


def every_game(board: Board) -> Iterator[Board]:
    if board.over:
        yield board
        return
    moves = legal_moves(board)
    for move in moves:
        after = board.copy()
        play(after, move)
        yield from every_game(after)


@pytest.mark.parametrize("seed", range(25))
def test_the_search_is_as_good_as_every_game(seed: int) -> None:
    game = random_game(seed)
    ends = [b for b in every_game(new_board(game)) if not b.lost]
    assert ends
    complete, stall = min((not b.complete, b.stall_ns) for b in ends)
    result = play_game(game, iterations=600, time_limit_s=600, seed=seed)
    assert result.solution is not None
    assert (not result.solution.complete, result.solution.stall_ns) == (complete, stall)
    assert result.objective == stall
    assert game.worst_ns - stall == result.solution.saved_ns


@pytest.mark.parametrize("seed", range(25))
def test_no_two_buffers_share_an_address_and_supply_is_not_overdrawn(seed: int) -> None:
    game = random_game(seed)
    for board in list(every_game(new_board(game)))[:40]:
        assert (board.load_left >= 0).all() and (board.store_left >= 0).all()
        assert (board.held <= game.capacity).all() or board.lost
        rows = board.heap._rows[:, : board.heap._count]  # pyright: ignore[reportPrivateUsage]
        grid = np.zeros((game.steps, game.capacity), dtype=np.int64)
        for low, high, start, length in rows.T:
            grid[np.ix_(np.arange(start, start + length) % game.steps, np.arange(low, high))] += 1
        assert grid.max(initial=0) <= 1


def test_the_same_seed_plays_the_same_game_and_more_games_are_not_worse() -> None:
    game = random_game(7)
    few, again = (play_game(game, iterations=5, time_limit_s=600, seed=3) for _ in range(2))
    assert few.solution == again.solution
    stalls = [play_game(streamed(8, 4), iterations=n, time_limit_s=600).objective for n in (1, 400)]
    assert stalls[0] is not None and stalls[1] is not None
    assert stalls[1] <= stalls[0]


def test_what_cannot_fit_is_infeasible_and_nonsense_is_refused() -> None:
    game = streamed(2, 0)
    assert play_game(game).status == Status.INFEASIBLE
    with pytest.raises(ValueError, match="at least 1"):
        play_game(streamed(2, 2), iterations=0)
    with pytest.raises(ValueError, match="out of order"):
        MallocGame((1, 1), 1, (Buffer(1, 1, 1, 1, True),), (Use(0, 1, 1, True, False), Use(0, 0, 0, True, False)))
    with pytest.raises(ValueError, match="is of buffer 3"):
        MallocGame((1, 1), 1, (Buffer(1, 1, 1, 1, True),), (Use(3, 1, 1, True, False),))


def test_a_game_without_uses_is_won() -> None:
    result = play_game(MallocGame((), 0, (), ()))
    assert result.status == Status.OPTIMAL
