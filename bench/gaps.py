"""The gap table: how far plans are above their proven bound, and below what baselines take.

`python -m bench gaps` runs every case of `bench.zoo`; `python -m bench.gaps --help` selects. `python -m bench.gaps
--table --time-limit 12 --minutes 38 -o FILE --resume` runs six graphs on two and three tiers, in pieces if it must: the
file has every graph and machine that is done, and the last run prints the whole table. A case is a graph on a machine
under a budget of the unit's tier. Machines are published profiles, reduced to two or three tiers:

- `NAME/2`: the unit's tier and the fastest one below, enlarged where it could not hold the graph twice;
- `NAME/3`: also the next one; the middle one holds half of what is at home at the bottom;
- `~balanced`: all links faster or slower by one factor, so that moving half of the peak takes as long as computing.

Budgets are shares of the bytes that a pass holds at most when nothing ever leaves, workspace included, and 'smallest':
the largest working set of an operator. Shares below the smallest are left out. The best baseline is the fastest of the
registered ones on the same instance, scored by the same simulator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tensorstow.ir.errors import InfeasibleError, InputError, TensorstowError, TimeLimitError
from tensorstow.ir.paths import write_atomic
from tensorstow.ir.plan import Plan
from tensorstow.ir.simulate import simulate
from tensorstow.planner.build import Bound, find_bound, run_strategy
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.strategies import Effort, Strategy, strategies, strategy_names

from .zoo import Case, cases
from .zoo.machines import budgets_of, machine_for, parse
from .zoo.summary import Row, cells, print_table, summarise

ROOT = Path(__file__).parents[1]
BUDGETS = ("80", "60", "40", "20", "smallest")
BASELINES = ("resident", "on-demand", "lru", "belady", "belady-prefetch", "offload-everything")
BASELINE_FAMILIES = ("checkpoint",)
"""Strategies whose names begin so are baselines, too."""
TABLE = (
    "gpt2",
    "llama-1b",
    "moe",
    "resnet50",
    "densenet121",
    "unet",
    *(f"{name}-train" for name in ("gpt2", "llama-1b", "moe", "resnet50", "densenet121", "unet")),
)
"""The graphs of `--table`, for inference and for training."""
BALANCED = "~balanced"
WAITS = 3
"""How many of the longest waits a row names."""

# What a strategy or the checker may raise where it cannot do a case yet: its row says so, and the table goes on.
FAULTS = (
    TensorstowError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured of each case; `baselines` None: all that are registered. `time_limit_s` is for the bound, and
    again for each strategy."""

    budgets: tuple[str, ...] = BUDGETS
    strategies: tuple[str, ...] = ("stow",)
    baselines: tuple[str, ...] | None = None
    time_limit_s: float = 20.0


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run the selected cases, print the table and the summary, and return both for the JSON file."""
    given = _parse(arguments)
    baselines = None if given.baselines is None else tuple(filter(None, given.baselines))
    options = Options(tuple(given.budgets), tuple(given.strategies), baselines, given.time_limit)
    began, left_out = time.monotonic(), list[str]()
    rows = _kept(given.output, options) if given.resume else []
    known = {(row["graph"], row["machine"]) for row in rows}
    for case in _selected(given):
        for machine in given.machines or _machines(case, given):
            if (case.name, machine) in known:
                continue
            if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
                left_out.append(f"{case.name} on {machine}")
                continue
            for row in measure(case, machine, options) if given.in_process else _apart(case, machine, options):
                rows.append(row)
                if given.lines:
                    print(json.dumps(row), flush=True)
                else:
                    print("  ".join(cells(row)), file=sys.stderr, flush=True)
            _keep(given.output, options, rows)
    if given.lines:
        return {}
    summary = {name: summarise(rows, name) for name in options.strategies}
    print_table(rows, summary)
    if left_out:
        print(f"not begun in {given.minutes:g} minutes (--resume goes on): {', '.join(left_out)}")
    return {"options": asdict(options), "rows": rows, "summary": summary}


def _machines(case: Case, given: argparse.Namespace) -> list[str]:
    """The case's own machines, as far as they are asked for."""
    wanted = [m for m in case.machines if given.tiers in (None, str(parse(m)[1]))]
    return [m for m in wanted if not (given.table and m.endswith(BALANCED))]


