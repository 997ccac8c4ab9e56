from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.errors import ExecutionError, PlanMismatchError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.ir.simulate import simulate
from tensorstow.runtime.directio import BLOCK
from tensorstow.runtime.moves import Route
from tensorstow.runtime.passes import PlanMemory
from tensorstow.runtime.store import WeightStore
from tensorstow.runtime.training.state_store import StateStore
from tensorstow.runtime.training.versions import ChangedStorages, Version, last_versions

from .build import IDENTITY, Net, machine

SIZE = 6 * BLOCK
HALF = SIZE // 2


def test_blobs_begin_as_zeros_and_keep_what_is_written(tmp_path: Path) -> None:
    with StateStore({"a": 3 * BLOCK, "b": 5, "c": 2 * BLOCK + 7}, tmp_path) as store:
        assert not list(tmp_path.iterdir())  # it has no name
        model = {name: bytearray(entry.nbytes) for name, entry in store.entries.items()}
        dice = random.Random(0)
        for _ in range(300):
            name = dice.choice(list(model))
            lo, hi = sorted(dice.randrange(len(model[name]) + 1) for _ in range(2))
            if dice.random() < 0.3:  # at the ends of blocks
                lo = lo // BLOCK * BLOCK
            part = bytearray(dice.randbytes(hi - lo))
            store.write(name, lo, memoryview(part), chunk=BLOCK)
            model[name][lo:hi] = part
            for other, content in model.items():
                found = bytearray(len(content))
                store.read(other, 0, memoryview(found))
                assert found == content, (name, lo, hi, other)


def test_spoiled_states_are_refused_until_written_again(tmp_path: Path) -> None:
    with StateStore({"a": 8}, tmp_path) as store:
        store.check_whole()
        with store.unchecked():
            pass
        with pytest.raises(ExecutionError, match=r"timed alone; load a state_dict"):
            store.check_whole()
        store.restored()
        store.check_whole()


