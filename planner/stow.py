"""Our search for a plan in one order: the residency LP for the bound and the fractions, rounding, placement, and the
simulator's choice.

The LP lets bytes flow; addresses and whole tensors do not. How much room must be left to them is found by search: what
the LP keeps is cut by some bytes, the result rounded, placed, simulated; cuts are tried coarsely and then between the
best neighbours, and the best candidates are improved by hand. Every candidate is a plan that the simulator has scored.

Tried and left out: integer programs (`solvers.residency.mip`) for the windows of a plan that stall most, all other gaps
fixed. On networks of the zoo the gaps that a plan evicts take no longer than the bound when they flow (llama-1b at 20%,
ResNet-50 at 40%: 1.0000), so the 1 to 2% above it are lost to addresses; of 27 chains and training steps of few large
weights one was 1.7% faster, one 9.7% slower for the time it took from the exchanges, the others were the same.
Cuts of every step by as much as that step has room for, where the largest working set leaves none: in the smallest
budget ResNet-50 training took 1.23 times its bound instead of 1.61, DenseNet-121 1.10 instead of 1.11, but MoE 1.45
instead of 1.24, Llama 1.060 instead of 1.043, U-Net 1.091 instead of 1.079: more is evicted, fewer plans are tried.
Loads timed for no waits, or for those of the plan at hand, in place of the LP's: single candidates gained up to 2%, the
search nothing in equal time (ResNet-50 at 60% 1.0234 and 1.0229, U-Net 1.020 and 1.065).
Stores and loads of large values in up to eight ranges, each with its own end and start: the best candidates of training
steps gained 0.1 to 0.3% (GPT-2 at 60% 1.0139 and 1.0113, at 40% the same, ResNet-50 at 60% 1.0518 and 1.0499), a small
graph in two values' room lost 4%. What a repair evicts beyond the fractions, taken back where it fits: ResNet-50 at 40%
1.0743 and 1.0732, GPT-2 1.0234 and 1.0256. Loads that find no room placed with what is made: Llama at 40% 1.222 and
1.239.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from ..ir.collecting import without_collecting
from ..ir.errors import TimeLimitError
from ..ir.plan import Plan
from ..ir.sizes import format_size
from .instance import Instance
from .one_way import require_room
from .polish import exchange, favour
from .replay import farthest, replay_cache
from .resorts import descend, everything, insist
from .search import Search, warm_up
from .strategies import Effort
from .usual import Usual

WORTH_MORE = 0.01
"""A plan that is above its bound by more than this share is worth more time than the search had at first."""


@dataclass(frozen=True, slots=True)
class Stow:
    """Gaps by linear programming (DESIGN 4.1), rounded, placed, simulated; the best of a portfolio, in the order that
    the instance has. The strategy of this name (`order.StowBest`) plans other orders with it, too.

    `refinements`: how often the best cut's neighbourhood is halved. `search_share`: the part of the time limit that is
    spent once there is an answer. `good_enough`: differences of time below this share are none; fewer bytes decide
    then, and a plan that is as near to the bound and moves hardly more than the LP ends the search. The others switch
    an idea off, to measure what it is worth: the search over cuts, the roundings beyond halves, the repair of what
    rounding leaves too large, the prefetching replay of Belady's cache, the favoured loads, the exchange of evictions.
    """

    name: ClassVar[str] = "stow"
    refinements: int = 3
    search_share: float = 0.3
    good_enough: float = 0.001
    cuts: bool = True
    roundings: bool = True
    repair: bool = True
    replay: bool = True
    favour: bool = True
    exchange: bool = True

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best simulated plan of the portfolio."""
        best = self.search(instance, effort).best
        assert best is not None, "a search without a plan has said so"
        return best

    @without_collecting()
    def search(self, instance: Instance, effort: Effort) -> Search:
        """The portfolio, tried. Raises TimeLimitError where nothing could be placed."""
        warm_up()
        time_s = self.search_share * effort.time_limit_s
        search = Search(instance, self.name, effort.seed, time_s, effort.time_limit_s, self.good_enough, self.repair)
        usual = Usual(search)
        self._try(search, usual)
        if search.best is None and self.cuts:
            descend(search)
        if self.replay:
            usual.settle()
        if search.best is None:
            everything(search)
        if search.best is None:
            require_room(instance)
            raise TimeLimitError(
                f"no addresses were found inside {format_size(instance.fast.usable_nbytes)} of tier "
                f"'{instance.fast.name}' in {effort.time_limit_s:g} s; the largest working set takes "
                f"{format_size(max(instance.base_nbytes, default=0) + instance.workspace_nbytes)}; give it more memory "
                "or time"
            )
        return search

    @without_collecting()
    def go_on(self, search: Search, time_limit_s: float) -> None:
        """Search for as long again as the search had, and so on, at most `time_limit_s` in all: until that gains
        nothing, or the plan is within `WORTH_MORE` of the bound."""
        assert search.best is not None, "only what has a plan goes on"
        now = time.monotonic()
        until, round_s = now + time_limit_s, search.time_s
        search.content = WORTH_MORE
        while not search.within(WORTH_MORE) and now < until:
            before = search.best.certificate.simulated_s
            search.time_s = search.most_s = min(now + round_s, until) - search.began
            self._try(search, None)
            if search.best.certificate.simulated_s > before * (1 - self.good_enough):
                return
            now = time.monotonic()

    def _try(self, search: Search, usual: Usual | None) -> None:
        """Our own candidates, the likeliest first; what is known already takes no time."""
        instance = search.instance
        cuts = search.ranked_cuts()
        # On a large graph each try takes seconds: what is likeliest to be best comes first. What is usual moves more
        # and takes longer, several times on graphs of thousands: it is not begun when half of the time is spent.
        for cut in cuts[:1]:
            search.try_cut(cut, roundings=1)
        if usual and self.replay and (search.best is None or time.monotonic() - search.began < search.time_s / 2):
            usual.begin()
        for cut in cuts[1:] if self.cuts else ():
            search.try_cut(cut, roundings=1)
        if search.best is None and self.roundings:
            insist(search)
        for _ in range(self.refinements if search.scores and self.cuts else 0):
            for cut in search.between_best():
                search.try_cut(cut, roundings=2)
        for cut in search.best_cuts(2) if self.roundings else ():
            search.try_cut(cut)
        for cut in search.cuts() if self.replay else ():
            if search.finished:
                break
            cached = replay_cache(instance, instance.capacity_nbytes - cut, farthest, prefetch=True)
            if cached is not None:
                search.score(cached)
        if self.favour:
            favour(search)
        if self.exchange:
            exchange(search)
