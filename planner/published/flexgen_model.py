"""The cost model of FlexGen (arXiv 2303.06865, section 4.3): layers, the LP of percentages, what a policy takes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ...solvers.builder import Columns, ProgramBuilder
from ...solvers.engines import linear_engine
from ...solvers.linear import ENGINES
from ..instance import Instance
from ..items import ItemGap
from ..one_way import removable_gaps, store_link
from ..stays import make_stays
from .common import load_link, payload_nbytes


@dataclass(frozen=True, slots=True)
class Policy:
    """Shares of weights and cache whose home is the fast tier, and whether the next layer moves meanwhile."""

    weights: float
    cache: float
    overlap: bool


@dataclass(frozen=True)
class Layers:
    """Consecutive blocks of operators. Per layer: first step; bytes of the weights that it reads, and writes; of the
    cache that it loads, stores, and merely holds; the most bytes of made items at once; seconds of computing."""

    begins: tuple[int, ...]
    weights_nbytes: tuple[int, ...]
    written_nbytes: tuple[int, ...]
    loaded_nbytes: tuple[int, ...]
    stored_nbytes: tuple[int, ...]
    held_nbytes: tuple[int, ...]
    made_nbytes: tuple[int, ...]
    compute_s: tuple[float, ...]

    def of(self, step: int) -> int:
        """The layer of a step."""
        return bisect_right(self.begins, step) - 1

    def crosses(self, gap: ItemGap, steps: int) -> bool:
        """Whether the gap reaches into another layer or pass."""
        return gap.end >= steps or self.of(gap.start) != self.of(gap.end)


def divide(instance: Instance, count: int) -> Layers:
    """At most `count` layers: the weight whose middle lies in the k-th part of all bytes belongs to layer k."""
    order = sorted((i for i in instance.items if i.homed), key=lambda i: (i.touches[0], i.storage))
    total, before = sum(i.nbytes for i in order), 0
    begins: dict[int, int] = {0: 0}
    for item in order:
        layer = count * (2 * before + item.nbytes) // (2 * total)
        begins.setdefault(layer, item.touches[0])
        before += item.nbytes
    return measure(instance, tuple(sorted(set(begins.values()))))


def measure(instance: Instance, begins: tuple[int, ...]) -> Layers:
    """What the cost model needs to know of the layers that begin at these steps."""
    count = len(begins)
    empty = Layers(begins, (), (), (), (), (), (), ())
    weights, updated, loaded, stored, held = ([0] * count for _ in range(5))
    for i, item in enumerate(instance.items):
        if item.homed:
            for layer in {empty.of(t) for t in item.touches}:
                weights[layer] += payload_nbytes(instance, i)
            for layer in {empty.of(t) for t in item.writes}:
                updated[layer] += payload_nbytes(instance, i)
    written: set[int] = set()
    for gap in _cache_gaps(instance, empty):
        nbytes = payload_nbytes(instance, gap.item)
        loaded[empty.of(gap.end)] += nbytes
        stored[empty.of(gap.start)] += nbytes if gap.item not in written else 0
        written.add(gap.item)
        for layer in range(empty.of(gap.start) + 1, empty.of(gap.end)):
            held[layer] += nbytes
    made = [0] * count
    for t, nbytes in enumerate(_made_profile(instance)):
        made[empty.of(t)] = max(made[empty.of(t)], nbytes)
    ends = (*begins[1:], instance.steps)
    compute = tuple(sum(instance.durations_ns[a:b]) / 1e9 for a, b in zip(begins, ends, strict=True))
    return Layers(
        begins, tuple(weights), tuple(updated), tuple(loaded), tuple(stored), tuple(held), tuple(made), compute
    )


def _cache_gaps(instance: Instance, layers: Layers) -> list[ItemGap]:
    made = (g for g in removable_gaps(instance) if not instance.items[g.item].homed)
    return [g for g in made if layers.of(g.end) - layers.of(g.start) >= 2]


def _made_profile(instance: Instance) -> list[int]:
    """Bytes of made items at each step when none of them leaves."""
    change = [0] * (instance.steps + 1)
    for item in instance.items:
        if not item.homed:
            change[item.touches[0]] += item.nbytes
            change[item.touches[-1] + 1] -= item.nbytes
    return list(accumulate(change))[:-1]


def solve_policy(instance: Instance, layers: Layers, capacity_nbytes: int) -> Policy | None:
    """The best percentages by the cost model, with overlap if it fits; None if nothing does."""
    with_overlap = _solve(instance, layers, capacity_nbytes, overlap=True)
    return with_overlap or _solve(instance, layers, capacity_nbytes, overlap=False)


def _solve(instance: Instance, layers: Layers, capacity_nbytes: int, *, overlap: bool) -> Policy | None:
    count = len(layers.begins)
    builder = ProgramBuilder()
    share = builder.add_columns(2, 1.0)  # wg, cg
    # Seconds are scaled so that coefficients lie near one; the least unit keeps an empty pass from dividing by zero.
    unit = max(sum(layers.compute_s), sum(layers.weights_nbytes) / load_link(instance).bytes_per_s, 1e-9) / count
    seconds = builder.add_columns(count, np.inf)
    _add_times(builder, instance, layers, share, seconds, unit, overlap=overlap)
    _add_memory(builder, instance, layers, share, capacity_nbytes, overlap=overlap)
    cost = np.zeros(builder.columns)
    cost[seconds] = 1.0
    cost[share] = -1e-6  # of equal times, the fewer bytes moved
    answer = ENGINES[linear_engine(instance.engine)](builder.program(cost), 10.0)
    if answer.values is None:
        return None
    weights, cache = (min(1.0, max(0.0, float(answer.values[k]))) for k in share)
    return Policy(weights, cache, overlap)


def _add_times(
    builder: ProgramBuilder,
    instance: Instance,
    layers: Layers,
    share: Columns,
    seconds: Columns,
    unit: float,
    *,
    overlap: bool,
) -> None:
    """T_j >= compute_j;  T_j >= ((1-wg) w_j+1 + (1-cg) c_j+1) / B_load;  T_j >= ((1-wg) u_j + (1-cg) s_j) / B_store.

    Section 4.3; u_j, the weights that a layer writes, is 0 there, as FlexGen does not train.
    Without overlap T_j >= the sum of the three. On a channel that both directions share, their times add up.
    """
    count = len(layers.begins)
    load, store = load_link(instance), store_link(instance)
    back = 1.0 / store.bytes_per_s if store else 0.0
    ahead = [(j + 1) % count for j in range(count)]
    w = np.array([layers.weights_nbytes[k] / load.bytes_per_s / unit for k in ahead])
    c = np.array([layers.loaded_nbytes[k] / load.bytes_per_s / unit for k in ahead])
    s = np.array([n * back / unit for n in layers.stored_nbytes])
    u = np.array([n * back / unit for n in layers.written_nbytes])
    compute = np.array(layers.compute_s) / unit
    zero = np.zeros(count)
    if not overlap:
        families = [(w + u, c + s, compute)]
    elif store is not None and store.lane == load.lane:
        families = [(zero, zero, compute), (w + u, c + s, zero)]
    else:
        families = [(zero, zero, compute), (w, c, zero), (u, s, zero)]
    for by_weights, by_cache, fixed in families:
        rows = builder.add_rows(count, by_weights + by_cache + fixed, np.inf)
        builder.put(rows, seconds, 1.0)
        builder.put(rows, np.repeat(share[:1], count), by_weights)
        builder.put(rows, np.repeat(share[1:], count), by_cache)


def _add_memory(
    builder: ProgramBuilder,
    instance: Instance,
    layers: Layers,
    share: Columns,
    capacity_nbytes: int,
    *,
    overlap: bool,
) -> None:
    """wg W + (1-wg) (w_j + w_j+1) + made_j - (1-cg) held_j <= M: the peak in each layer (appendix A.3, `gpu_peak`)."""
    count, unit = len(layers.begins), float(max(capacity_nbytes, 1))
    total = sum(i.nbytes for i in instance.items if i.homed) / unit
    own = np.array(layers.weights_nbytes) / unit
    streamed = own + (np.roll(own, -1) if overlap and count > 1 else 0.0)
    held, made = np.array(layers.held_nbytes) / unit, np.array(layers.made_nbytes) / unit
    rows = builder.add_rows(count, -np.inf, capacity_nbytes / unit - streamed - made + held)
    builder.put(rows, np.repeat(share[:1], count), total - streamed)
    builder.put(rows, np.repeat(share[1:], count), held)


def homes(sizes: Sequence[int], streamed: float) -> list[bool]:
    """Whether each weight of a layer is streamed, when a share `streamed` of the layer is.

    FlexGen's `init_weight_list`: tiers stand in the order slowest to fastest with cumulative percentages, and a
    weight's home is the first tier whose percentage lies above the middle of the weight in the cumulative sizes.
    """
    total, before = sum(sizes), 0
    found: list[bool] = []
    for nbytes in sizes:
        found.append((before + nbytes / 2) / total < streamed)
        before += nbytes
    return found


def evictions(instance: Instance, layers: Layers, policy: Policy) -> frozenset[tuple[int, int]]:
    """The gaps in which streamed weights and the cache's share are absent."""
    by_layer: dict[int, list[int]] = {}
    for i in sorted(range(len(instance.items)), key=lambda i: instance.items[i].touches[0]):
        if instance.items[i].homed:
            by_layer.setdefault(layers.of(instance.items[i].touches[0]), []).append(i)
    leaving: set[int] = set()
    for members in by_layer.values():
        streamed = homes([payload_nbytes(instance, i) for i in members], 1.0 - policy.weights)
        leaving.update(i for i, out in zip(members, streamed, strict=True) if out)
    gaps = removable_gaps(instance)
    gone = {(g.item, g.before) for g in gaps if g.item in leaving and layers.crosses(g, instance.steps)}
    owed = 0.0
    cache = sorted(_cache_gaps(instance, layers), key=lambda g: (g.start, g.item))
    for item in dict.fromkeys(g.item for g in cache):
        nbytes = payload_nbytes(instance, item)
        owed += (1.0 - policy.cache) * nbytes
        if owed >= nbytes / 2 and policy.cache < 1.0:
            owed -= nbytes
            gone |= {(g.item, g.before) for g in cache if g.item == item}
    return frozenset(gone)


def predicted_s(instance: Instance, layers: Layers, policy: Policy) -> float:
    """Seconds of a pass by the cost model, with the whole tensors that the policy's shares come to."""
    count = len(layers.begins)
    load, store = load_link(instance), store_link(instance)
    evicted = evictions(instance, layers, policy)
    loads, stores = [0.0] * count, [0.0] * count
    for stay in make_stays(instance, evicted):
        nbytes = payload_nbytes(instance, stay.item)
        if stay.loads:
            loads[layers.of(stay.first) - 1] += nbytes / load.bytes_per_s
        if stay.stores and store is not None:
            stores[layers.of(stay.last % instance.steps)] += nbytes / store.bytes_per_s
    if not policy.overlap:
        return sum(loads) + sum(stores) + sum(layers.compute_s)
    if store is not None and store.lane == load.lane:
        return sum(max(a + b, c) for a, b, c in zip(loads, stores, layers.compute_s, strict=True))
    return sum(map(max, loads, stores, layers.compute_s))
