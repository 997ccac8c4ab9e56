"""Contents where a storage has several places one after another, and where transfers could come in another order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Unit
from tensorstow.ir.plan import Plan, Step

from .test_contents import (
    ACTIVATIONS,
    BESIDE,
    DOWN,
    IN,
    OUT,
    SIZE,
    SPILL,
    TOWER,
    UP,
    WEIGHT,
    graph,
    move,
    plan,
    said,
    stay,
)


def kinds(p: Plan, g: Graph) -> set[str]:
    return {kind for kind, _ in said(p, g)}


# `a` is used at steps 0, 1, 3 and, made anew, at step 4 of the order 0 1 0 2 3.
MADE_ANEW = [
    stay("x", "hbm", 0, 0, 3),
    stay("b", "hbm", 1, 1, 4),
    stay("c", "hbm", 2, 3, 5),
    stay("y", "hbm", 3, 4, 5),
]


def test_content_does_not_pass_by_itself_from_one_place_to_the_next() -> None:
    places = [stay("a", "hbm", 4, 0, 4), stay("a", "hbm", 5, 4, 5)]
    found = said(plan(SPILL, [*MADE_ANEW, *places], [], order=[0, 1, 0, 2, 3]), SPILL)
    assert found == [("unfilled", "step 4 reads 'a' [0, 4096), which nothing fills in time")]
    stays = replace(places[0], end=5)
    assert said(plan(SPILL, [*MADE_ANEW, stays], [], order=[0, 1, 0, 2, 3]), SPILL) == []


def test_a_weight_in_a_second_place_must_be_loaded_there() -> None:
    twice = graph(
        {
            "x": StorageKind.INPUT,
            "w": StorageKind.WEIGHT,
            "a": StorageKind.ACTIVATION,
            "b": StorageKind.ACTIVATION,
            "c": StorageKind.ACTIVATION,
            "y": StorageKind.OUTPUT,
        },
        [("x", "a"), ("aw", "b"), ("bw", "c"), ("c", "y")],
    )
    beside = [*(stay(s, "hbm", i, max(i - 1, 0), i + 1) for i, s in enumerate("xabc")), stay("y", "hbm", 4, 3, 4)]
    places = [stay("w", "hbm", 5, 0, 2), stay("w", "hbm", 6, 2, 3), stay("w", "dram", 0, 0, 4)]
    first, second = move("w", UP, 0, 1), move("w", UP, 2, 2)
    assert said(plan(twice, [*beside, *places], [first, second]), twice) == []
    found = said(plan(twice, [*beside, *places], [first]), twice)
    assert found == [("unfilled", "step 2 reads 'w' [0, 4096), which nothing fills in time")]


def test_a_weight_that_no_step_touches_has_a_place_to_move_to_all_the_same() -> None:
    idle = replace(WEIGHT, storages=(*WEIGHT.storages, Storage("u", SIZE, StorageKind.WEIGHT)))
    beside = [*ACTIVATIONS, stay("w", "hbm", 5, 0, 4)]
    assert said(plan(idle, [*beside, stay("u", "dram", 0, 0, 2)], [move("u", IN, 0, 2)]), idle) == []
    text = "transfer of 'u' in [0, 2)"
    found = said(plan(idle, [*beside, stay("u", "dram", 0, 0, 1)], [move("u", IN, 0, 2)]), idle)
    assert found == [("no-place", f"{text} has no place in 'dram'")]
    found = said(plan(idle, [*beside, stay("u", "dram", 0, 0, 2)], [move("u", UP, 0, 2)]), idle)
    assert ("no-place", f"{text} has no place in 'hbm'") in found


def test_what_leaves_a_new_place_at_once_carries_what_that_was_given() -> None:
    """A store that may run from instant 3 until 4 cannot take its bytes from the place that ends at 3."""
    places = [
        stay("a", "hbm", 4, 0, 3),
        stay("a", "hbm", 5, 3, 4),
        stay("a", "dram", 0, 3, 5),
        stay("a", "hbm", 6, 4, 5),
    ]
    steps = graph(
        {
            "x": StorageKind.INPUT,
            "a": StorageKind.ACTIVATION,
            "b": StorageKind.ACTIVATION,
            "c": StorageKind.ACTIVATION,
            "d": StorageKind.ACTIVATION,
            "y": StorageKind.OUTPUT,
        },
        [("x", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("da", "y")],
    )
    beside = [
        stay("x", "hbm", 0, 0, 1),
        stay("b", "hbm", 1, 1, 3),
        stay("c", "hbm", 2, 2, 4),
        stay("d", "hbm", 3, 3, 5),
        stay("y", "hbm", 7, 4, 5),
    ]
    found = said(plan(steps, [*beside, *places], [move("a", DOWN, 3, 4), move("a", UP, 4, 4)]), steps)
    assert ("no-source", "'a' leaves 'hbm' at 3, where nothing put it") in found
    moves = [move("a", DOWN, 3, 3), move("a", UP, 4, 4)]  # at the instant itself the old place still counts
    assert said(plan(steps, [*beside, *places[:1], *places[2:]], moves), steps) == []
    assert said(plan(steps, [*beside, *places], moves), steps) == []


def test_an_input_is_there_for_transfers_when_the_first_step_has_run() -> None:
    """The runtime writes what is given as step 0 begins; a store may not count on it before."""
    given = graph(
        {
            "x": StorageKind.INPUT,
            "a": StorageKind.INPUT,
            "b": StorageKind.ACTIVATION,
            "c": StorageKind.ACTIVATION,
            "y": StorageKind.OUTPUT,
        },
        [("x", "b"), ("b", "c"), ("ca", "y")],
        inputs="xa",
    )
    beside = [
        stay("x", "hbm", 0, 0, 1),
        stay("b", "hbm", 1, 0, 2),
        stay("c", "hbm", 2, 1, 3),
        stay("y", "hbm", 3, 2, 3),
    ]

    def spilled(after: int) -> list[tuple[str, str]]:
        places = [stay("a", "hbm", 4, 0, 1), stay("a", "dram", 0, after, 3), stay("a", "hbm", 5, 2, 3)]
        return said(plan(given, [*beside, *places], [move("a", DOWN, after, 1), move("a", UP, 2, 2)]), given)

    assert spilled(1) == []
    assert ("no-source", "'a' leaves 'hbm' at 0, where nothing put it") in spilled(0)


def test_what_is_spilled_twice_has_gone_from_home_before_it_comes_there_again() -> None:
    """At home it has one place in a file: what comes to the second one would write over the first."""
    beside = [*BESIDE, stay("a", "hbm", 4, 0, 4), stay("a", "dram", 0, 1, 4)]
    moves = [move("a", DOWN, 1, 2), move("a", OUT, 2, 2), move("a", OUT, 3, 4)]

    def home(end: int) -> list[tuple[str, str]]:
        return said(plan(SPILL, [*beside, stay("a", "ssd", 0, 1, end), stay("a", "ssd", 1, 3, 4)], moves), SPILL)

    assert home(2) == []
    assert home(3) == [("twice", "'a' is resident in 'ssd' at 4096 in steps [3, 4) and at 0 in steps [1, 3)")]


# A cache `s` that is given, of which step 3 of 5 writes the first 64 bytes, and which step 4 reads.
CACHE = Graph(
    "cache",
    tuple(
        Storage(s, SIZE, kind)
        for s, kind in (
            ("x", StorageKind.INPUT),
            ("s", StorageKind.INPUT),
            ("a", StorageKind.ACTIVATION),
            ("b", StorageKind.ACTIVATION),
            ("c", StorageKind.ACTIVATION),
            ("y", StorageKind.OUTPUT),
        )
    ),
    (*(Tensor(s, "float32", (SIZE // 4,), s, SIZE) for s in "xsabcy"), Tensor("s'", "float32", (16,), "s", 64)),
    tuple(
        Operator(f"op{i}", "Any", tuple(reads), (written,), measured_ns=1000)
        for i, (reads, written) in enumerate((("x", "a"), ("a", "b"), ("b", "c"), ("c", "s'"), ("cs", "y")))
    ),
    ("x", "s"),
    ("y",),
)


def test_a_part_written_into_what_is_given_leaves_the_rest_as_it_was() -> None:
    beside = [
        stay("x", "hbm", 0, 0, 1),
        stay("a", "hbm", 1, 0, 2),
        stay("b", "hbm", 2, 1, 3),
        stay("c", "hbm", 3, 2, 5),
        stay("y", "hbm", 4, 4, 5),
    ]
    dropped = [stay("s", "hbm", 5, 0, 1), stay("s", "hbm", 6, 3, 5)]
    found = said(plan(CACHE, [*beside, *dropped], []), CACHE)
    assert ("unfilled", "step 3 reads 's' [0, 4096), which nothing fills in time") in found
    moves = [move("s", DOWN, 1, 2), move("s", UP, 3, 3)]
    spilled = [stay("s", "hbm", 5, 0, 2), dropped[1], stay("s", "dram", 0, 1, 4)]
    assert said(plan(CACHE, [*beside, *spilled], moves), CACHE) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_load_that_nobody_waits_for_may_not_come_to_what_is_there_next(*, turned: bool) -> None:
    """w is loaded into slot 5 for nobody by instant 2; from then on v is, for step 3."""
    two = graph(
        {
            "x": StorageKind.INPUT,
            "w": StorageKind.WEIGHT,
            "v": StorageKind.WEIGHT,
            "a": StorageKind.ACTIVATION,
            "b": StorageKind.ACTIVATION,
            "c": StorageKind.ACTIVATION,
            "y": StorageKind.OUTPUT,
        },
        [("x", "a"), ("a", "b"), ("b", "c"), ("cv", "y")],
    )
    beside = [*(stay(s, "hbm", i, max(i - 1, 0), i + 1) for i, s in enumerate("xabc")), stay("y", "hbm", 4, 3, 4)]
    places = [
        stay("w", "hbm", 5, 0, 2),
        stay("v", "hbm", 5, 2, 4),
        stay("w", "dram", 0, 0, 4),
        stay("v", "dram", 1, 0, 4),
    ]
    loads = [move("w", UP, 0, 2), move("v", UP, 2, 3)]
    bare = plan(two, [*beside, *places], loads)
    if turned:  # behind one another in a lane they would wait for ever
        assert "deadlock" in kinds(replace(bare, transfers=tuple(reversed(loads))), two)
    else:
        assert said(bare, two) == []


def test_two_contents_may_not_come_to_one_place_in_any_order() -> None:
    """m rests in the middle; step 2 of 8 changes it. A fill of the old content that may come until instant 5 could
    follow the store of the new one."""
    names = "abcdefg"
    kinds_of = {"x": StorageKind.INPUT, "m": StorageKind.OPTIMIZER_STATE}
    kinds_of |= dict.fromkeys(names, StorageKind.ACTIVATION) | {"y": StorageKind.OUTPUT}
    row = ["x", *names, "y"]
    changed = graph(
        kinds_of,
        [(a + "m" * (i in (2, 7)), b + "m" * (i == 2)) for i, (a, b) in enumerate(pairwise(row))],
    )
    beside = [stay(s, "hbm", i, max(i - 1, 0), min(i + 1, 8)) for i, s in enumerate(row)]
    places = [
        stay("m", "hbm", 10, 0, 5),
        stay("m", "hbm", 11, 6, 8),
        stay("m", "dram", 0, 0, 8),
    ]
    moves = [move("m", UP, 0, 1), move("m", DOWN, 3, 5), move("m", UP, 6, 7)]
    assert said(plan(changed, [*beside, *places], moves), changed) == []
    late = [*moves, move("m", IN, 2, 4), move("m", OUT, 6, 8)]
    found = said(plan(changed, [*beside, *places], late), changed)
    assert [text for kind, text in found if kind == "race"] == [
        "'m' moves over ssd->dram in [2, 4) and over hbm->dram in [3, 5), which may come to the same bytes of 'dram' "
        "first"
    ]


def test_what_leaves_the_middle_is_gone_before_newer_content_comes_there() -> None:
    """The store of the content of step 0 to the bottom may take until instant 4; that of step 1 comes from 2 on."""
    both = graph(
        {
            "x": StorageKind.INPUT,
            "m": StorageKind.OPTIMIZER_STATE,
            "a": StorageKind.ACTIVATION,
            "b": StorageKind.ACTIVATION,
            "c": StorageKind.ACTIVATION,
            "y": StorageKind.OUTPUT,
        },
        [("xm", "am"), ("a", "b"), ("bm", "cm"), ("c", "y")],
    )
    beside = [*(stay(s, "hbm", i, max(i - 1, 0), i + 1) for i, s in enumerate("xabc")), stay("y", "hbm", 4, 3, 4)]
    places = [stay("m", "hbm", 5, 0, 4), stay("m", "dram", 0, 0, 4)]

    def stored(until: int) -> set[str]:
        moves = [move("m", DOWN, 1, 2), move("m", OUT, 2, until), move("m", DOWN, 3, 4)]
        return kinds(plan(both, [*beside, *places], moves), both)

    assert stored(2) == set()
    assert stored(4) == {"race"}


def test_a_result_is_asked_for_where_the_pass_is_given_its_inputs() -> None:
    """The last step computes elsewhere: the result must come back to the tier of the first one."""
    box = replace(TOWER, units=(*TOWER.units, Unit("cpu", "dram", (("float32", 1e12),), 1e12)))
    elsewhere = [
        stay("x", "hbm", 0, 0, 1),
        stay("a", "hbm", 4, 0, 2),
        stay("b", "hbm", 1, 1, 3),
        stay("c", "hbm", 2, 2, 3),
        stay("c", "dram", 0, 3, 4),
        stay("a", "dram", 1, 1, 4),
        stay("y", "dram", 2, 3, 4),
        stay("y", "hbm", 3, 3, 4),
    ]
    moves = [move("a", DOWN, 1, 2), move("c", DOWN, 3, 3)]
    here = plan(SPILL, elsewhere, moves)
    steps = (*here.steps[:3], Step("op3", "cpu", 1000))
    found = check(replace(here, machine=digest(box), steps=steps), SPILL, box)
    assert [(v.kind, v.message) for v in found] == [
        ("unfilled", "step 3 reads 'y' [0, 4096), which nothing fills in time")
    ]
