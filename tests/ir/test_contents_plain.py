"""The short way of the checker of contents: what it accepts, the long way by versions accepts, too."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tensorstow.ir import contents
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.ir.uses import storage_uses
from tensorstow.ir.windows import Lanes

from .test_contents import TOWER as BOX

STEPS, SIZE = 6, 64


def graph(rng: random.Random) -> Graph:
    """Six operators in a row; one of them, or two, read a weight besides."""
    names = [f"t{i}" for i in range(STEPS + 1)]
    storages = [Storage(n, SIZE, StorageKind.ACTIVATION if i else StorageKind.INPUT) for i, n in enumerate(names)]
    weight = Storage("w", SIZE, StorageKind.WEIGHT, blob="w")
    readers = rng.sample(range(STEPS), rng.randrange(1, 3))
    operators = tuple(
        Operator(f"op{i}", "Any", (names[i], "w") if i in readers else (names[i],), (names[i + 1],))
        for i in range(STEPS)
    )
    stored = (*storages, weight)
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in stored)
    return Graph("chain", stored, tensors, operators, ("t0",), (names[-1],))


def plan(graph: Graph, residencies: tuple[Residency, ...], transfers: tuple[Transfer, ...]) -> Plan:
    steps = tuple(Step(op.id, "gpu", 1) for op in graph.operators)
    none = Certificate("feasible", 0.0, 0.0, 0.0, "")
    return Plan("", "", "", "inference", "dram", steps, residencies, transfers, {}, {}, {}, none)


def test_what_the_short_way_accepts_the_long_way_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, accepted = random.Random(0), {"t": 0, "w": 0}
    short = contents._is_plain  # pyright: ignore[reportPrivateUsage]
    for _ in range(6_000):
        made = graph(rng)
        storage = made.storage[rng.choice(["t0", "t2", f"t{STEPS}", "w", "w", "w"])]
        start = rng.randrange(STEPS)
        stay = Residency(
            storage.id, "hbm", 0, SIZE - rng.choice([0, 0, 8]), 0, start, start + rng.randrange(1, STEPS + 1)
        )
        after = rng.choice([start, rng.randrange(STEPS)])
        load = Transfer(
            storage.id, 0, SIZE - rng.choice([0, 0, 8]), "dram", "hbm", after, after + rng.randrange(STEPS + 1)
        )
        moves = [load] if storage.homed and rng.random() < 0.9 else []
        given = plan(made, (stay,), tuple(moves))
        uses = storage_uses(made, [op.id for op in made.operators])[storage.id]
        case = (given, made, storage, uses)
        if not short(*case, (stay,), moves, {"gpu": "hbm"}):
            continue
        accepted[storage.id[0]] += 1
        monkeypatch.setattr(contents, "_is_plain", _never)
        assert not list(contents.check_contents(*case, moves, {"gpu": "hbm"}, Lanes(given, made, BOX)))
        monkeypatch.setattr(contents, "_is_plain", short)
        # And the same with the place given up too soon is not accepted.
        lost = replace(stay, end=stay.start + 1)
        if len(uses.touches) > 1 and stay.end > stay.start + 1:
            assert not short(plan(made, (lost,), tuple(moves)), *case[1:], (lost,), moves, {"gpu": "hbm"})
    assert min(accepted.values()) > 50


def _never(*_: object) -> bool:
    return False
