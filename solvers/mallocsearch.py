"""Monte-Carlo tree search in the mallocGame: PUCT, rollouts by a fixed policy, moves committed one after another."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from math import sqrt

from .mallocgame import Action, Board, MallocGame, Move, new_board
from .mallocmoves import legal_moves, play
from .result import Result, Status

EXPLORATION = 1.25
"""The constant of PUCT, as in MuZero (c1 of Schrittwieser et al. 2020, appendix B)."""

LEAST_SHARE = 8
"""Games before a move is made for good; where there are too few, several moves of the best game are made at once."""

PRIOR = {Action.NO_COPY: 0.55, Action.COPY: 0.35, Action.DROP: 0.1}
"""Prior probabilities before normalisation over the legal moves; the paper's network would give these."""

ROLLOUT_DROP = 0.03
"""Chance that a rollout drops a buffer which it could keep or copy."""


@dataclass(frozen=True)
class GameSolution:
    """The moves, one for each use of the game. `complete`: every use has an address."""

    moves: tuple[Move, ...]
    complete: bool
    stall_ns: int
    saved_ns: int


@dataclass
class _Node:
    """What follows one sequence of moves: the moves that were forced, and the choice after them."""

    forced: list[Move] = field(default_factory=list[Move])
    choices: list[Move] = field(default_factory=list[Move])
    children: dict[int, _Node] = field(default_factory=dict[int, "_Node"])
    visits: int = 0
    value: float = 0.0

    @property
    def mean(self) -> float:
        """Mean value of the games through this node."""
        return self.value / self.visits if self.visits else 0.0