def _keep(path: str | None, options: Options, rows: Sequence[Row]) -> None:
    """Write what there is after each graph and machine, so that a run that is stopped can go on."""
    if path is not None:
        kept = {"options": asdict(options), "rows": list(rows)}
        write_atomic(Path(path), json.dumps(kept, indent=1).encode() + b"\n")


def _kept(path: str | None, options: Options) -> list[Row]:
    """The rows of an earlier run with the same options, but those that were stopped from outside."""
    if path is None:
        sys.exit("--resume needs -o FILE: the file of the run that is to go on")
    if not Path(path).exists():
        return []
    kept = json.loads(Path(path).read_bytes())
    if kept.get("options") != json.loads(json.dumps(asdict(options))):
        sys.exit(f"{path} holds rows of other options ({kept.get('options')}); give those, or another file")
    failed = {(r["graph"], r["machine"]) for r in kept["rows"] if not r["budget"] and r.get("status") == "fault"}
    return [r for r in kept["rows"] if (r["graph"], r["machine"]) not in failed]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m bench.gaps", description="the gap table; lists are 'a,b,...'")
    parser.add_argument("--graphs", type=names, default=[], help="cases by name, or beginnings of names ('gpt2*')")
    parser.add_argument("--mode", choices=("inference", "training"), help="only cases of this mode")
    parser.add_argument("--table", action="store_true", help="the six graphs, on their machines of two and three tiers")
    parser.add_argument("--machines", type=names, default=[], help="machines for every case, like rtx4090/2~balanced")
    parser.add_argument("--tiers", choices=("2", "3"), help="of each case's own machines, those of so many tiers")
    parser.add_argument("--budgets", type=names, default=list(BUDGETS), help="percentages, and 'smallest'")
    parser.add_argument("--strategies", type=names, default=["stow"], help="what is measured against the bound")
    parser.add_argument("--baselines", type=names, default=None, help="default: all that are registered; '' for none")
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for the bound, and for each strategy")
    parser.add_argument("--in-process", action="store_true", help="no process for each graph and machine")
    parser.add_argument("--lines", action="store_true", help="only a line of JSON for each row")
    parser.add_argument("--minutes", type=float, help="begin no graph and machine after so many")
    parser.add_argument("--resume", action="store_true", help="go on with the file of -o, where that is begun")
    parser.add_argument("-o", "--output", help="write rows and summary to this JSON file")
    return parser.parse_args(arguments)


def _selected(given: argparse.Namespace) -> list[Case]:
    def wanted(case: Case) -> bool:
        asked = [*given.graphs, *(TABLE if given.table else ())]
        named = not asked or any(case.name.startswith(g[:-1]) if g.endswith("*") else case.name == g for g in asked)
        return named and given.mode in (None, case.mode)

    found = [case for case in cases() if wanted(case)]
    if not found:
        known = ", ".join(c.name for c in cases())
        sys.exit(f"no case is called {', '.join(given.graphs)}; there are: {known}")
    return found


def measure(case: Case, machine: str, options: Options) -> Iterator[Row]:
    """A row for each budget and strategy; one for all where there is nothing to plan."""
    row: Row = {"graph": case.name, "mode": case.mode, "machine": machine, "budget": "", "strategy": ""}
    try:
        graph = case.build()
        whole = machine_for(machine, graph)
        budgets = budgets_of(make_instance(graph, whole, mode=case.mode), options.budgets)
    except FAULTS as fault:
        yield row | _reason(fault)
        return
    row |= {"ops": len(graph.operators)}
    for name, nbytes in budgets.items():
        row |= {"budget": name, "nbytes": nbytes}
        try:
            budget = whole.with_capacity({whole.units[0].tier: nbytes})
            began = time.monotonic()
            instance = make_instance(graph, budget, mode=case.mode)
            bound = find_bound(instance, time_limit_s=options.time_limit_s)
        except FAULTS as fault:
            yield row | _reason(fault)
            continue
        row |= {"bound_s": bound.seconds, "bound_kind": bound.kind, "bound_solve_s": time.monotonic() - began}
        yield from _compare(row, instance, bound, options)


