"""The fault table: seeded random cases, and faults injected into disks, files, memory, threads and processes.

`python -m bench reliability` runs a slice; `python -m bench.reliability --cases 10000` the long run. A case is a random
graph on a random machine under a random budget by a random strategy: the checker must find nothing, and the bound must
not be above the simulated time. Every `--executed-every`-th case is a random ONNX model, PyTorch module or training
step that is executed, as its plan file says, three times with the bits of the run with everything in memory. `--only
SEED` (SEEDx, SEEDm, SEEDt for one that was executed) repeats a case. Cases run in processes of their own, so one that
dies or hangs costs one case. With `--record FILE` what was done is kept there, and the same command goes on with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tensorstow.ir.paths import write_atomic
from tests.faults.cases import run_case
from tests.faults.cycles import cycle_many
from tests.faults.kinds import EXECUTED
from tests.faults.table import COSTLY, FAULTS, SkippedFaultError, try_fault
from tests.fuzz.__main__ import harms
from tests.fuzz.readers import READERS

from .common import MIB, table
from .reliability_cases import Series, parse_case, run_series

CASES = {
    "planned": "random plans",
    "onnx": "random ONNX models, executed",
    "module": "random PyTorch modules, executed",
    "training": "random training steps, executed",
}
"""What the table calls the kinds of random cases."""
COSTLY_SHARE = 5
"""Kinds that start processes are tried once for so many tries of the others."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `note` says why a kind was not tried."""

    kind: str
    tries: int
    wrong_bits: int = 0
    lost_data: int = 0
    unclear_errors: int = 0
    note: str = ""


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run what `arguments` select; print the table; the rows and the failures."""
    given = _parse(arguments)
    if given.only:
        return _repeat(given.only)
    began = time.perf_counter()
    series = Series(given.seed, given.executed_every, tuple(given.executed.split(",")))
    record = run_series(series, given.cases, given.jobs, given.record)
    rows, failures = [row for kind in CASES if (row := _case_row(kind, record.ended)).tries], list(record.failures)
    kinds = [k for k in FAULTS if given.kinds is None or k in given.kinds.split(",")]
    for kind in kinds:
        row, said = _fault_row(kind, given.seed, max(1, given.tries // (COSTLY_SHARE if kind in COSTLY else 1)))
        rows.append(row)
        failures += said
        print(f"{kind}: {row.tries} tries{f', {row.note}' if row.note else ''}", file=sys.stderr)
    if given.cycles:
        rows.append(_cycles_row(given.cycles, failures))
    if given.mutants:
        rows += [_mutants_row(name, given.seed, given.mutants, failures) for name in READERS]
    header = ["kind", "tries", "wrong bits", "lost data", "unclear errors", ""]
    cells = [[str(v) for v in asdict(r).values()] for r in rows]
    table(f"faults, seed {given.seed}, {time.perf_counter() - began:.0f} s", header, cells)
    for failure in failures:
        print(failure)
    result = {
        "seed": given.seed,
        "rows": [asdict(r) for r in rows],
        "ended": dict(record.ended),
        "cpu_s": record.cpu_s,
        "failures": failures,
    }
    if given.output is not None:
        write_atomic(given.output, json.dumps(result, indent=1).encode() + b"\n")
    return result


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description="the fault table")
    parser.add_argument("--cases", type=int, default=400, help="random cases, planned or executed")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of cases, and that of faults")
    parser.add_argument("--executed-every", type=int, default=20, help="every so manyth case is executed")
    parser.add_argument("--executed", default=",".join(EXECUTED), help="the kinds of those, in turn")
    parser.add_argument("--record", type=Path, help="a JSON file that keeps what was done of the cases, to go on with")
    parser.add_argument("--tries", type=int, default=20, help="tries of each kind of fault")
    parser.add_argument("--cycles", type=int, default=100, help="plan-run cycles in one process")
    parser.add_argument("--mutants", type=int, default=500, help="mutants of a good file for each reader")
    parser.add_argument("--kinds", help="these kinds of faults only: a,b,...")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run cases")
    parser.add_argument("-o", "--output", type=Path, help="where to write the table as JSON")
    parser.add_argument("--only", help="repeat one case: SEED, SEEDx (ONNX), SEEDm (module) or SEEDt (training)")
    return parser.parse_args(arguments)


def _repeat(text: str) -> dict[str, Any]:
    done = run_case(*parse_case(text))
    print(f"{text}: {done.what}: {done.status} {done.said}")
    return {"case": asdict(done)}


def _case_row(kind: str, ended: Counter[str]) -> Row:
    made = ended[f"{kind}: planned"] + ended[f"{kind}: executed"]
    refused, failed, wrong = (ended[f"{kind}: {s}"] for s in ("refused", "failed", "wrong bits"))
    note = f"{refused} of them refused with a reason" if refused else ""
    return Row(CASES[kind], made + refused + failed, wrong, 0, failed - wrong, note)


def _cycles_row(count: int, failures: list[str]) -> Row:
    """Planning and running over and over in this process: what grows counts as lost."""
    with tempfile.TemporaryDirectory() as folder:
        left = cycle_many(Path(folder), count)
    if not left.nothing:
        failures.append(f"cycles: {left}")
    note = f"{left.nbytes / MIB:+.1f} MiB resident, {left.files:+d} files, {left.threads:+d} threads"
    return Row("plan-run cycles in one process", count, left.wrong, int(not left.nothing and not left.wrong), 0, note)


def _mutants_row(name: str, seed: int, count: int, failures: list[str]) -> Row:
    """Mutants of a good file for a reader: whatever is not read or refused in words counts as unclear."""
    found = harms(name, seed, count)
    failures += [f"fuzz {name}: {n} times {harm}" for harm, n in found.items()]
    return Row(f"mutants of a file: {name}", count, unclear_errors=sum(found.values()))


def _fault_row(kind: str, seed: int, tries: int) -> tuple[Row, list[str]]:
    """`tries` tries of one kind; a try in which the fault did not come is made again with the next seed."""
    outcomes, failures = [], list[str]()
    for number in range(4 * tries):
        if len(outcomes) == tries:
            break
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = try_fault(kind, Path(folder), seed + number)
            except SkippedFaultError as skipped:
                return Row(kind, 0, note=f"not tried: {skipped}"), failures
        if outcome.fired:
            outcomes.append(outcome)
        if outcome.fired and not outcome.clean:
            failures.append(f"{kind}, seed {seed + number}: {outcome}")
    counts = (sum(o.wrong_bits for o in outcomes), sum(o.lost_data for o in outcomes))
    return Row(kind, len(outcomes), *counts, sum(bool(o.unclear) for o in outcomes)), failures


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