def play_game(
    game: MallocGame, *, iterations: int = 400, time_limit_s: float = 10.0, seed: int = 0
) -> Result[GameSolution]:
    """The best game found: least stalled nanoseconds (the objective), of complete ones if there are any.

    `iterations` games are played to the end, shared evenly among the moves that offer a choice; after its share a move
    is made for good, the most visited one. Same answer for the same seed as long as time does not end it earlier. A
    rollout policy stands where the paper has a trained network; fixed priors stand for its probabilities.
    The bound is 0: nothing stalls. INFEASIBLE: a step needs more than the capacity. UNKNOWN: no game could be finished.

    Raises:
        ValueError: fewer than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} iterations; give at least 1")
    began = time.monotonic()
    board = new_board(game)
    if len(board.held) and int(board.held.max()) > game.capacity:
        detail = f"step {int(board.held.argmax())} needs {int(board.held.max())} bytes of {game.capacity}"
        return Result(Status.INFEASIBLE, None, None, None, 0.0, "mallocGame by MCTS", detail)
    search = _Search(game, random.Random(seed))
    search.run(board, iterations, began + time_limit_s)
    seconds = time.monotonic() - began
    detail = f"{search.games} games"
    if search.best is None:
        return Result(Status.UNKNOWN, None, None, 0, seconds, "mallocGame by MCTS", detail)
    best = search.best
    solution = GameSolution(tuple(best.moves), best.complete, best.stall_ns, game.worst_ns - best.stall_ns)
    status = Status.OPTIMAL if best.complete and best.stall_ns == 0 else Status.FEASIBLE
    return Result(status, solution, best.stall_ns, 0, seconds, "mallocGame by MCTS", detail)


class _Search:
    def __init__(self, game: MallocGame, randomness: random.Random) -> None:
        self.game = game
        self.random = randomness
        self.best: Board | None = None
        self.games = 0

    def run(self, board: Board, iterations: int, deadline: float) -> None:
        """Play until iterations or time are used up, at least one game."""
        choices = max(1, sum(u.removable for u in self.game.uses))
        share = max(LEAST_SHARE, iterations // choices)
        stride = max(1, -(-choices * share // iterations))
        root = _Node()
        self._expand(root, board.copy())
        while root.choices:
            for _ in range(share):
                self._play_out(root, board.copy())
                if self.games >= iterations or time.monotonic() > deadline:
                    return
            root = self._commit(root, board) if stride == 1 else self._follow_best(board, stride)
        self._play_out(root, board.copy())

    def _commit(self, root: _Node, board: Board) -> _Node:
        """Make the most visited move for good."""
        k = max(root.children, key=lambda k: (root.children[k].visits, root.children[k].mean, -k))
        for move in (*root.forced, root.choices[k]):
            play(board, move)
        return root.children[k]

    def _follow_best(self, board: Board, stride: int) -> _Node:
        """Make the next moves of the best game for good, up to `stride` choices; the tree begins anew."""
        if self.best is not None:
            while not board.over and stride >= self.game.uses[len(board.moves)].removable:
                stride -= self.game.uses[len(board.moves)].removable
                play(board, self.best.moves[len(board.moves)])
        root = _Node()
        self._expand(root, board.copy())
        return root if self.best is not None else _Node()

    def _play_out(self, root: _Node, board: Board) -> None:
        """Down the tree by PUCT, one new node, a rollout to the end, and the value back up."""
        path, node = [root], root
        while True:
            for move in node.forced:
                play(board, move)
            if not node.choices:
                break
            k = self._select(node)
            play(board, node.choices[k])
            if k not in node.children:
                leaf = node.children[k] = _Node()
                self._expand(leaf, board)
                path.append(leaf)
                self._rollout(leaf, board)
                break
            node = node.children[k]
            path.append(node)
        value = self._score(board)
        for node in path:
            node.visits += 1
            node.value += value

    def _expand(self, node: _Node, board: Board) -> None:
        """Play what is forced, on `board`, up to the next choice."""
        while not board.over:
            moves = legal_moves(board)
            if len(moves) > 1:
                node.choices = moves
                return
            if not moves:
                board.lost = True
                return
            node.forced.append(moves[0])
            play(board, moves[0])

    def _select(self, node: _Node) -> int:
        """PUCT: mean + c * prior * sqrt(visits) / (1 + own visits); a move not yet tried counts as its parent."""
        total = sum(PRIOR[m.action] for m in node.choices)

        def bound(k: int) -> float:
            child = node.children.get(k)
            mean, visits = (child.mean, child.visits) if child else (node.mean, 0)
            return mean + EXPLORATION * PRIOR[node.choices[k].action] / total * sqrt(node.visits + 1) / (1 + visits)

        return max(range(len(node.choices)), key=lambda k: (bound(k), -k))

    def _rollout(self, leaf: _Node, board: Board) -> None:
        """To the end by the policy: keep with the chance of this game, else copy, and seldom drop. The first game of
        all keeps whatever it can, the second copies."""
        keep = (1.0, 0.0)[self.games] if self.games < 2 else self.random.random()
        drop = 0.0 if self.games < 2 else ROLLOUT_DROP
        moves = leaf.choices
        while not board.over:
            moves = moves or legal_moves(board)
            if not moves:
                board.lost = True
                return
            play(board, self._pick(moves, keep, drop))
            moves = []

    def _pick(self, moves: list[Move], keep: float, drop: float) -> Move:
        if len(moves) == 1:
            return moves[0]
        by_action = {m.action: m for m in moves}
        chance = self.random.random()
        order = (Action.NO_COPY, Action.COPY) if chance < keep else (Action.COPY, Action.NO_COPY)
        if drop and Action.DROP in by_action and self.random.random() < drop:
            return by_action[Action.DROP]
        return next((by_action[a] for a in order if a in by_action), moves[-1])

    def _score(self, board: Board) -> float:
        """Share of the worst stall that is saved; the best game is remembered, complete ones before others."""
        self.games += 1
        if board.lost:
            return -1.0
        if self.best is None or (not board.complete, board.stall_ns) < (not self.best.complete, self.best.stall_ns):
            self.best = board
        return 1.0 - board.stall_ns / self.game.worst_ns if self.game.worst_ns else 1.0
