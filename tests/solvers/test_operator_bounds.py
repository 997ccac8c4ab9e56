"""Bounds of a single operator, a product or an attention, against schedules of it."""

from __future__ import annotations

import heapq
from math import isqrt

import pytest

from tensorstow.solvers.bounds import Traffic, attention_io, matrix_product_io

# Matrix products

State = tuple[int, tuple[tuple[int, int], ...]]


def cheapest_product(m: int, n: int, k: int, fast: int) -> tuple[int, int]:
    """The fewest loads, and the fewest transfers, of any schedule: shortest paths over what is where.

    A state: which operands are in the fast memory, and of each result the products summed, and whether that sum is
    (1) in the fast memory, (2) below.
    """
    operands = [("a", i, x) for i in range(m) for x in range(k)] + [("b", x, j) for x in range(k) for j in range(n)]
    index = {name: p for p, name in enumerate(operands)}
    results = [(i, j) for i in range(m) for j in range(n)]
    whole = (1 << k) - 1
    found: list[int] = []
    for load_cost, store_cost in ((1, 0), (1, 1)):
        begin: State = (0, tuple((0, 0) for _ in results))
        reached: dict[State, int] = {begin: 0}
        heap: list[tuple[int, State]] = [(0, begin)]
        while heap:
            cost, state = heapq.heappop(heap)
            here, sums = state
            if cost > reached[state]:
                continue
            if all(done == whole and where & 2 for done, where in sums):
                found.append(cost)
                break
            used = here.bit_count() + sum(where & 1 for _, where in sums)
            next_: list[tuple[int, State]] = []
            for p in range(len(operands)):
                if here >> p & 1:
                    next_.append((0, (here & ~(1 << p), sums)))
                elif used < fast:
                    next_.append((load_cost, (here | 1 << p, sums)))
            for r, (done, where) in enumerate(sums):
                i, j = results[r]
                if where == 3 or (where == 1 and not done):
                    next_.append((0, (here, (*sums[:r], (done, where & 2), *sums[r + 1 :]))))
                if where == 1:
                    next_.append((store_cost, (here, (*sums[:r], (done, 3), *sums[r + 1 :]))))
                if not where & 1 and used < fast:
                    cost_in = load_cost if where else 0
                    next_.append((cost_in, (here, (*sums[:r], (done, where | 1), *sums[r + 1 :]))))
                for x in range(k):
                    both = here >> index["a", i, x] & here >> index["b", x, j] & 1
                    if where & 1 and both and not done >> x & 1:
                        next_.append((0, (here, (*sums[:r], (done | 1 << x, 1), *sums[r + 1 :]))))
            for more, other in next_:
                if cost + more < reached.get(other, 1 << 60):
                    reached[other] = cost + more
                    heapq.heappush(heap, (cost + more, other))
    return found[0], found[1]


@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 1), (1, 3, 1), (1, 1, 4)])
@pytest.mark.parametrize("fast", [3, 4])
def test_a_product_bound_against_every_schedule(sizes: tuple[int, int, int], fast: int) -> None:
    io = matrix_product_io(*sizes[:2], sizes[2], fast)
    loads, moves = cheapest_product(*sizes, fast)
    assert io.loaded <= loads
    assert io.moved <= moves
    assert io.stored == sizes[0] * sizes[1]


def blocked_product(m: int, n: int, k: int, block: int, fast: int) -> tuple[int, int]:
    """Loads and transfers of the product in blocks of rows and columns, one by one along the inner dimension, with a
    cache of `fast` elements that drops what is used farthest ahead."""
    accesses: list[tuple[str, int, int]] = []
    for i0 in range(0, m, block):
        for j0 in range(0, n, block):
            for x in range(k):
                for i in range(i0, min(i0 + block, m)):
                    for j in range(j0, min(j0 + block, n)):
                        accesses += [("a", i, x), ("b", x, j), ("c", i, j)]
    ahead: dict[tuple[str, int, int], list[int]] = {}
    for t in reversed(range(len(accesses))):
        ahead.setdefault(accesses[t], []).append(t)
    cache: set[tuple[str, int, int]] = set()
    made: set[tuple[str, int, int]] = set()
    loads = stores = 0
    for t, name in enumerate(accesses):
        ahead[name].pop()
        if name not in cache:
            if len(cache) == fast:
                busy = set(accesses[t - t % 3 : t - t % 3 + 3])
                out = max(cache - busy, key=lambda e: ahead[e][-1] if ahead[e] else 1 << 60)
                cache.remove(out)
                stores += out[0] == "c"
            loads += name[0] != "c" or name in made
            made.add(name)
            cache.add(name)
    return loads, loads + stores + sum(e[0] == "c" for e in cache)


