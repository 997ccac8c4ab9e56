"""The order of calls: what the graph's own order computes, and wrong orders that would compute something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.operators import TURN
from tensorstow.ir.plan import Plan

from .test_contents import SIZE, graph, plan, said, stay

ACTIVATION, INPUT, OUTPUT, WEIGHT = StorageKind.ACTIVATION, StorageKind.INPUT, StorageKind.OUTPUT, StorageKind.WEIGHT


def resident(g: Graph, order: list[int]) -> Plan:
    """All storages with bytes in one place each, as long as a pass lasts."""
    steps = len(order)
    return plan(g, [stay(s.id, "hbm", i, 0, steps) for i, s in enumerate(g.storages) if s.nbytes], [], order)


def found(g: Graph, order: list[int]) -> list[tuple[str, str]]:
    return said(resident(g, order), g)


# op1 reads the weight that op2 writes in place; both read what op0 makes.
UPDATE = graph({"x": INPUT, "w": WEIGHT, "a": ACTIVATION, "y": OUTPUT}, [("x", "a"), ("aw", "y"), ("aw", "w")])


def test_a_reader_must_not_come_behind_the_write_that_it_precedes_in_the_graph() -> None:
    assert found(UPDATE, [0, 1, 2]) == []
    text = "step 1, 'op2', writes 'w' before step 2, 'op1', reads it, in the graph the other way round"
    assert found(UPDATE, [0, 2, 1]) == [("order", text)]


def test_two_writes_keep_their_order_and_so_does_a_reader_of_the_later_one() -> None:
    """op1 and op2 change w; op3 reads it."""
    kinds = {"x": INPUT, "w": WEIGHT, "a": ACTIVATION, "b": ACTIVATION, "y": OUTPUT}
    changed = graph(kinds, [("x", "a"), ("aw", "w"), ("xw", "wb"), ("bw", "y")])
    # The reader by the first tensor of the storage: no name tells that it follows the writes.
    assert found(changed, [0, 1, 2, 3]) == []
    assert (
        "order",
        "step 1, 'op2', reads 'w' before step 2, 'op1', writes it, in the graph the other way round",
    ) in found(changed, [0, 2, 1, 3])


def test_pieces_of_one_storage_may_change_places() -> None:
    """Two operators write the two halves of `s`, in any order; the first half is read before its next write."""
    half = SIZE // 2
    storages = tuple(Storage(n, SIZE, k) for n, k in (("x", INPUT), ("s", ACTIVATION), ("z", OUTPUT), ("y", OUTPUT)))
    tensors = (
        *(Tensor(n, "float32", (SIZE // 4,), n, SIZE) for n in "xzys"),
        Tensor("low", "float32", (half // 4,), "s", half),
        Tensor("high", "float32", (half // 4,), "s", half, half),
        Tensor("low'", "float32", (half // 4,), "s", half),
    )
    calls = ((("x",), "low"), (("x",), "high"), (("low",), "z"), (("x",), "low'"), (("low'", "high"), "y"))
    operators = tuple(Operator(f"op{i}", "Any", r, (w,), measured_ns=1000) for i, (r, w) in enumerate(calls))
    pieces = Graph("pieces", storages, tensors, operators, ("x",), ("z", "y"))
    assert found(pieces, [0, 1, 2, 3, 4]) == []
    assert found(pieces, [1, 0, 2, 3, 4]) == []
    assert found(pieces, [0, 2, 1, 3, 4]) == []
    text = "step 2, 'op3', writes 's' before step 3, 'op2', reads it, in the graph the other way round"
    assert found(pieces, [0, 1, 3, 2, 4]) == [("order", text)]


def typed(types: dict[int, str]) -> Graph:
    """x -> a, x -> b, ab -> y, with other types of operators."""
    g = graph({"x": INPUT, "a": ACTIVATION, "b": ACTIVATION, "y": OUTPUT}, [("x", "a"), ("x", "b"), ("ab", "y")])
    return replace(
        g, operators=tuple(replace(op, op_type=types.get(i, op.op_type)) for i, op in enumerate(g.operators))
    )


def test_random_numbers_are_drawn_in_the_order_of_the_graph() -> None:
    assert found(typed({0: "RandomNormal"}), [1, 0, 2]) == []
    drawn = typed({0: "RandomNormal", 1: "aten.native_dropout.default"})
    assert found(drawn, [0, 1, 2]) == []
    text = "steps 0 and 1 draw random numbers as 'op1' and 'op0', in the graph the other way round"
    assert found(drawn, [1, 0, 2]) == [("order", text)]


@pytest.mark.parametrize(
    ("op_type", "why"),
    [
        ("Any", None),
        ("aten.bernoulli.p", "draws random numbers"),
        ("random:Stretch", "draws random numbers"),
        (TURN, "is the turn of a training step"),
    ],
)
def test_what_gives_something_else_each_time_is_called_once(op_type: str, why: str | None) -> None:
    twice = found(typed({0: op_type}), [0, 1, 0, 2])
    text = f"step 2 calls 'op0' again, which {why} and is called once in a pass"
    assert twice == ([("recompute", text)] if why else [])


def changed_in_place(kind: StorageKind, nbytes: int, *, makes: bool, changes: bool) -> Graph:
    """op0 makes `a`, and `s` if it `makes` it; op1 writes over `s` if it `changes` it; op2 reads `a` and `s`."""
    sizes = {"x": SIZE, "a": SIZE, "s": nbytes, "y": SIZE}
    kinds = {"x": INPUT, "a": ACTIVATION, "s": kind, "y": OUTPUT}
    storages = tuple(Storage(name, n, kinds[name]) for name, n in sizes.items())
    tensors = [Tensor(s.id, "float32", (s.nbytes // 4,), s.id, s.nbytes) for s in storages]
    tensors += [Tensor(name, "float32", (nbytes // 4,), "s", nbytes) for name in ("s0", "s1")]
    made, latest = ("a", "s0") if makes else ("a",), "s1" if changes else "s0" if makes else "s"
    first = Operator("op0", "Any", ("x", "s") if makes and kind != ACTIVATION else ("x",), made, measured_ns=1000)
    over = Operator("op1", "Any", ("a",), ("s1",) if changes else (), measured_ns=1000)
    last = Operator("op2", "Any", ("a", latest), ("y",), measured_ns=1000)
    given = ("x", "s") if kind == INPUT else ("x",)
    return Graph("in place", storages, tuple(tensors), (first, over, last), given, ("y",))


@pytest.mark.parametrize("nbytes", [0, SIZE])
@pytest.mark.parametrize(
    ("kind", "makes", "changes", "wrong"),
    [
        (ACTIVATION, True, False, False),  # made anew
        (ACTIVATION, True, True, True),  # old again
        (WEIGHT, True, False, True),  # updated twice
        (INPUT, True, False, True),
        (WEIGHT, False, False, False),
    ],
)
def test_what_changes_a_storage_in_place_is_called_once_with_and_without_bytes_in_the_plan(
    kind: StorageKind, nbytes: int, *, makes: bool, changes: bool, wrong: bool
) -> None:
    g = changed_in_place(kind, nbytes, makes=makes, changes=changes)
    assert found(g, [0, 1, 2]) == []
    text = "'op0' is called twice, but 's' cannot be made anew by it"
    again = [m for k, m in found(g, [0, 1, 0, 2]) if k == "recompute"]
    assert again == ([text] if wrong else [])
    if wrong and not changes:
        assert ("recompute", text) in found(g, [0, 0, 1, 2])  # at once, with nothing in between
