"""Which experts lie in memory: slots, a small policy that decides online, and loads under way.

One event is the set of experts that the tokens of one call ask for in a layer. It is looked up against what is here;
then what is missing is loaded, in place of what has the least worth and is not in the set. A set that does not fit is
served in rounds, in the order of use: a slot whose expert has been used takes the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import perf_counter_ns

from .experts_stats import ExpertStats
from .experts_worth import Counts, Worth


class ExpertCache:
    """`slots` places for `objects` experts. `load(expert, slot)` fills a place, on a thread of `pool`.

    Called by one thread at a time: `begin`, `need` for each expert as it is used, `end`. What goes has the least of
    `worth`; without one, it is counted by the `decay` of `ir.program.ExpertCaching`. A load that fails raises in
    `need`, and is tried again when it is next asked for.
    """

    def __init__(
        self,
        objects: int,
        slots: int,
        load: Callable[[int, int], None],
        pool: ThreadPoolExecutor,
        *,
        stats: ExpertStats,
        decay: float | None = None,
        worth: Worth | None = None,
    ) -> None:
        self.slots = min(slots, objects)
        self.slot_of: dict[int, int] = {}
        self.stats = stats
        self._load = load
        self._pool = pool
        self._worth = Counts(objects, decay) if worth is None else worth
        self._free = list(range(self.slots))[::-1]
        self._loads: dict[int, Future[None]] = {}  # of experts in slots, until somebody has waited for them
        self._writing: dict[int, tuple[Future[None], ...]] = {}  # by slot, what may still be writing to it
        self._ahead: set[int] = set()  # loaded ahead, and not used yet
        self._wanted: dict[int, None] = {}
        self._told = False
        self._used: set[int] = set()
        self._pending: deque[int] = deque()
        self._current = -1

    def begin(self, wanted: Sequence[int]) -> None:
        """An event asks for `wanted`, in the order of their gates, the greatest first; they are used in ascending
        order. With an empty one, `need` says what is asked for."""
        self.end()
        self._mend()
        self._sweep()
        self.stats.events += 1
        if wanted:
            self._forgo(frozenset(wanted))
        self._wanted, self._told = dict.fromkeys(wanted), bool(wanted)
        began = perf_counter_ns()
        self._worth.begin()
        for rank, expert in enumerate(wanted):
            self._worth.count(expert, rank)
        if wanted:
            self._worth.told(wanted)
        self.stats.decided_ns += perf_counter_ns() - began
        here = [e for e in wanted if e in self.slot_of]
        self.stats.hits += len(here)
        self._note_used(here)
        self._pending.extend(sorted(e for e in self._wanted if e not in self.slot_of))
        self._pump()
        for _ in range(2 if self.slots >= 4 else 1):  # rounds: one is read while another is computed
            if self._pending and not self._give_way(self._pending[0]):
                break

    def need(self, expert: int) -> int:
        """The slot that holds `expert`, complete; what was needed before is used. Raises what its load raises."""
        if expert != self._current:
            if self._current >= 0:
                self._used.add(self._current)
            self._current = expert
            self._used.discard(expert)
            if expert not in self._wanted:
                self._enter(expert)
            self._pump()
        if expert not in self.slot_of:
            if expert not in self._pending:
                self._pending.appendleft(expert)
            elif self._pending[0] != expert:
                self._pending.remove(expert)
                self._pending.appendleft(expert)
            self._pump()
            if expert not in self.slot_of:
                self._give_way(expert)
        load = self._loads.get(expert)
        if load is not None:
            self._wait(expert, load)
        return self.slot_of[expert]

    @property
    def wanted(self) -> tuple[int, ...]:
        """What the event at hand has asked for."""
        return tuple(self._wanted)

    def clear(self) -> None:
        """Forget what is here; what was counted stays."""
        self.end()
        for expert in list(self.slot_of):
            self._free.append(self._drop(expert))

    def end(self) -> None:
        """The event is over: everything may leave."""
        if self._wanted and not self._told:  # one of which was not known what it asks for
            began = perf_counter_ns()
            self._worth.told(self.wanted)
            self.stats.decided_ns += perf_counter_ns() - began
        self._wanted, self._told, self._current = {}, False, -1
        self._used.clear()
        self._pending.clear()

    @property
    def under_way(self) -> tuple[Future[None], ...]:
        """Loads of what the event at hand has asked for that are not complete."""
        loads = (self._loads.get(expert) for expert in self._wanted)
        return tuple(load for load in loads if load is not None and not load.done())

    def ahead(self, experts: Sequence[int], chance: float = 0.5, after: Sequence[Future[None]] = ()) -> None:
        """Begin to load what will be asked for next with at least this `chance`, in place of what was asked for less
        often than that, the least worth first. What is waited for now has the link first: the loads `after`, which
        were handed to the same pool before."""
        self.exchange(self.exchanges(experts, chance), after)

    def exchange(self, pairs: Sequence[tuple[int, int | None]], after: Sequence[Future[None]] = ()) -> None:
        """As `ahead`, of what `exchanges` has just said."""
        for expert, victim in pairs:
            slot = self._free.pop() if victim is None else self._drop(victim)
            self._ahead.add(expert)
            self.stats.ahead += 1
            self._start(expert, slot, tuple(after))

    def exchanges(self, experts: Sequence[int], chance: float = 0.5) -> list[tuple[int, int | None]]:
        """What `ahead` loads of `experts`, and in place of what; None for a slot that is free."""
        missing = [e for e in experts if e not in self.slot_of]
        if not missing:
            return []
        kept = frozenset(experts)
        others = [e for e in self.slot_of if e not in self._wanted and e not in kept and self._worth.rarely(e, chance)]
        free: list[int | None] = [None] * len(self._free)
        return list(zip(missing, (*free, *sorted(others, key=self._worth.key)), strict=False))

    def _enter(self, expert: int) -> None:
        """One more of the event at hand."""
        self._wanted[expert] = None
        self._worth.count(expert, -len(self._wanted))
        if expert in self.slot_of:
            self.stats.hits += 1
            self._note_used([expert])
        else:
            self._pending.appendleft(expert)

    def _note_used(self, experts: Iterable[int]) -> None:
        for expert in experts:
            if expert in self._ahead:
                self._ahead.discard(expert)
                self.stats.ahead_used += 1

    def _forgo(self, wanted: frozenset[int]) -> None:
        """What was to be read ahead, is not asked for, and has not begun, is left."""
        for expert in [e for e in self._ahead if e not in wanted]:
            load = self._loads.get(expert)
            if load is not None and load.cancel():
                self._ahead.discard(expert)
                self.stats.ahead -= 1
                self._free.append(self._drop(expert))

    def _pump(self) -> None:
        """Begin to load what is wanted and has a place."""
        while self._pending:
            slot = self._room()
            if slot is None:
                return
            self.stats.misses += 1
            self._start(self._pending.popleft(), slot)

    def _least(self, experts: list[int]) -> int:
        return min(experts, key=self._worth.key)

    def _room(self) -> int | None:
        """A slot that is free, or of what has the least worth and is not wanted any more."""
        if self._free:
            return self._free.pop()
        others = [e for e in self.slot_of if e not in self._wanted]
        others = others or [e for e in self.slot_of if e in self._used]
        return self._drop(self._least(others)) if others else None

    def _give_way(self, expert: int) -> bool:
        """Load `expert` in place of what the event uses last, which comes again later; whether that was needed."""
        later = [e for e in self.slot_of if e not in self._used and e != self._current]
        later = [e for e in later if e > expert] or (later if expert == self._current else [])
        if not later or not self._pending or self._pending[0] != expert:
            return False
        victim = max(later)
        slot = self._drop(victim)
        if victim in self._wanted:
            self.stats.hits -= 1
            self._pending.append(victim)
        self._pending.popleft()
        self.stats.misses += 1
        self._start(expert, slot)
        return True

    def _mend(self) -> None:
        """Find the slots again that an interrupt between two statements has lost."""
        if len(self._free) + len(self.slot_of) != self.slots:
            taken = set(self.slot_of.values())
            self._free = [slot for slot in range(self.slots)[::-1] if slot not in taken]
        for expert in [e for e in self._loads if e not in self.slot_of]:
            self._loads.pop(expert).cancel()

    def _sweep(self) -> None:
        """Loads that are complete are forgotten; those that failed, and nobody has waited for, are undone."""
        for expert, load in [(e, f) for e, f in self._loads.items() if f.done()]:
            if load.cancelled() or load.exception() is not None:
                self._free.append(self._drop(expert))
            else:
                del self._loads[expert]

    def _drop(self, expert: int) -> int:
        self._ahead.discard(expert)
        slot = self.slot_of.pop(expert)
        self._loads.pop(expert, None)
        return slot

    def _start(self, expert: int, slot: int, after: tuple[Future[None], ...] = ()) -> None:
        """The load is known before its slot: an expert in a slot that has no load is there.

        It comes after all that may still be writing to the slot, not after the last one alone: that may have been given
        up before it began, while what it was to wait for is under way.
        """
        before = tuple(load for load in self._writing.get(slot, ()) if not load.done())
        begun: Future[None] = Future()

        def fill(before: tuple[Future[None], ...]) -> None:
            if begun.set_running_or_notify_cancel():
                try:
                    wait(before)  # they were handed in earlier, so they run or are done
                    self._load(expert, slot)
                finally:
                    begun.set_result(None)

        try:
            load = self._pool.submit(fill, (*after, *before))
            self._writing[slot] = (*before, load)
            self._loads[expert] = load
            self.slot_of[expert] = slot
        except BaseException:
            # An interrupt, or no thread: it may be in the queue all the same, or already run.
            self.slot_of.pop(expert, None)
            self._writing[slot] = before if begun.cancel() else (*before, begun)
            self._free.append(slot)
            self._loads.pop(expert, None)
            raise

    def _wait(self, expert: int, load: Future[None]) -> None:
        began = 0 if load.done() else perf_counter_ns()
        try:
            load.result()
        except BaseException:
            if load.done():
                self._free.append(self.slot_of.pop(expert))
                self._loads.pop(expert, None)
            raise
        finally:
            if began:
                self.stats.stalled_ns += perf_counter_ns() - began
        del self._loads[expert]
