"""Traffic that no schedule avoids, against trying every schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.bounds import Flow, Traffic, Value, order_free_traffic


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Up to 4 operators and 5 values of one or two bytes, with some of every kind: overwritten, given, kept, below."""
    count = draw(st.integers(1, 4))
    after: list[set[int]] = [set() for _ in range(count)]
    values: list[Value] = []
    for _ in range(draw(st.integers(1, 5))):
        nbytes = draw(st.integers(1, 2))
        readers = frozenset(draw(st.sets(st.integers(0, count - 1), max_size=3)))
        if draw(st.booleans()):
            writers = frozenset(draw(st.sets(st.sampled_from(sorted(readers)), max_size=1))) if readers else frozenset()
            values.append(Value(nbytes, writers, readers, below=True))
            continue
        given_, kept = draw(st.booleans()), draw(st.booleans())
        first = draw(st.integers(0, count - 1))
        writers = frozenset({first, *draw(st.sets(st.integers(first, count - 1), max_size=1))} if not given_ else ())
        readers = frozenset(r for r in readers if given_ or r >= first)
        for a, b in pairwise(sorted(writers)):
            after[a].add(b)
        for w in writers:
            after[w] |= {r for r in readers if r > w}
        values.append(Value(nbytes, writers, readers, given=given_, kept=kept))
    return Flow(tuple(tuple(sorted(a)) for a in after), tuple(values))


def orders(flow: Flow) -> Iterator[tuple[int, ...]]:
    """Every order that the successors allow."""
    for order in permutations(range(len(flow.successors))):
        at = {o: t for t, o in enumerate(order)}
        if all(at[a] < at[b] for a, after in enumerate(flow.successors) for b in after):
            yield order


def least(flow: Flow, order: Sequence[int], capacity: int) -> tuple[int, int] | None:
    """The fewest bytes loaded, and the fewest stored, over every choice of how many bytes stay in each gap, when
    transfers take no time; None where an operator does not fit. Before an operator that only overwrites, nothing need
    be there."""
    steps = len(order)
    held = [0] * steps
    gaps: list[tuple[int, int, int, bool]] = []  # value, start, end, whether what left must come back
    for v, value in enumerate(flow.values):
        uses = {t for t, o in enumerate(order) if o in value.readers or o in value.writers}
        uses |= ({0} if value.given else set()) | ({steps - 1} if value.kept and (value.given or uses) else set())
        touched = sorted(uses)
        for t in touched:
            held[t] += value.nbytes
        ends = [*touched, touched[0] + steps] if value.below and touched else touched
        for a, b in pairwise(ends):
            reads = order[b % steps] in value.readers or order[b % steps] not in value.writers
            gaps.append((v, a, b, reads))
    if max(held) > capacity:
        return None
    loads: list[int] = []
    stores: list[int] = []
    for kept in product(
        *(range(flow.values[v].nbytes + 1) if b > a + 1 else (flow.values[v].nbytes,) for v, a, b, _ in gaps)
    ):
        profile = list(held)
        for (_, a, b, _), nbytes in zip(gaps, kept, strict=True):
            for t in range(a + 1, b):
                profile[t % steps] += nbytes
        if max(profile) <= capacity:
            gone = [(v, flow.values[v].nbytes - k) for (v, _, _, reads), k in zip(gaps, kept, strict=True) if reads]
            loads.append(sum(n for _, n in gone))
            made = [v for v, value in enumerate(flow.values) if not value.below]
            stores.append(sum(max((n for w, n in gone if w == v), default=0) for v in made))
    return min(loads), min(stores)


@settings(deadline=None, max_examples=80)
@given(flows(), st.integers(0, 8))
def test_no_order_moves_less(flow: Flow, more: int) -> None:
    capacity = 1 + more
    bound = order_free_traffic(flow, capacity)
    for order in orders(flow):
        found = least(flow, order, capacity)
        if found is not None:
            assert bound.loaded <= found[0]
            assert bound.stored <= found[1]
            assert bound.moved == bound.loaded + bound.stored


@settings(deadline=None, max_examples=60)
@given(flows(), st.integers(0, 8))
def test_no_order_with_a_repeated_operator_loads_less(flow: Flow, more: int) -> None:
    capacity = 1 + more
    bound = order_free_traffic(flow, capacity, repeats=True)
    assert bound.loaded <= order_free_traffic(flow, capacity).loaded
    assert bound.stored == 0
    for order in orders(flow):
        for op in range(len(order)):
            for again in range(order.index(op) + 1, len(order) + 1):
                found = least(flow, (*order[:again], op, *order[again:]), capacity)
                if found is not None:
                    assert bound.loaded <= found[0]


def test_what_every_order_holds_is_counted() -> None:
    """x -> 0 -> a -> 1 -> b -> 2 with a read again by 2, weights w0 and w1: a is alive at 1 in the only order."""
    a = Value(10, frozenset({0}), frozenset({1, 2}))
    b = Value(3, frozenset({1}), frozenset({2}))
    w0 = Value(20, frozenset(), frozenset({0}), below=True)
    w1 = Value(30, frozenset(), frozenset({1}), below=True)
    flow = Flow(((1, 2), (2,), ()), (a, b, w0, w1))
    assert order_free_traffic(flow, 43) == Traffic(50 + 13 - 43, 0, 20)
    assert order_free_traffic(flow, 40) == Traffic(50 + 13 - 40, 13 + 30 - 40, 26)
    assert order_free_traffic(flow, 100) == Traffic(0, 0, 0)
    assert order_free_traffic(flow, 40, repeats=True) == Traffic(50 + 13 - 40, 0, 23)


def test_less_work_gives_a_bound_that_is_no_larger() -> None:
    count = 60
    values = [
        Value(i % 7 + 1, frozenset({i}), frozenset({i + 1, (i * 3) % count}) - set(range(i + 1)))
        for i in range(count - 1)
    ]
    flow = Flow((*(tuple(sorted(v.readers)) for v in values), ()), tuple(values))
    full = order_free_traffic(flow, 10)
    for work in (1, 1000, 10_000):
        assert order_free_traffic(flow, 10, work=work).loaded <= full.loaded


def test_flows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="successors of operator 0 name operator 3; there are 2"):
        Flow(((3,), ()), ())
    with pytest.raises(ValueError, match="value 0 name operator 2"):
        Flow(((), ()), (Value(1, frozenset({2}), frozenset()),))
    with pytest.raises(ValueError, match="value 0: negative size -1"):
        Flow(((),), (Value(-1, frozenset(), frozenset({0})),))
    assert order_free_traffic(Flow((), ()), 5) == Traffic(0, 0, 0)
