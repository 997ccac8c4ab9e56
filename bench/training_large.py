"""Plans of training steps that are too large to run here: what is promised, and what it takes to plan them.

`python -m bench.training_large` plans the steps of `bench.training_settings`, each in a process of its own, which says
what the kernel counts of it: seconds of processor time and the peak of its memory. `--time-limit` bounds each search in
seconds of the clock; a plan is printed with the gap that it has then. `--blocks N` takes the first N blocks of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tensorstow.ir.errors import TensorstowError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.modules import ModuleModel
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.runtime.memory import peak_rss_nbytes
from tensorstow.training import TrainingModel

from .common import table
from .training_settings import GIB, SETTINGS, Setting

COLUMNS = (
    "step", "operators", "holds GiB", "compute s", "step s", "bound s", "gap", "peaks GiB", "moved GiB", "again",
    "MFU", "trace s", "plan s", "here MiB", "published",
)  # fmt: skip


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Plan the selected steps, print the table, and return the rows."""
    given = _parse(arguments)
    if given.in_process:
        setting = _shortened(SETTINGS[given.settings[0]], given.blocks)
        print(json.dumps(measured(setting, given.strategy, given.time_limit)))
        return {}
    rows = [_in_child(name, given) for name in given.settings]
    table("training steps larger than this box", COLUMNS, [_cells(row) for row in rows])
    return {"rows": rows, "time_limit_s": given.time_limit}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.training_large")
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--strategy", default="stow-recompute")
    parser.add_argument("--blocks", type=int, default=0, help="how many blocks; 0: all")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for each search")
    parser.add_argument("--in-process", action="store_true", help="one setting, here; its row as JSON")
    return parser.parse_args(arguments)


def _shortened(setting: Setting, blocks: int) -> Setting:
    return replace(setting, sizes=replace(setting.sizes, blocks=blocks)) if blocks else setting


def _in_child(name: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.training_large", "--in-process", "--settings", name]
    options = ["--strategy", given.strategy, "--blocks", str(given.blocks), "--time-limit", str(given.time_limit)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"step": name, "reason": done.stderr.strip()[-200:]}
    return json.loads(done.stdout.splitlines()[-1])


def lowered(setting: Setting) -> tuple[Graph, Machine]:
    """The graph of a setting's step on its machine, with what a plan places there."""
    module, batch = setting.build()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    model = TrainingModel(ModuleModel(setting.name, module, batch, {}), lambda loss: loss, optimizer)
    machine = setting.machine()
    return model.lower(machine, "training").graph, machine


def measured(setting: Setting, strategy: str, time_limit_s: float) -> dict[str, Any]:
    """A row: the step, its plan, and what both took of this process."""
    began = time.process_time()
    graph, machine = lowered(setting)
    trace_s = time.process_time() - began
    return planned(setting, graph, machine, strategy, time_limit_s) | {"trace_cpu_s": trace_s}


def planned(setting: Setting, graph: Graph, machine: Machine, strategy: str, time_limit_s: float) -> dict[str, Any]:
    """A row without the trace."""
    began = time.process_time(), time.monotonic()
    row: dict[str, Any] = {"step": setting.name, "published": setting.published, "operators": len(graph.operators)}
    try:
        posed = make_instance(graph, machine, mode="training")
        row |= {"holds_nbytes": posed.peak_of_all(), "compute_s": sum(posed.durations_ns) / 1e9}
        plan = plan_graph(graph, machine, strategy=strategy, mode="training", time_limit_s=time_limit_s)
    except TensorstowError as error:
        row |= {"reason": f"{type(error).__name__}: {error}"}
    else:
        made, unit = plan.certificate, machine.units[0]
        rate = setting.sizes.model_flops / setting.sizes.devices / made.simulated_s
        row |= {
            "step_s": made.simulated_s,
            "bound_s": made.bound_s,
            "bound_kind": made.bound_kind,
            "gap": made.gap,
            "peak_nbytes": made.peak_nbytes,
            "moved_nbytes": made.moved_nbytes,
            "again": len(plan.steps) - len(graph.operators),
            "flops_per_s": rate,
            "mfu": rate / dict(unit.flops_per_s)["bfloat16"],
        }
    used = {"plan_cpu_s": time.process_time() - began[0], "plan_s": time.monotonic() - began[1]}
    return row | used | {"here_nbytes": peak_rss_nbytes()}


def _cells(row: dict[str, Any]) -> list[str]:
    def gib(nbytes: int) -> str:
        return f"{nbytes / GIB:.1f}"

    def each(nbytes: dict[str, int]) -> str:
        return ", ".join(f"{name} {gib(n)}" for name, n in nbytes.items())

    posed = [
        str(row.get("operators", "")),
        *((gib(row["holds_nbytes"]), f"{row['compute_s']:.2f}") if "compute_s" in row else ("", "")),
    ]
    if "step_s" not in row:
        return [row["step"], *posed, *[""] * (len(COLUMNS) - 5), str(row.get("reason", ""))[:80]]
    return [
        row["step"],
        *posed,
        f"{row['step_s']:.2f}",
        f"{row['bound_s']:.2f}",
        f"{row['gap']:.3f}",
        each(row["peak_nbytes"]),
        each(row["moved_nbytes"]),
        str(row["again"]),
        f"{row['mfu']:.3f}",
        f"{row['trace_cpu_s']:.0f}",
        f"{row['plan_cpu_s']:.0f}",
        str(row["here_nbytes"] >> 20),
        row["published"],
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
