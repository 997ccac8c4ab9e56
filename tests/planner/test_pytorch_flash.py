from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstow.ir.errors import InputError
from tensorstow.ir.machine import Link
from tensorstow.planner.pytorch.flash import SparseLayer, dense_cost, flash_cost, read_rate, read_runs, windowed

MIB = 1 << 20
LINK = Link("ssd", "dram", 1e9, latency_s=1e-4, chunk_nbytes=MIB)
ACTIVE = st.lists(st.frozensets(st.integers(0, 19)), max_size=12)


def test_rate_grows_with_the_chunk_and_half_of_the_bandwidth_is_at_latency_times_bandwidth() -> None:
    assert read_rate(1e5, LINK) == pytest.approx(0.5e9)
    assert read_rate(1e9, LINK) == pytest.approx(1e9, rel=1e-3)
    assert read_rate(4096, LINK) < read_rate(32768, LINK) < 1e9


@given(ACTIVE, st.integers(0, 6))
def test_a_window_reads_what_the_unions_differ_by(active: list[frozenset[int]], window: int) -> None:
    steps = windowed(active, window)
    for t, step in enumerate(steps):
        before = frozenset[int]().union(*active[max(0, t - window) : t])
        assert step.loaded == active[t] - before
        assert step.resident == len(before | active[t])


@given(ACTIVE)
def test_a_longer_window_never_reads_more(active: list[frozenset[int]]) -> None:
    reads = [sum(len(s.loaded) for s in windowed(active, k)) for k in range(len(active) + 1)]
    assert reads == sorted(reads, reverse=True)
    assert reads[-1] == len(frozenset[int]().union(*active))
    assert reads[0] == sum(map(len, active))


@given(
    st.sets(st.integers(0, 15), max_size=6),
    st.sampled_from([1000, 4096, 6000]),
    st.sampled_from([0, 4096, 20000, 80000]),
)
def test_no_other_way_to_bridge_gaps_is_faster(positions: set[int], piece: int, bridge: int) -> None:
    """Against every choice of which neighbours to read in one request; latency x bandwidth is the bridge."""
    runs = read_runs(positions, piece, bridge_nbytes=bridge)
    assert all(b % 4096 == 0 and e % 4096 == 0 for b, e in runs)
    assert all(any(b <= p * piece and (p + 1) * piece <= e for b, e in runs) for p in positions)

    def cost(some: list[tuple[int, int]]) -> int:
        return sum(bridge + e - b for b, e in some)

    apart = list(read_runs(positions, piece, bridge_nbytes=-1))  # those that touch apart
    best = None
    for count in range(max(1, len(apart))):
        for cuts in combinations(range(1, len(apart)), count):
            edges = [0, *cuts, len(apart)]
            groups = [apart[a:b] for a, b in pairwise(edges) if a < b]
            total = cost([(g[0][0], g[-1][1]) for g in groups])
            best = total if best is None else min(best, total)
    assert cost(list(runs)) == (best or 0)


def test_cost_by_hand() -> None:
    """Two tokens that share a neuron, rows of a block each: 3 neurons for the first, 1 for the second."""
    layer = SparseLayer(neurons=100, d_model=512, item_nbytes=4)
    assert (layer.piece_nbytes, layer.nbytes) == (4096, 409600)
    slow = Link("ssd", "dram", 1e6, latency_s=1e-4)  # no gap is worth reading
    cost = flash_cost(layer, [{0, 1, 50}, {1, 70}], slow, window=1)
    assert (cost.tokens, cost.requests, cost.read_nbytes, cost.needed_nbytes) == (2, 3, 4 * 4096, 4 * 4096)
    assert cost.seconds == pytest.approx(3e-4 + 4 * 4096 / 1e6)
    assert cost.seconds == pytest.approx(cost.read_nbytes / read_rate(cost.chunk_nbytes, slow))
    assert cost.resident_nbytes == 4 * 4096
    assert cost.token_s == cost.seconds / 2


def test_bundling_halves_the_requests_and_order_brings_neighbours_together() -> None:
    layer = SparseLayer(neurons=4096, d_model=2048, item_nbytes=2)
    apart = SparseLayer(neurons=4096, d_model=2048, item_nbytes=2, bundled=False)
    active = [frozenset(range(0, 4096, 41))] * 3
    together = [n for n in range(4096) if n % 41 == 0] + [n for n in range(4096) if n % 41]
    bundled, split = flash_cost(layer, active, LINK, window=4), flash_cost(apart, active, LINK, window=4)
    ordered = flash_cost(layer, active, LINK, window=4, order=together)
    assert split.requests == 2 * bundled.requests
    assert ordered.requests == 1 < bundled.requests
    assert ordered.seconds < bundled.seconds < split.seconds < dense_cost(layer, 3, LINK).seconds
    assert bundled.resident_nbytes == 100 * layer.neuron_nbytes


def test_dense_reads_everything_in_chunks() -> None:
    layer = SparseLayer(neurons=1024, d_model=1024, item_nbytes=4, matrices=3)
    cost = dense_cost(layer, 2, LINK)
    assert (cost.read_nbytes, cost.requests) == (24 * MIB, 24)
    assert cost.seconds == pytest.approx(24e-4 + 24 * MIB / 1e9)


def test_bad_input_is_refused() -> None:
    layer = SparseLayer(8, 4, 4)
    with pytest.raises(InputError, match="window of -1"):
        windowed([{1}], -1)
    with pytest.raises(InputError, match=r"neuron 8 .* 0 to 7"):
        flash_cost(layer, [{8}], LINK, window=1)
    with pytest.raises(InputError, match=r"8 neurons, 7 of them different"):
        flash_cost(layer, [{1}], LINK, window=1, order=[0, 1, 2, 3, 4, 5, 6, 6])
    with pytest.raises(InputError, match="below 1"):
        SparseLayer(8, 0, 4)
