"""COSMA's claim with our re-implementations: how many of the non-compulsory off-chip bytes go away (arXiv 2311.18246).

As the paper does, one pass is planned and only values that operators make are counted (weights are streamed beside the
scratchpad in its main experiment): their spills and retrievals are all that is not compulsory. Budgets, as there:

- M_R, the minimum memory requirement: the largest working set of an operator, the tightest budget there is;
- M_P, the minimum peak memory footprint: the least peak over orders at which nothing has to move. The paper finds it
  by an integer program; here it is the least over the orders that we try, so an upper limit of it;
- M_H, half way between.

`with weights` repeats M_R for the whole graph, each weight loaded once a pass being compulsory.

`python -m bench.cosma --minutes M --networks a,b,...`: of the minutes (default 9) each strategy gets the same part of
what is left, at most a minute; most need less, so the larger networks, which come last, get more.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tensorstow.ir.errors import TensorstowError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.ir.profiles import load_machine
from tensorstow.planner.bounds import find_bound
from tensorstow.planner.build import judge
from tensorstow.planner.instance import make_instance
from tensorstow.planner.onnx import lower_onnx
from tensorstow.planner.strategies import Effort, Strategy, strategies
from tensorstow.planner.traffic_orders import candidate_orders
from tests.models import light_models, write_cnn, write_gpt

from .common import MIB, table

STRATEGIES = ("tflite-belady", "tflite-greedy", "cosma", "least-traffic")
MOST_S = 60.0
"""Seconds that a strategy gets at most, and"""
LEAST_S = 0.5
"""at least."""


@dataclass
class Share:
    """Divides the time that is left evenly among the plans that are still to be made, `plans` of them."""

    ends: float
    plans: int

    def next_s(self) -> float:
        """Seconds for the next plan."""
        left = (self.ends - time.monotonic()) / max(1, self.plans)
        self.plans -= 1
        return min(MOST_S, max(LEAST_S, left))


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """A row for each network and budget."""
    parser = argparse.ArgumentParser(prog="python -m bench.cosma")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--networks", type=lambda text: text.split(","), help="some of them: a,b,...")
    given = parser.parse_args(arguments)
    found = networks()
    if unknown := sorted(set(given.networks or ()) - set(found)):
        sys.exit(f"no network is called {', '.join(unknown)}; there are: {', '.join(found)}")
    chosen = {name: graph for name, graph in found.items() if given.networks is None or name in given.networks}
    share = Share(time.monotonic() + 60 * given.minutes, 4 * len(STRATEGIES) * len(chosen))
    rows: list[dict[str, Any]] = []
    for name, graph in sorted(chosen.items(), key=lambda pair: len(pair[1].operators)):
        alone = without_weights(graph)
        least, peak = requirements(alone)
        cases = {"M_R": (alone, least), "M_H": (alone, (least + peak) // 2), "M_P": (alone, peak)}
        for budget, (of, nbytes) in (cases | {"M_R with weights": (graph, requirements(graph)[0])}).items():
            rows.append({"network": name, "budget": budget, "nbytes": nbytes} | moved(of, nbytes, share))
            print(name, budget, rows[-1]["moved"], file=sys.stderr, flush=True)
    table(
        "non-compulsory off-chip bytes of a pass",
        ("network", "budget", "MiB", *STRATEGIES, "reduction"),
        [
            [
                r["network"],
                r["budget"],
                f"{r['nbytes'] / MIB:.3f}",
                *(_cell(r["moved"][s]) for s in STRATEGIES),
                _share(r),
            ]
            for r in rows
        ],
    )
    means = {budget: _mean(rows, budget) for budget in ("M_R", "M_H", "M_P")}
    for budget, (mean, number) in means.items():
        said = "no baseline moves anything" if mean is None else f"{mean:.0%} in the mean of {number} networks"
        print(f"{budget}: of the bytes that the better baseline moves COSMA saves {said} (paper: 84% at M_R)")
    return {"rows": rows, "means": {budget: mean for budget, (mean, _) in means.items()}}


def _mean(rows: Sequence[dict[str, Any]], budget: str) -> tuple[float | None, int]:
    shares = [r["reduction"] for r in rows if r["budget"] == budget and r["reduction"] is not None]
    return (statistics.mean(shares) if shares else None), len(shares)


def networks() -> dict[str, Graph]:
    """Randomly wired graphs, the light networks and two that the tests write."""
    wired = {f"wired {seed}": randomly_wired(seed) for seed in range(4)}
    with tempfile.TemporaryDirectory() as folder:
        small = {"cnn": write_cnn(Path(folder) / "cnn.onnx")}
        small["gpt"] = write_gpt(Path(folder) / "gpt.onnx", layers=4, width=128, heads=4, vocabulary=500, sequence=64)
        return wired | {name: lower_onnx(path).graph for name, path in (small | light_models()).items()}


def randomly_wired(seed: int, nodes: int = 24, neighbours: int = 4, rewired: float = 0.75) -> Graph:
    """Values wired like a stage of RandWire (Xie et al., ICCV 2019): a Watts-Strogatz ring of `nodes`, edges from the
    lower to the higher number; each node reads all its predecessors and makes a value of 32 to 96 KiB."""
    rng = random.Random(seed)
    edges: set[tuple[int, int]] = set()
    for a in range(nodes):
        for near in range(1, neighbours // 2 + 1):
            b = (a + near) % nodes
            while rng.random() < rewired or b == a:
                b = rng.randrange(nodes)
                if b != a:
                    break
            edges.add((min(a, b), max(a, b)))
    sizes = [rng.randint(1, 3) * 32 * 1024 for _ in range(nodes)]
    before: list[list[int]] = [[a for a, b in sorted(edges) if b == n] for n in range(nodes)]
    leaves = [n for n in range(nodes) if all(a != n for a, _ in edges)]
    storages = [Storage("x", 64 * 1024, StorageKind.INPUT), Storage("y", 4096, StorageKind.OUTPUT)]
    storages += [Storage(f"v{n}", nbytes, StorageKind.ACTIVATION) for n, nbytes in enumerate(sizes)]
    operators = [
        Operator(f"op{n}", "Conv", tuple(f"v{a}" for a in before[n]) or ("x",), (f"v{n}",), measured_ns=10_000)
        for n in range(nodes)
    ]
    operators.append(Operator("out", "Mean", tuple(f"v{n}" for n in leaves), ("y",), measured_ns=10_000))
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    return Graph(f"wired{seed}", tuple(storages), tensors, tuple(operators), ("x",), ("y",))


def without_weights(graph: Graph) -> Graph:
    """The graph with the values that operators make, alone; kernels' workspace left out as well."""
    gone = {t.id for t in graph.tensors if t.storage is not None and graph.storage[t.storage].homed}
    return replace(
        graph,
        storages=tuple(s for s in graph.storages if not s.homed),
        tensors=tuple(t for t in graph.tensors if t.id not in gone),
        operators=tuple(
            replace(op, inputs=tuple(t for t in op.inputs if t not in gone), workspace_nbytes=0)
            for op in graph.operators
        ),
    )


