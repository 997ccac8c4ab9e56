"""How low buffers are packed, how fast, and how often the tight ones are solved.

`python -m bench.packing DATA [--time-limit S]`: the CSV files of a folder (id, lower, upper, size; a number between the
first and the last dot of a name is the capacity), beside instances made here. `python -m bench packing` takes the
folder from `$TENSORSTOW_DATA`/packing and, where there is none, runs the made ones alone.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from tensorstow.pack import read_buffers
from tensorstow.solvers.packing import PackingProblem, check_packing, load_bound, pack
from tests.solvers.packing.instances import cut_rectangle, network

from .common import table

SEEDS = (1, 2, 3)
SIZES = (50, 100, 200, 300, 500)


def instances(folder: Path | None) -> dict[str, PackingProblem]:
    """Problems by name: the folder's, then rectangles cut into pieces (all, and some of them), then networks."""
    found: dict[str, PackingProblem] = {}
    for path in sorted(folder.glob("*.csv")) if folder is not None else ():
        middle = path.name.split(".")[-2]
        found[path.name] = read_buffers(path, int(middle) if middle.isdigit() else None)[1]
    for bodies in SIZES:
        for seed in SEEDS:
            found[f"cut-{bodies}-{seed}"] = cut_rectangle(bodies, seed)
            found[f"cut-{bodies}-{seed}-less-5%"] = cut_rectangle(bodies, seed, dropped=0.05)
    for bodies in (200, 1000, 5000):
        found[f"network-{bodies}"] = network(bodies, 1)
    return found


def run(folder: Path | None, time_limit_s: float) -> dict[str, Any]:
    """Pack every instance; rows with bound, peak, status and seconds. Every packing is checked."""
    pack(replace(cut_rectangle(60, 0)), time_limit_s=1.0)  # compiles, or loads what was compiled
    rows: list[dict[str, Any]] = []
    for name, problem in instances(folder).items():
        result = pack(problem, time_limit_s=time_limit_s)
        if result.solution is not None:
            wrong = check_packing(problem, result.solution)
            assert not wrong, wrong[0]
        rows.append(
            {
                "instance": name,
                "buffers": len(problem.bodies),
                "capacity": problem.capacity,
                "load_bound": load_bound(problem),
                "peak": result.objective,
                "status": result.status.value,
                "seconds": round(result.seconds, 2),
                "method": result.method,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    table("packing", columns, [["-" if r[c] is None else str(r[c]) for c in columns] for r in rows])
    solved = [r for r in rows if r["peak"] is not None]
    cuts = [r for r in rows if r["instance"].startswith("cut-")]
    return {
        "time_limit_s": time_limit_s,
        "solved": len(solved),
        "cut_solved": sum(r["peak"] is not None for r in cuts),
        "cut": len(cuts),
        "rows": rows,
    }


def main() -> dict[str, Any]:
    """What `python -m bench` runs."""
    data = os.environ.get("TENSORSTOW_DATA")
    return run(Path(data) / "packing" if data else None, 10.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    answer = run(chosen.data, chosen.time_limit)
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(answer, indent=1) + "\n")
