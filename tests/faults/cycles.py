"""Planning and running over and over: what stays behind of each cycle."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tensorstow.planner.build import plan_graph
from tensorstow.runtime import memory
from tensorstow.runtime.onnx_executor import OnnxExecutor
from tests.runtime.build import machine, same_bits
from tests.runtime.plans import feed, mlp

STRATEGIES = ("belady-prefetch", "on-demand", "lru", "stow", "belady")
WARM_UP = 25
"""Cycles that are not counted: libraries take what they keep in the first ones."""
SOLVERS = ("highspy", "ortools.sat.python.cp_model", "pulp")
"""What planning loads where it first wants it, which may be in any cycle: tens of MiB, once."""
GROWTH_NBYTES = 6 << 20
"""What glibc's heap may wander by, whatever the number of cycles. A leak of one arena a cycle (160 KiB) would be 16 MiB
after 100."""


@dataclass(frozen=True, slots=True)
class Left:
    """What there is more of after the cycles than before: bytes resident, open files, threads; and wrong answers."""

    nbytes: int
    files: int
    threads: int
    wrong: int

    @property
    def nothing(self) -> bool:
        """Whether nothing grew and all was right."""
        return self.nbytes < GROWTH_NBYTES and self.files == self.threads == self.wrong == 0


def cycle_many(folder: Path, count: int) -> Left:
    """`count` times: plan a small network anew by one of some strategies, open its store, run two passes, close."""
    net = mlp(folder, layers=3, width=96)
    graph, program, inputs = net.graph(), net.program(), feed(1, (8, 96))
    expected, wrong = net.reference(inputs), 0
    small = machine().with_capacity({"dram": 100 << 10})  # of three matrices of 36 KiB, and what they make

    def cycle(number: int) -> int:
        plan = plan_graph(graph, small, strategy=STRATEGIES[number % len(STRATEGIES)], time_limit_s=1.0)
        with net.store() as store, OnnxExecutor(plan, graph, program, store, small, scratch=folder) as executor:
            executor.run(inputs)
            return 0 if same_bits(executor.run(inputs), expected) else 1

    for library in SOLVERS:
        import_module(library)
    for number in range(WARM_UP):
        wrong += cycle(number)
    gc.collect()
    before = _now()
    for number in range(count):
        wrong += cycle(number)
    gc.collect()
    memory.trim_heap()
    after = _now()
    return Left(after[0] - before[0], after[1] - before[1], after[2] - before[2], wrong)


def _now() -> tuple[int, int, int]:
    return memory.current_rss_nbytes(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
