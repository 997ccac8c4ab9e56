"""Planning of large graphs, stage by stage: CPU seconds, peak memory, the bound, and simulated over the bound.

`python -m bench.scale [--operators N ...] [--kinds K ...] [--shares S ...] [--until STAGE]` selects. Every case runs in
a process of its own, so that its peak memory is its own. A share is that of the bytes between the largest working set
and all that a pass ever holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.errors import TensorstowError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.ir.simulate import simulate
from tensorstow.planner.bounds import find_bound
from tensorstow.planner.build import certify
from tensorstow.planner.instance import make_instance
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.validate import validate

from .common import table
from .scale_graphs import KINDS, machine_for

T = TypeVar("T")
SIZES = (1_000, 10_000, 100_000)
SHARES = (0.5, 0.1, 0.0)
STAGES = ("validate", "instance", "relax", "bound", "plan", "simulate", "check")
PLANNING = ("validate", "instance", "relax", "bound", "plan", "check")
"""What `planner.build.plan_graph` does; simulating is part of planning and of checking."""


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """A row for each size, kind and share."""
    given = _parse(arguments)
    rows = [
        _apart(kind, operators, share, given.until, given.time_limit)
        for operators in given.operators
        for kind in given.kinds
        for share in given.shares
    ]
    table(
        "planning of large graphs: CPU seconds by stage",
        ("graph", "operators", "share", "gaps", *STAGES, "planning", "MiB", "LP gap", "sim/bound"),
        [_cells(r) for r in rows],
    )
    return {"rows": rows}


def measure(kind: str, operators: int, share: float, until: str, time_limit_s: float) -> dict[str, Any]:
    """One case in this process. What a stage raises ends the row."""
    return {"kind": kind} | measure_graph(KINDS[kind](operators), share, until, time_limit_s)


def machine_of_share(graph: Graph, share: float) -> Machine:
    """A machine whose room is this share of the way from the least that goes to what takes everything.

    What it is worked out from is gone when this returns: a peak of memory is to be that of planning.
    """
    roomy = make_instance(graph, machine_for(graph, 1 << 60))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return machine_for(graph, least + int(share * (most - least)))


def measure_graph(graph: Graph, share: float, until: str, time_limit_s: float) -> dict[str, Any]:
    """`measure` of a graph."""
    machine = machine_of_share(graph, share)
    row: dict[str, Any] = {"operators": len(graph.operators), "share": share, "seconds": {}, "wall": {}}

    def stage(name: str, work: Callable[[], T]) -> T:
        began, wall = time.process_time(), time.monotonic()
        try:
            return work()
        finally:
            row["seconds"][name] = round(time.process_time() - began, 3)
            row["wall"][name] = round(time.monotonic() - wall, 3)

    def run() -> None:
        stage("validate", lambda: validate(graph, machine))
        instance = stage("instance", lambda: make_instance(graph, machine))
        row["gaps"] = len(instance.gaps)
        relaxed = stage("relax", lambda: instance.relax(instance.capacity_nbytes, time_limit_s=time_limit_s))
        row["lp_gap"] = relaxed.gap
        bound = stage("bound", lambda: find_bound(instance, time_limit_s=time_limit_s))
        row["bound_s"] = bound.seconds
        if until == "bound":
            return
        (chosen,) = strategies(["stow"])
        plan = certify(stage("plan", lambda: chosen.plan(instance, Effort(time_limit_s))), bound)
        row["sim_over_bound"] = 1 + plan.certificate.gap
        row["transfers"] = len(plan.transfers)
        stage("simulate", lambda: simulate(plan, graph, machine))
        violations = stage("check", lambda: check(plan, graph, machine))
        assert not violations, violations[0].message

    try:
        run()
        stage("digest again", lambda: digest(graph))
    except TensorstowError as error:
        row["error"] = str(error)
    row["peak_rss_nbytes"] = _peak_rss_nbytes()
    return row


def _peak_rss_nbytes() -> int:
    """The most that this process held of real memory: VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def _apart(kind: str, operators: int, share: float, until: str, time_limit_s: float) -> dict[str, Any]:
    case = [kind, str(operators), str(share), until, str(time_limit_s)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--case", *case], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = done.stderr.strip()[-300:] or f"ended by signal {-done.returncode}"
        return {"kind": kind, "operators": operators, "share": share, "seconds": {}, "error": why}
    return json.loads(done.stdout.splitlines()[-1])


def _cells(row: dict[str, Any]) -> list[str]:
    own: dict[str, float] = row["seconds"]
    gap, ratio = row.get("lp_gap"), row.get("sim_over_bound")
    return [
        row["kind"],
        str(row["operators"]),
        f"{row['share']:g}",
        str(row.get("gaps", "")),
        *(f"{own[s]:.2f}" if s in own else "" for s in STAGES),
        f"{sum(own.get(s, 0.0) for s in PLANNING):.1f}",
        f"{row.get('peak_rss_nbytes', 0) / (1 << 20):.0f}",
        "" if gap is None else f"{gap:.2%}",
        f"{ratio:.4f}" if ratio else str(row.get("error", ""))[:40],
    ]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale")
    parser.add_argument("--operators", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--until", choices=("bound", "check"), default="check")
    parser.add_argument("--time-limit", type=float, default=30.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        name, count, part, last, limit = sys.argv[2:]
        print(json.dumps(measure(name, int(count), float(part), last, float(limit))))
    else:
        main(sys.argv[1:])