def counter_graph() -> Graph:
    """'s' and 'u' are states that 'add' and 'use' change; 'pause' lies between them."""
    storages = tuple(Storage(n, SIZE, StorageKind.OPTIMIZER_STATE, blob=n) for n in "su")
    tensors = tuple(Tensor(n, "int64", (SIZE // 8,), s, SIZE) for s in "su" for n in (s, f"{s}'"))
    operators = (
        Operator("add", "Add", ("s",), ("s'",)),
        Operator("pause", "Pause", (), ()),
        Operator("use", "Use", ("u",), ("u'",)),
        Operator("rest", "Rest", (), ()),
    )
    return Graph("count", storages, tensors, operators, (), ())


def counter_plan(graph: Graph, at: Machine) -> Plan:
    """Half of 's' is always there, half comes and goes; 'u' takes the place of that half, and is stored behind the end
    of the pass."""
    stays = (
        Residency("s", "dram", 0, HALF, 0, 0, 4),
        Residency("s", "dram", HALF, SIZE, HALF, 3, 6),
        Residency("u", "dram", 0, SIZE, SIZE, 1, 4),
    )
    moves = (
        Transfer("s", HALF, SIZE, "dram", "ssd", 1, 2),
        Transfer("u", 0, SIZE, "ssd", "dram", 1, 2),
        Transfer("u", 0, HALF, "dram", "ssd", 3, 4),
        Transfer("u", HALF, SIZE, "dram", "ssd", 3, 4),
        Transfer("s", HALF, SIZE, "ssd", "dram", 3, 4),
    )
    certificate = Certificate(
        "feasible", 1.0, 1.0, 0.0, "none", {"dram": 2 * SIZE}, {"ssd->dram": SIZE + HALF, "dram->ssd": SIZE + HALF}
    )
    plan = Plan(
        digest(graph),
        digest(at),
        "by hand",
        "training",
        "ssd",
        tuple(Step(op.id, "cpu", 1000) for op in graph.operators),
        stays,
        moves,
        {"dram": 1 << 30},
        {"dram": 2 * SIZE},
        {"dram": 0},
        certificate,
    )
    seen = simulate(plan, graph, at)
    timed = replace(certificate, simulated_s=seen.pass_ns * 1e-9, first_pass_s=seen.first_pass_ns * 1e-9)
    return replace(plan, certificate=timed)


class Counter:
    """Executes the plan: each pass adds 1 to 's' and 10 to 'u'."""

    def __init__(self, folder: Path) -> None:
        at, self.graph = machine(), counter_graph()
        self.plan = counter_plan(self.graph, at)
        assert not check(self.plan, self.graph, at)
        self.store = StateStore({"s": SIZE, "u": SIZE}, folder)
        self.memory = PlanMemory(self.plan, self.graph, at, "dram", self.store)
        self.memory.open(folder)
        self.restart()
        self.changed = ChangedStorages(self.memory, self.store)

    def restart(self) -> None:
        self.memory.restart()
        self.turn = 0

    def run(self, steps: int = 4) -> None:
        """A pass, or the first steps of one."""
        engine = self.memory.engine
        for t in range(steps):
            engine.arrive(self.turn * 4 + t)
            self.wait(t)
            for name, own, more in (("s", 0, 1), ("u", 2, 10)):
                if t == own:
                    tensor = self.graph.tensor[name]
                    offset = self.memory.addresses.of_tensor(tensor, t)
                    values = np.frombuffer(self.memory.arena.view(offset, SIZE), np.int64)
                    values += more
        engine.arrive(self.turn * 4 + steps)
        if steps == 4:
            self.wait(4)
            self.turn += 1

    def wait(self, t: int) -> None:
        for lane, count, jobs in self.memory.waits[t]:
            self.memory.engine.wait(lane, count + self.turn * jobs)

    def read(self) -> tuple[int, int]:
        found: list[int] = []
        for name in "su":
            content = bytearray(SIZE)
            self.changed.read([(name, memoryview(content))])
            (value,) = set(np.frombuffer(content, np.int64).tolist())
            found.append(value)
        return found[0], found[1]


def test_states_survive_passes_that_store_and_load_them(tmp_path: Path) -> None:
    counter = Counter(tmp_path)
    assert counter.read() == (0, 0)
    for n in range(1, 6):
        counter.run()
        assert counter.read() == (n, 10 * n)
    assert counter.memory.moved()[1] == 5 * (SIZE + HALF)
    counter.memory.close()


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_last_versions_are_found_in_the_middle_of_a_pass(tmp_path: Path, steps: int) -> None:
    counter = Counter(tmp_path)
    counter.run()
    counter.run(steps)
    wanted = (1 + (steps > 0), 10 + 10 * (steps > 2))
    assert counter.read() == wanted
    counter.changed.bring_home()
    counter.restart()  # whatever was under way is given up
    assert counter.read() == wanted
    counter.run()
    assert counter.read() == (wanted[0] + 1, wanted[1] + 10)
    counter.memory.close()


def test_where_the_last_version_is() -> None:
    graph = counter_graph()
    plan = counter_plan(graph, machine())

    def at(storage: str, writes: tuple[int, ...], now: int, complete: int) -> list[Version]:
        lanes = [
            (Route(i, t, t.link, i, None if t.origin == "ssd" else 0, None if t.target == "ssd" else 0), complete)
            for i, t in enumerate(plan.transfers)
        ]
        return list(last_versions(plan, graph.storage[storage], writes, "dram", now, lanes))

    assert at("s", (0,), 0, 0) == [Version(0, HALF, None), Version(HALF, SIZE, None)]  # nothing was written yet
    assert at("s", (0,), 1, 0) == [Version(0, HALF, 0), Version(HALF, SIZE, HALF)]
    assert at("s", (0,), 2, 1) == [Version(0, HALF, 0), Version(HALF, SIZE, None)]
    assert at("s", (0,), 5, 1) == [Version(0, HALF, 0), Version(HALF, SIZE, HALF)]  # written again since
    assert at("u", (2,), 3, 0) == [Version(0, HALF, SIZE), Version(HALF, SIZE, SIZE + HALF)]
    assert at("u", (2,), 4, 1) == [Version(0, HALF, None), Version(HALF, SIZE, None)]


def test_a_store_that_is_only_read_takes_no_states(tmp_path: Path) -> None:
    graph, at = counter_graph(), machine()
    net = Net(tmp_path)
    store = WeightStore.open_or_build(net.program(), identity=IDENTITY, folder=tmp_path / "weights")
    memory = PlanMemory(counter_plan(graph, at), graph, at, "dram", store)
    with pytest.raises(PlanMismatchError, match=r"stores 's' \(optimizer_state\), which its steps change"):
        memory.open(tmp_path)


def test_nothing_is_stored_that_no_step_changes(tmp_path: Path) -> None:
    graph, at = counter_graph(), machine()
    still = replace(graph, operators=tuple(replace(op, outputs=()) for op in graph.operators))
    refused = pytest.raises(PlanMismatchError, match=r"stores 's', .* that no step of the plan changes")
    with StateStore({"s": SIZE, "u": SIZE}, tmp_path) as store, refused:
        PlanMemory(counter_plan(graph, at), still, at, "dram", store)
