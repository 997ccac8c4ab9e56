"""What recognising repeated layers could gain: graphs of layers that are alike, and where the time of planning goes.

`python -m bench.repeats [--operators N] [--share S]`. A plan for layers that are alike could take its decisions from a
few of them: that saves the linear programs, at most. Beside their time stand the time of placement, which gives each
transfer of each layer its own addresses and instants, and all the rest, which looks at every operator in any case; how
much a better choice of what leaves could gain at most (simulated over bound); and the program of a tenth of the layers
in a tenth of the room, ten times over: what decisions that repeat would lose by themselves.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from tensorstow.ir.graph import Graph
from tensorstow.planner import search
from tensorstow.planner.instance import make_instance

from .common import table
from .scale import PLANNING, machine_of_share, measure_graph
from .scale_graphs import inference, training

KINDS: dict[str, Callable[..., Graph]] = {"inference": inference, "training": training}
LIMIT_S = 30.0
PART = 10


@dataclass(frozen=True, slots=True)
class Repeat:
    """Operators [`first`, `first` + `count` * `period`) are `count` times the same `period` ones."""

    first: int
    period: int
    count: int


def longest_repeat(graph: Graph, *, most: int = 64) -> Repeat:
    """The repeat of up to `most` operators that covers the most of them, in the order of the graph. Two operators are
    alike where their times, the sizes and kinds of what they touch, and how long ago each was touched last are."""
    last: dict[str, int] = {}
    marks: list[int] = []
    for i, op in enumerate(graph.operators):
        touched = [graph.storage[s] for s in graph.touches(op)]
        ages = tuple(i - last[s.id] if s.id in last else -1 for s in touched)
        last |= dict.fromkeys((s.id for s in touched), i)
        kinds = tuple((s.nbytes, s.kind) for s in touched)
        marks.append(hash((op.op_type, op.measured_ns, op.flops, kinds, ages)))
    of_step = np.array(marks)
    best = Repeat(0, len(marks), 1)
    for period in range(1, most + 1):
        same = np.concatenate(([False], of_step[period:] == of_step[:-period], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2)
        for begin, end in edges:
            count = int(end - begin) // period + 1
            if count * period > best.count * best.period or (best.count == 1 and count > 1):
                best = Repeat(int(begin), period, count)
    return best


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """A row for each kind."""
    parser = argparse.ArgumentParser(prog="python -m bench.repeats")
    parser.add_argument("--operators", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.1)
    given = parser.parse_args(arguments)
    rows = [_row(kind, given.operators, given.share) for kind in KINDS]
    table(
        "graphs of layers that are alike: CPU seconds of planning, and what repeating decisions could gain",
        ("graph", "repeat", "planning", "programs", "of it", "placing", "of it", "sim/bound", "tenth", "its bound"),
        [
            [
                r["kind"],
                f"{r['count']} x {r['period']}",
                f"{r['planning_s']:.1f}",
                f"{r['programs_s']:.1f}",
                f"{r['programs_s'] / r['planning_s']:.0%}",
                f"{r['placing_s']:.1f}",
                f"{r['placing_s'] / r['planning_s']:.0%}",
                f"{r['sim_over_bound']:.4f}",
                f"{r['tenth_s']:.1f}",
                f"{r['tenth_over_bound']:.4f}",
            ]
            for r in rows
        ],
    )
    return {"rows": rows}


def _row(kind: str, operators: int, share: float) -> dict[str, Any]:
    graph = KINDS[kind](operators, alike=True)
    repeat = longest_repeat(graph)
    placing = 0.0
    place = search.place

    def timed(*given: Any, **options: Any) -> Any:
        nonlocal placing
        began = time.process_time()
        try:
            return place(*given, **options)
        finally:
            placing += time.process_time() - began

    search.warm_up()
    with patch.object(search, "place", timed):
        row = measure_graph(graph, share, "check", LIMIT_S)
    own: dict[str, float] = row["seconds"]
    tenth, whole = (
        make_instance(g, machine_of_share(g, share)) for g in (KINDS[kind](operators // PART, alike=True), graph)
    )
    began = time.process_time()
    part = tenth.relax(tenth.capacity_nbytes, time_limit_s=LIMIT_S)
    row["tenth_s"] = time.process_time() - began
    bound = whole.relax(whole.capacity_nbytes, time_limit_s=LIMIT_S).bound
    return row | {
        "kind": kind,
        "period": repeat.period,
        "count": repeat.count,
        "planning_s": sum(own.get(s, 0.0) for s in PLANNING),
        "programs_s": own["relax"] + own["bound"],
        "placing_s": placing,
        "tenth_over_bound": PART * (part.objective or 0.0) / (bound or 1.0),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
