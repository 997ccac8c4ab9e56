"""Three tiers over a store that is only read: what is made or changed stays in the middle, the rest comes and goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Transfer
from tensorstow.planner.instance import make_instance
from tensorstow.planner.levels_arena import Times
from tensorstow.planner.levels_choose import Level, all_away, cached, nothing_kept
from tensorstow.planner.levels_visits import parcels_of
from tensorstow.planner.replay import farthest
from tensorstow.planner.strategies import strategies

from ..graphs import KIB, training
from .test_levels import planned, three

WEIGHT, VALUE = 64 * KIB, 4 * KIB


def tuned(layers: int, last: int) -> Graph:
    """A training step of `layers` layers, of which the `last` are updated."""
    graph = training([WEIGHT] * layers, activation=VALUE, ns=10_000)
    frozen = {f"{s}{i}" for s in "um" for i in range(layers - last)}
    frozen |= {f"{s}{i}'" for s in "wm" for i in range(layers - last)}
    return replace(
        graph,
        storages=tuple(s for s in graph.storages if s.id not in frozen),
        tensors=tuple(t for t in graph.tensors if t.id not in frozen),
        operators=tuple(op for op in graph.operators if op.id not in frozen),
    )


def only_read(box: Machine) -> Machine:
    """Without the link down to the last tier."""
    return replace(box, links=tuple(k for k in box.links if k.target != box.tiers[-1].name))


GRAPH = tuned(8, 2)


@pytest.mark.parametrize("strategy", ["lru", "belady", "stow"])
def test_a_store_that_is_only_read_serves_a_step_that_updates_the_last_layers(strategy: str) -> None:
    instance = make_instance(GRAPH, only_read(three(GRAPH, 0.6, 0.6, 2.0, 1.0)))
    assert [t.name for t in instance.middle] == ["dram"]
    (chosen,) = strategies([strategy])
    moved = planned(chosen, instance, 1.0).certificate.moved_nbytes
    assert set(moved) <= {"ssd->dram", "dram->hbm", "hbm->dram"}
    assert moved["ssd->dram"] > 0
    if strategy == "lru":
        assert moved["hbm->dram"] > 0  # what was updated


def level(store_bytes_per_s: float) -> Level:
    """w0 is loaded, w7 loaded and stored, a0 stored and loaded: all together take more than the tier holds."""
    moves = [
        Transfer("w0", 0, WEIGHT, "dram", "hbm", 1, 2),
        Transfer("w7", 0, WEIGHT, "dram", "hbm", 1, 2),
        Transfer("w7", 0, WEIGHT, "hbm", "dram", 5, 6),
        Transfer("a0", 0, VALUE, "hbm", "dram", 2, 3),
        Transfer("a0", 0, VALUE, "dram", "hbm", 7, 8),
    ]
    times = Times(tuple(range(0, 110, 10)), 1.0, 1.0)
    parcels = tuple(parcels_of(GRAPH, moves, "dram", 10))
    return Level(parcels, 2 * WEIGHT + VALUE // 2, 64, times, 1e9, store_bytes_per_s, False)


def test_what_would_have_to_go_down_is_never_away_where_no_link_leads() -> None:
    without, with_link = level(0.0), level(1e9)
    assert all_away(with_link) == [[WEIGHT], [0, WEIGHT], [VALUE]]
    assert all_away(without) == [[WEIGHT], [0, 0], [0]]
    assert nothing_kept(with_link) == [[WEIGHT], [0, WEIGHT], [0]]
    assert nothing_kept(without) == [[WEIGHT], [0, 0], [0]]
    assert cached(without, without.capacity_nbytes, farthest) == [[WEIGHT], [0, 0], [0]]
    relaxed = without.relaxed(0)
    assert relaxed is not None
    (weight, *others), _ = relaxed
    assert others == [[0.0, 0.0], [0.0]]
    assert weight[0] == pytest.approx(VALUE / 2 / WEIGHT)