def box(nbytes: int) -> Machine:
    """The NPU with a scratchpad of so many bytes, over memory that holds everything."""
    return load_machine("npu-2mib").with_capacity({"sram": nbytes, "dram": 1 << 40})


def requirements(graph: Graph) -> tuple[int, int]:
    """M_R, and M_P as far as it is known: bytes, workspace included."""
    posed = make_instance(graph, box(1 << 40))
    others = [make_instance(graph, box(1 << 40), order=order) for order in candidate_orders(graph)]
    peak = min(i.peak_of_all() for i in (posed, *others))
    return max(posed.base_nbytes) + posed.workspace_nbytes, peak + posed.workspace_nbytes


def moved(graph: Graph, nbytes: int, share: Share) -> dict[str, Any]:
    """Bytes beyond the compulsory ones that each strategy moves in a pass; None where it has no plan."""
    instance = make_instance(graph, box(nbytes))
    bound = find_bound(instance, time_limit_s=10.0)
    compulsory = sum(graph.storage[i.storage].nbytes for i in instance.items if i.homed)

    def beyond(strategy: Strategy) -> int | None:
        try:
            made = strategy.plan(instance, Effort(time_limit_s=share.next_s()))
            plan, _ = judge(made, instance, bound, time_limit_s=10.0)
        except TensorstowError:
            return None
        return sum(plan.certificate.moved_nbytes.values()) - compulsory

    found = {strategy.name: beyond(strategy) for strategy in strategies(STRATEGIES)}
    return {"moved": found, "compulsory_nbytes": compulsory, "reduction": reduction(found)}


def reduction(found: dict[str, int | None]) -> float | None:
    """What part of the better baseline's bytes COSMA saves; None where neither moves any or one has no plan."""
    baselines = [n for n in (found["tflite-belady"], found["tflite-greedy"]) if n is not None]
    ours = found["cosma"]
    if not baselines or ours is None or min(baselines) <= 0:
        return None
    return 1.0 - ours / min(baselines)


def _cell(nbytes: int | None) -> str:
    return "no plan" if nbytes is None else f"{nbytes:,}"


def _share(row: dict[str, Any]) -> str:
    return "" if row["reduction"] is None else f"{row['reduction']:.0%}"


if __name__ == "__main__":
    main(sys.argv[1:])
