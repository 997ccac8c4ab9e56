"""Recomputation as an order with repeated operators: what may be repeated, and orders from sets of operators.

A plan recomputes by calling an operator again (`ir.plan`). Everything here is about one *turn*: the step at which most
bytes wait for later use, in training the end of the forward pass. Of the operators before it some are *chosen*: what
they make is given up after its last use before the turn, and made again just before its first use behind it, inputs
that were given up first. What is made again may be given up and made a third time; the orders here do not do that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..ir.graph import Graph, Operator, StorageKind
from ..ir.operators import is_random, is_turn


def made_anew(graph: Graph) -> frozenset[str]:
    """Operators that the checker lets a plan call again: all that they write is written by them alone, and is neither
    at home nor a graph input."""
    writers: dict[str, set[str]] = {}
    for op in graph.operators:
        for s in graph.writes(op):
            writers.setdefault(s, set()).add(op.id)
    given = set(graph.storages_of(graph.inputs))

    def anew(s: str) -> bool:
        return len(writers[s]) == 1 and not graph.storage[s].homed and s not in given

    return frozenset(op.id for op in graph.operators if graph.writes(op) and all(anew(s) for s in graph.writes(op)))


def repeatable(graph: Graph) -> frozenset[str]:
    """Operators that a plan of ours may call again: `made_anew`, neither random nor the turn of a training step, with
    all they touch inside the plan, and that do not read what they write."""
    allowed = made_anew(graph)

    def inside(op: Operator) -> bool:
        return all(graph.tensor[t].storage is not None for t in op.inputs + op.outputs)

    return frozenset(
        op.id
        for op in graph.operators
        if op.id in allowed
        and inside(op)
        and not (is_random(op) or is_turn(op))
        and set(graph.reads(op)).isdisjoint(graph.writes(op))
    )


@dataclass(frozen=True)
class Flow:
    """A graph in an order without repetitions, as recomputation sees it. `durations_ns` are the steps'."""

    graph: Graph
    order: tuple[str, ...]
    durations_ns: tuple[int, ...]

    @cached_property
    def repeatable(self) -> frozenset[str]:
        """What may be called again."""
        return repeatable(self.graph)

    @cached_property
    def step(self) -> dict[str, int]:
        """The step of each operator."""
        return {op: t for t, op in enumerate(self.order)}

    @cached_property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Storages with bytes that each operator reads."""
        return {op.id: self._with_bytes(self.graph.reads(op)) for op in self.graph.operators}

    @cached_property
    def writes(self) -> dict[str, tuple[str, ...]]:
        """Storages with bytes that each operator writes."""
        return {op.id: self._with_bytes(self.graph.writes(op)) for op in self.graph.operators}

    def _with_bytes(self, storages: Iterable[str]) -> tuple[str, ...]:
        return tuple(s for s in storages if self.graph.storage[s].nbytes > 0)

    @cached_property
    def maker(self) -> dict[str, str]:
        """For each storage that can be made again, the operator that makes it."""
        return {s: op for op in self.repeatable for s in self.writes[op]}

    @cached_property
    def uses(self) -> dict[str, tuple[int, ...]]:
        """Steps that touch each storage; a graph input counts as used at step 0, an output at the last."""
        found: dict[str, set[int]] = {}
        for t, op in enumerate(self.order):
            for s in self.reads[op] + self.writes[op]:
                found.setdefault(s, set()).add(t)
        for s in self.graph.storages_of(self.graph.inputs):
            found.setdefault(s, set()).add(0)
        for s in self.graph.storages_of(self.graph.outputs):
            found.setdefault(s, set()).add(len(self.order) - 1)
        return {s: tuple(sorted(steps)) for s, steps in found.items()}

    @cached_property
    def changes(self) -> dict[str, tuple[int, ...]]:
        """Steps after which a storage that several operators write, or that is at home or given, holds other bytes;
        storages without bytes in the plan, which lie elsewhere, are among them."""
        anew = made_anew(self.graph)
        found: dict[str, list[int]] = {}
        for t, op in enumerate(self.order):
            if op not in anew:
                for s in self.graph.writes(self.graph.operator[op]):
                    found.setdefault(s, []).append(t)
        return {s: tuple(steps) for s, steps in found.items()}

    def duration_of(self, op: str) -> int:
        """Nanoseconds of one call."""
        return self.durations_ns[self.step[op]]

    def last_use(self, op: str) -> int:
        """The last step that touches what `op` makes."""
        return max((self.uses[s][-1] for s in self.writes[op]), default=self.step[op])

    def unchanged(self, op: str, step: int) -> bool:
        """Whether, just before `step`, everything that `op` reads still holds what it read the first time."""
        first = self.step[op]
        read = self.graph.reads(self.graph.operator[op])
        return not any(first <= w < step for s in read for w in self.changes.get(s, ()))

    @cached_property
    def turn(self) -> int:
        """The step before which most bytes exist that could be made again and are used from then on; the earliest such.

        Gradients do not count: they wait for the update behind the backward pass, and to make them again takes all that
        the backward pass has used.
        """
        change = [0] * (len(self.order) + 1)
        for s in (s for s in self.maker if self.graph.storage[s].kind != StorageKind.GRADIENT):
            change[self.uses[s][0] + 1] += self.graph.storage[s].nbytes
            change[self.uses[s][-1] + 1] -= self.graph.storage[s].nbytes
        best = waiting = turn = 0
        for t, delta in enumerate(change[:-1]):
            waiting += delta
            if waiting > best:
                best, turn = waiting, t
        return turn

    def awaited(self, storage: str) -> bool:
        """Whether a step from the turn on touches a storage that exists before it."""
        steps = self.uses.get(storage, ())
        return bool(steps) and steps[0] < self.turn <= steps[-1]


def recompute_order(flow: Flow, chosen: Iterable[str]) -> tuple[str, ...]:
    """The order in which what the `chosen` operators make is given up at the turn and made again when it is needed.

    Operators that may not be repeated or stand behind the turn are left out; so are those that would find other bytes
    than the first time. Unneeded recomputation does not happen: an operator is called again only for a use.
    """
    usable = {op for op in chosen if op in flow.repeatable and flow.step[op] < flow.turn}
    while True:
        found = _Rewriting(flow, usable)
        order = tuple(found.calls())
        if not found.stale:
            return order
        usable -= found.stale


@dataclass
class _Rewriting:
    flow: Flow
    chosen: set[str]
    stale: set[str] = field(default_factory=set[str])
    again: set[str] = field(default_factory=set[str])

    def calls(self) -> Iterator[str]:
        flow = self.flow
        for t, op in enumerate(flow.order):
            if t >= flow.turn:
                yield from self._needs(flow.reads[op], t)
            yield op
        if flow.turn < len(flow.order):
            last = [s for s in flow.graph.storages_of(flow.graph.outputs) if flow.graph.storage[s].nbytes > 0]
            yield from self._needs([s for s in last if flow.awaited(s)], len(flow.order))

    def _needs(self, storages: Sequence[str], t: int) -> Iterator[str]:
        """Calls that make again what of `storages` was given up, inputs first. No recursion: chains are long."""
        flow = self.flow
        pending = [(op, False) for op in reversed([flow.maker[s] for s in storages if s in flow.maker])]
        while pending:
            op, ready = pending.pop()
            if op not in self.chosen or op in self.again:
                continue
            if ready:
                self.again.add(op)
                if not flow.unchanged(op, t):
                    self.stale.add(op)
                yield op
                continue
            pending.append((op, True))
            pending += [(flow.maker[s], False) for s in reversed(flow.reads[op]) if s in flow.maker]


def repeated(flow: Flow, order: Sequence[str]) -> frozenset[str]:
    """Operators that `order` calls more than once."""
    seen: set[str] = set()
    return frozenset(op for op in order if op in seen or seen.add(op))


def segments(flow: Flow, count: int) -> tuple[tuple[str, ...], ...]:
    """The operators before the turn in `count` runs of about equal bytes awaited, cut where few bytes cross.

    Source: Chen et al. 2016 (arXiv 1604.06174, section 4.2 and Algorithm 2), which groups layers by a budget of bytes;
    here each cut moves to the narrowest place between the middles of its neighbours.
    """
    ops, crossing, saved = flow.order[: flow.turn], _crossing(flow), [0]
    for op in ops:
        awaited = sum(flow.graph.storage[s].nbytes for s in flow.writes[op] if s in flow.maker and flow.awaited(s))
        saved.append(saved[-1] + awaited)
    cuts = [0]
    for k in range(1, count):
        low, high = ((2 * k - 1) * saved[-1] / (2 * count), (2 * k + 1) * saved[-1] / (2 * count))
        near = [i for i in range(cuts[-1] + 1, len(ops)) if low <= saved[i] <= high]
        if near:
            middle = k * saved[-1] / count
            cuts.append(min(near, key=lambda i: (crossing[i], abs(saved[i] - middle))))
    return tuple(ops[a:b] for a, b in zip(cuts, [*cuts[1:], len(ops)], strict=True) if a < b)


def _crossing(flow: Flow) -> list[int]:
    """Bytes that the operators from step i on read, before the turn, of what those before step i made."""
    change = [0] * (flow.turn + 1)
    for s in flow.maker:
        before = [t for t in flow.uses[s] if t < flow.turn]
        if len(before) > 1:
            change[before[0] + 1] += flow.graph.storage[s].nbytes
            change[before[-1] + 1] -= flow.graph.storage[s].nbytes
    total, found = 0, list[int]()
    for delta in change:
        total += delta
        found.append(total)
    return found


def inside(flow: Flow, segment: Sequence[str], *, last: bool = False) -> frozenset[str]:
    """The operators of a segment whose results no later segment reads: what a checkpoint around it gives up.

    The one before the turn keeps what it passes on to the operators behind it as well, if it is the `last`.
    """
    own = set(segment)
    end = max(flow.step[op] for op in own) + 1
    limit = len(flow.order) if last else flow.turn

    def passed_on(op: str) -> bool:
        return any(end <= t < limit for s in flow.writes[op] for t in flow.uses[s])

    return frozenset(op for op in own if op in flow.repeatable and not passed_on(op))
