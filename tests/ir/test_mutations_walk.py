"""Walks through what the checker accepts: small plans made by hand, changed at random again and again, each time from
the last one in which nothing was found. They come to places, windows and detours that no planner makes; each must
compute the same and end, however late or early transfers come."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.errors import PlanMismatchError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Link, Machine
from tensorstow.ir.plan import Plan, Residency, Transfer

from .following import same
from .mutants import mutant, truthful
from .test_contents import (
    ACTIVATIONS,
    BESIDE,
    DOWN,
    IN,
    OUT,
    SPILL,
    STATE,
    TOWER,
    UP,
    WEIGHT,
    move,
    plan,
    stay,
)
from .test_places import CACHE

WALKS, STEPS = 4, 80
EAGER = (0.0, 0.5, 0.95)

BYPASS = replace(TOWER, links=(*TOWER.links, Link("ssd", "hbm", 1e12), Link("hbm", "ssd", 1e12)))
"""With links past the middle tier, for mutants to take."""

BUS = replace(BYPASS, links=tuple(replace(k, channel="bus") for k in BYPASS.links))

ANEW = [stay("x", "hbm", 0, 0, 3), stay("b", "hbm", 1, 1, 4), stay("c", "hbm", 2, 3, 5), stay("y", "hbm", 3, 4, 5)]
GIVEN = [
    *(stay(s, "hbm", i, max(i - 1, 0), i + 1) for i, s in enumerate("xab")),
    stay("c", "hbm", 3, 2, 5),
    stay("y", "hbm", 4, 4, 5),
]

Places = tuple[Graph, list[Residency], list[Transfer], "list[int] | None"]
PLACES: dict[str, Places] = {
    "a weight staged through the middle": (
        WEIGHT,
        [*ACTIVATIONS, stay("w", "dram", 0, 0, 2), stay("w", "hbm", 5, 1, 3)],
        [move("w", IN, 0, 1), move("w", UP, 1, 2)],
        None,
    ),
    "a weight that comes in the pass before": (
        WEIGHT,
        [*ACTIVATIONS, stay("w", "dram", 0, 3, 6), stay("w", "hbm", 5, 3, 7)],
        [move("w", IN, 3, 4), move("w", UP, 3, 6)],
        None,
    ),
    "a state that rests in the middle": (
        STATE,
        [*ACTIVATIONS, stay("m", "hbm", 5, 0, 3), stay("m", "hbm", 6, 3, 4), stay("m", "dram", 0, 0, 4)],
        [move("m", DOWN, 2, 3), move("m", UP, 0, 1), move("m", UP, 3, 3)],
        None,
    ),
    "a state that goes home": (
        STATE,
        [
            *ACTIVATIONS,
            *(stay("m", "hbm", 5, 1, 3), stay("m", "hbm", 6, 3, 4)),
            *(stay("m", "dram", 0, 2, 4), stay("m", "dram", 1, 0, 2)),
        ],
        [move("m", DOWN, 2, 3), move("m", OUT, 3, 4), move("m", IN, 0, 1), move("m", UP, 1, 1), move("m", UP, 3, 3)],
        None,
    ),
    "a value spilled to the bottom": (
        SPILL,
        [
            *BESIDE,
            *(stay("a", "hbm", 4, 0, 3), stay("a", "hbm", 5, 3, 4)),
            *(stay("a", "dram", 0, 2, 3), stay("a", "dram", 1, 3, 4), stay("a", "ssd", 0, 2, 4)),
        ],
        [move("a", DOWN, 2, 3), move("a", OUT, 2, 3), move("a", IN, 3, 3), move("a", UP, 3, 3)],
        None,
    ),
    "a value made anew and spilled": (
        SPILL,
        [*ANEW, stay("a", "hbm", 4, 0, 4), stay("a", "dram", 0, 1, 5), stay("a", "hbm", 5, 4, 5)],
        [move("a", DOWN, 3, 4), move("a", UP, 4, 4)],
        [0, 1, 0, 2, 3],
    ),
    "a part written into what is given": (
        CACHE,
        [*GIVEN, stay("s", "hbm", 5, 0, 2), stay("s", "hbm", 6, 3, 5), stay("s", "dram", 0, 1, 4)],
        [move("s", DOWN, 1, 2), move("s", UP, 3, 3)],
        None,
    ),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("box", [BYPASS, BUS], ids=["links", "bus"])
def test_whatever_a_walk_comes_to_computes_the_same(name: str, box: Machine) -> None:
    graph, stays, moves, order = PLACES[name]
    begin = truthful(replace(plan(graph, stays, moves, order), machine=digest(box)), graph, box)
    if begin is None or check(begin, graph, box):
        assert box is BUS, "the plan itself"  # in one lane some would wait for themselves
        return
    come_to = 0
    for seed in range(WALKS):
        rng, now = random.Random(seed), begin
        for number in range(STEPS):
            changed = truthful(mutant(now, box, rng), graph, box)
            if changed is None or changed == now or check(changed, graph, box):
                continue
            if runs_right(changed, graph, box, seed * STEPS + number, f"walk {seed}, step {number}"):
                now, come_to = changed, come_to + 1
    assert come_to > WALKS


def runs_right(changed: Plan, graph: Graph, box: Machine, seed: int, where: str) -> bool:
    """Whether the runtime takes it; where it does, it must compute what the graph does."""
    for eager in EAGER:
        try:
            right = same(changed, graph, box, random.Random(seed), eager=eager)
        except PlanMismatchError:  # it refuses more than the checker
            return False
        assert right, f"{where} computes something else, eager {eager}: {changed.residencies} {changed.transfers}"
    return True
