"""Where transfers find their bytes when stays of a storage meet or overlap."""

from __future__ import annotations

import pytest

from tensorstow.ir.errors import PlanMismatchError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.runtime.addresses import Addresses

STEPS = 8
IN, OUT = ("ssd", "dram"), ("dram", "ssd")


def addresses(*stays: tuple[int, int, int, int, int]) -> Addresses:
    """Of a storage 'a' of 128 bytes whose stays are (lo, hi, offset, start, end)."""
    graph = Graph(
        "g",
        (Storage("a", 128, StorageKind.ACTIVATION),),
        (Tensor("a", "float32", (32,), "a", 128),),
        (Operator("op", "Relu", ("a",), ("a",)),),
        ("a",),
        ("a",),
    )
    residencies = tuple(Residency("a", "dram", lo, hi, offset, start, end) for lo, hi, offset, start, end in stays)
    certificate = Certificate("feasible", 0.0, 0.0, 0.0, "none")
    steps = (Step("op", "cpu", 1),) * STEPS
    sizes = {"dram": 4096}
    plan = Plan("g", "m", "hand", "inference", "ssd", steps, residencies, (), sizes, sizes, {}, certificate)
    return Addresses(plan, graph, "dram")


def move(way: tuple[str, str], after: int, before: int, lo: int = 0, hi: int = 128) -> Transfer:
    return Transfer("a", lo, hi, *way, after, before)


@pytest.mark.parametrize("at", [3, 8])
def test_within_an_instant_bytes_leave_the_stay_that_ends_and_enter_the_one_that_begins(at: int) -> None:
    found = addresses((0, 128, 0, 1, at), (0, 128, 1024, at % STEPS, at % STEPS + 1))
    assert found.of_transfer(move(OUT, at % STEPS, at % STEPS)) == 0
    assert found.of_transfer(move(IN, at % STEPS, at % STEPS)) == 1024


def test_a_stay_that_ends_as_the_store_begins_is_enough() -> None:
    assert addresses((0, 128, 64, 0, 1)).of_transfer(move(OUT, 1, 1)) == 64


def test_where_stays_overlap_bytes_go_from_the_older_to_the_newer() -> None:
    found = addresses((0, 128, 0, 0, 4), (0, 128, 1024, 2, 6))
    assert found.of_transfer(move(OUT, 2, 3)) == 0
    assert found.of_transfer(move(IN, 2, 3)) == 1024


def test_ranges_with_stays_of_their_own_are_moved_together() -> None:
    found = addresses((0, 64, 256, 0, 4), (64, 128, 320, 1, 4))
    assert found.of_transfer(move(OUT, 2, 3)) == 256
    assert found.of_transfer(move(OUT, 2, 3, lo=64)) == 320


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(PlanMismatchError, match="from byte 64 on they are not in 'dram'"):
        addresses((0, 64, 0, 0, 4), (0, 128, 1024, 2, 6)).of_transfer(move(OUT, 1, 2))
