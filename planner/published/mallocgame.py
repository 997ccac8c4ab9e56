"""The mallocGame (arXiv 2305.07440) on our instances, played by Monte-Carlo tree search."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from ...ir.plan import Plan
from ...solvers.mallocgame import Action, Buffer, MallocGame, Move, Use
from ...solvers.mallocsearch import play_game
from ..instance import Instance
from ..one_way import store_link
from ..stays import Decisions, Placed, Stay, make_stays
from ..strategies import Effort, register
from .common import Proposal, load_link, payload_nbytes, plan_of, use_blocks


@register
@dataclass(frozen=True, slots=True)
class MallocGameSearch:
    """The memory mapping game of Wang et al., "Optimizing Memory Mapping Using Deep Reinforcement Learning" (2023): in
    program order each use of a buffer is a Copy, a NoCopy or a Drop; rules and adaptations in `solvers.mallocgame`.

    The paper's agent is MuZero: tree search led by a network that was trained on one program for hours. Here the same
    search runs without training, a rollout policy in place of the network's value, fixed priors in place of its policy.
    The game's own addresses and copy intervals are realised; beside them its decisions are placed by our placement, and
    the faster plan counts.

    `iterations`: games played to the end. `search_s`: seconds after which no further one begins; with more of them than
    the games need, the answer depends on the seed alone.
    """

    name: ClassVar[str] = "malloc-game"
    iterations: int = 400
    search_s: float = 5.0

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the best game. Raises InfeasibleError or TimeLimitError where none could be placed."""
        deadline = time.monotonic() + min(self.search_s, effort.time_limit_s)
        blocks = sorted(use_blocks(instance), key=lambda b: (b.first, b.item))

        def propose(capacity_nbytes: int) -> Proposal | None:
            game = make_game(instance, blocks, capacity_nbytes)
            left_s = max(0.0, deadline - time.monotonic())
            solution = play_game(game, iterations=self.iterations, time_limit_s=left_s, seed=effort.seed).solution
            return None if solution is None else _proposal(instance, blocks, solution.moves, solution.complete)

        return plan_of(instance, effort, self.name, propose)


def make_game(instance: Instance, blocks: list[Stay], capacity_nbytes: int) -> MallocGame:
    """The instance as a game: one use for each block, in their order."""
    load, store = load_link(instance), store_link(instance)

    def buffer(i: int) -> Buffer:
        item, nbytes = instance.items[i], payload_nbytes(instance, i)
        store_ns = store.busy_ns(nbytes) if store is not None else 0
        return Buffer(item.nbytes, instance.alignment_of(i), load.busy_ns(nbytes), store_ns, item.homed)

    seen: set[int] = set()
    uses: list[Use] = []
    for block in blocks:
        made = not instance.items[block.item].homed
        again = block.item in seen
        removable = not block.always and (again or not made)
        written = block.stores or (made and not again)
        uses.append(Use(block.item, block.first, block.last, removable, written))
        seen.add(block.item)
    return MallocGame(
        durations_ns=instance.durations_ns,
        capacity=capacity_nbytes,
        buffers=tuple(buffer(i) for i in range(len(instance.items))),
        uses=tuple(uses),
        shared_channel=store is not None and store.lane == load.lane,
    )


def _proposal(instance: Instance, blocks: list[Stay], moves: tuple[Move, ...], complete: bool) -> Proposal:
    """Moves back to gaps, and to addresses and intervals where every use has an address."""
    steps = instance.steps
    number = {(g.item, g.start): (g.item, g.before) for g in instance.gaps}
    mine: dict[int, list[int]] = {}
    for k, block in enumerate(blocks):
        mine.setdefault(block.item, []).append(k)
    evicted: set[tuple[int, int]] = set()
    left_at: dict[tuple[int, int], int] = {}
    for item, own in mine.items():
        for before, k in zip([own[-1], *own[:-1]], own, strict=True):
            if moves[k].action != Action.NO_COPY:
                gap = number[item, blocks[before].last % steps]
                evicted.add(gap)
                left = moves[k].left_at
                if left is not None:
                    left_at[item, blocks[before].last] = left
    decisions = Decisions(frozenset(evicted), prefetch=True)
    if not complete:
        return decisions, None
    move_at = {(block.item, block.first): move for block, move in zip(blocks, moves, strict=True)}
    placed: list[Placed] = []
    for stay in make_stays(instance, decisions.evicted):
        move = move_at[stay.item, stay.first] if not stay.always else moves[mine[stay.item][0]]
        start = move.start if stay.loads else stay.first
        end = left_at.get((stay.item, stay.last), stay.last + 1) if stay.stores else stay.last + 1
        placed.append(Placed(stay, move.offset, start, end))
    return decisions, placed