def _compare(row: Row, instance: Instance, bound: Bound, options: Options) -> Iterator[Row]:
    """A row for each strategy, against the best of the baselines."""
    times: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for baseline in strategies(_baselines(options)):
        found, _ = _run(baseline, instance, bound, options.time_limit_s)
        if isinstance(found, Plan):
            times[baseline.name] = found.certificate.simulated_s
        else:
            reasons[baseline.name] = found["reason"]
    best = min(times, key=lambda name: times[name], default=None)
    row = {**row, "baselines": times, "baseline_reasons": reasons, "best_baseline": best}
    for name in options.strategies:
        try:
            (strategy,) = strategies([name])
        except InputError as fault:
            yield row | {"strategy": name} | _reason(fault)
            continue
        found, seconds = _run(strategy, instance, bound, options.time_limit_s)
        made: Row = {**row, "strategy": name, "solve_s": seconds + row["bound_solve_s"]}
        if not isinstance(found, Plan):
            yield made | found
            continue
        made |= _scored(found, instance)
        if best is not None:
            made["speedup"] = times[best] / found.certificate.simulated_s
        yield made


def _baselines(options: Options) -> list[str]:
    if options.baselines is not None:
        return list(options.baselines)
    known = (n for n in strategy_names() if n in BASELINES or n.startswith(BASELINE_FAMILIES))
    return [n for n in known if n not in options.strategies]


def _run(strategy: Strategy, instance: Instance, bound: Bound, limit_s: float) -> tuple[Plan | Row, float]:
    """The checked plan, or why there is none; and the seconds it took."""
    began = time.monotonic()
    try:
        found = run_strategy(strategy, instance, bound, Effort(limit_s))
    except FAULTS as fault:
        found = _reason(fault)
    return found, time.monotonic() - began


def _reason(fault: Exception) -> Row:
    known = {InfeasibleError: "infeasible", TimeLimitError: "time limit", InputError: "input"}
    status = next((word for kind, word in known.items() if isinstance(fault, kind)), "fault")
    text = " ".join(str(fault).split())[:300]
    return {"status": status, "reason": text if status != "fault" else f"{type(fault).__name__}: {text}"}


def _scored(plan: Plan, instance: Instance) -> Row:
    """What a plan promises, and where its time goes."""
    made = plan.certificate
    timeline = simulate(plan, instance.graph, instance.machine)
    longest = sorted(timeline.steps, key=lambda s: -s.wait_ns)[:WAITS]
    waits: list[Row] = []
    for step in (s for s in longest if s.wait_ns):
        moved = plan.transfers[step.waited_for] if step.waited_for is not None else None
        waits.append(
            {
                "op": plan.steps[step.step].op,
                "wait_s": step.wait_ns / 1e9,
                "storage": moved and moved.storage,
                "link": moved and moved.link,
                "nbytes": moved and moved.nbytes,
            }
        )
    return {
        "status": made.status,
        "simulated_s": made.simulated_s,
        "bound_s": made.bound_s,
        "bound_kind": made.bound_kind,
        "ratio": 1 + made.gap,
        "proven": made.status == "optimal",
        "compute_s": timeline.compute_ns / 1e9,
        "busy_s": {lane: ns / 1e9 for lane, ns in timeline.lane_busy_ns.items()},
        "moved_nbytes": made.moved_nbytes,
        "waits": waits,
    }


def _apart(case: Case, machine: str, options: Options) -> list[Row]:
    """The same in a process of its own: what one case leaves behind, or breaks, does not touch the next."""
    command = [sys.executable, "-m", "bench.gaps", "--in-process", "--lines", "--graphs", case.name]
    command += ["--machines", machine, "--budgets", ",".join(options.budgets)]
    command += ["--strategies", ",".join(options.strategies), "--time-limit", str(options.time_limit_s)]
    if options.baselines is not None:
        command += ["--baselines", ",".join(options.baselines)]
    runs = len(options.strategies) + len(_baselines(options)) + 2
    limit_s = 60 + 2 * runs * len(options.budgets) * options.time_limit_s
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=limit_s, check=False)
        out = done.stdout
        trouble = done.stderr.decode().strip().rpartition("\n")[2][:300] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        out, trouble = late.stdout or b"", f"stopped after {limit_s:.0f} s"
    rows: list[Row] = [json.loads(line) for line in out.decode().splitlines() if line.endswith("}")]
    if trouble:
        reason = {"status": "fault", "reason": trouble}
        rows.append({"graph": case.name, "mode": case.mode, "machine": machine, "budget": "", "strategy": ""} | reason)
    return rows


if __name__ == "__main__":
    given_path = _parse(sys.argv[1:]).output
    result = main(sys.argv[1:])
    if given_path:
        write_atomic(Path(given_path), json.dumps(result, indent=1).encode() + b"\n")
