"""Which operators to call again: candidates by several thoughts, and sequences to take the first so many of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from ..solvers.residency.recompute_cut import CutProblem, cheapest_makers
from .recompute_orders import Flow, inside, segments

Chosen = frozenset[str]


def price_cut(flow: Flow, ns_per_byte: float, *, only: Set[str] | None = None) -> Chosen:
    """The operators to call again when holding a byte over the turn costs `ns_per_byte`: a minimum cut.

    Exact for the sum of both costs at the turn, in which what is held is held once, whoever reads it. With a very high
    price this is the least memory; PyTorch's partitioner cuts the same graph. `only` these operators may be called
    again, if given.
    """
    ops = flow.order[: flow.turn]
    storages = list(dict.fromkeys(s for op in ops for s in flow.reads[op] + flow.writes[op]))
    allowed = flow.repeatable if only is None else flow.repeatable & only
    makers = [op for op in ops if op in allowed and flow.unchanged(op, flow.last_use(op))]
    value = {s: n for n, s in enumerate(storages)}
    number = {op: n for n, op in enumerate(makers)}
    scale = 1e3  # picoseconds, so that whole numbers still tell prices apart

    def hold(s: str) -> int:
        free = flow.graph.storage[s].homed or (flow.awaited(s) and flow.maker.get(s) not in number)
        return 0 if free else round(flow.graph.storage[s].nbytes * ns_per_byte * scale)

    problem = CutProblem(
        hold=tuple(hold(s) for s in storages),
        maker=tuple(number.get(flow.maker.get(s, ""), -1) for s in storages),
        price=tuple(round(flow.duration_of(op) * scale) for op in makers),
        reads=tuple(tuple(value[s] for s in flow.reads[op]) for op in makers),
        needed=tuple(value[s] for s in storages if flow.awaited(s)),
    )
    _, again = cheapest_makers(problem)
    return frozenset(makers[m] for m in again)


def price_of_all(flow: Flow) -> float:
    """Nanoseconds per byte at which holding all awaited bytes costs what recomputing everything does."""
    nbytes = sum(flow.graph.storage[s].nbytes for s in flow.maker if flow.awaited(s))
    return sum(flow.durations_ns[: flow.turn]) / max(nbytes, 1)


def price_cuts(flow: Flow, exponents: Iterable[float]) -> Iterator[Chosen]:
    """Minimum cuts at `price_of_all` times powers of two."""
    middle = price_of_all(flow)
    seen: set[Chosen] = set()
    for exponent in exponents:
        chosen = price_cut(flow, middle * 2.0**exponent)
        if chosen not in seen and chosen:
            seen.add(chosen)
            yield chosen


def checkpoints(flow: Flow, count: int) -> list[Chosen]:
    """The operators of each of `count` segments that a checkpoint around it gives up, from the first segment on."""
    parts = segments(flow, count)
    return [inside(flow, part, last=part is parts[-1]) for part in parts]


def closures_by_demand(flow: Flow, prices: list[Chosen]) -> list[Chosen]:
    """From nested cuts a sequence of single operators: those of the cheaper cut first, each cut's from the first on."""
    seen: set[str] = set()
    found: list[Chosen] = []
    for chosen in prices:
        for op in sorted(chosen - seen, key=lambda o: flow.step[o]):
            seen.add(op)
            found.append(frozenset({op}))
    return found


def rounded(flow: Flow, repeated: Sequence[float]) -> Iterator[Chosen]:
    """What a program calls again for more than some share."""
    for threshold in (0.5, 0.15, 0.85):
        chosen = frozenset(op for op, share in zip(flow.order, repeated, strict=True) if share >= threshold)
        if chosen:
            yield chosen