@pytest.mark.parametrize("fast", [7, 14, 30, 60])
@pytest.mark.parametrize("sizes", [(12, 12, 12), (24, 6, 10), (5, 30, 12)])
def test_a_product_bound_against_blocked_schedules(sizes: tuple[int, int, int], fast: int) -> None:
    m, n, k = sizes
    io = matrix_product_io(m, n, k, fast)
    for block in range(1, isqrt(fast) + 2):
        loads, moves = blocked_product(m, n, k, block, fast)
        assert io.loaded <= loads
        assert io.moved <= moves


def test_the_product_bound_is_tight_for_large_sizes() -> None:
    """Square blocks of the results that all but fill the memory: Smith et al.'s algorithm."""
    side = 1000
    fast, size = (side + 1) ** 2, 100 * side
    loads = 2 * size**3 // side
    io = matrix_product_io(size, size, size, fast)
    assert 0.98 * (loads + size * size) < io.moved <= loads + size * size
    assert io.moved > 3 * size * size


def test_products_inside_a_graph() -> None:
    whole = matrix_product_io(64, 64, 64, 48)
    assert matrix_product_io(64, 64, 64, 48, count=2).moved > 1.9 * whole.moved
    inside = matrix_product_io(64, 64, 64, 48, made=64 * 64, embedded=True)
    assert inside.stored == 0
    assert inside.loaded == inside.moved == whole.loaded - 64 * 64
    with pytest.raises(ValueError, match="inner is 0"):
        matrix_product_io(1, 1, 0, 3)


# Attention


def flash(queries: int, keys: int, width: int, fast: int) -> int:
    """Elements moved by FlashAttention's loop: rows of queries with their sums stay, keys and values stream by."""
    block = 1
    while 2 * (block + 1) * width + 2 * width + 3 * (block + 1) <= fast:
        block += 1
    rounds = -(-queries // block)
    return queries * width + rounds * 2 * keys * width + queries * width


@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize("queries", [16, 256, 4096])
def test_an_attention_bound_against_flash_attention(queries: int, width: int) -> None:
    for factor in (5, 20, 100, 1000):
        fast = factor * width
        io = attention_io(queries, 256, width, fast)
        moved = flash(queries, 256, width, fast)
        assert io.loaded + io.stored <= io.moved <= moved


def test_the_attention_bound_is_of_the_right_order() -> None:
    """N^2 d^2 / M while M is well above d^2: within a constant of what FlashAttention moves, over a range of sizes."""
    for log in range(16, 22):
        length, width, fast = 1 << log, 64, 1 << 16
        io = attention_io(length, length, width, fast)
        moved = flash(length, length, width, fast)
        assert moved / 12 < io.moved <= moved
        assert io.moved > 2 * (io.loaded + io.stored)
        causal = attention_io(length, length, width, fast, pairs=length * (length + 1) // 2)
        assert io.moved / 2.1 < causal.moved < io.moved


def test_attention_of_no_pairs_and_too_many() -> None:
    assert attention_io(4, 4, 8, 16, pairs=0) == Traffic(0, 0, 0)
    with pytest.raises(ValueError, match="17 pairs of 4 queries and 4 keys; there are 16"):
        attention_io(4, 4, 8, 16, pairs=17)
    assert attention_io(64, 64, 8, 32, count=3, embedded=True).stored == 0
