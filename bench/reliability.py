"""The fault table: seeded random cases, and faults injected into disks, files, memory, threads and processes.

`python -m bench reliability` runs a slice; `python -m bench.reliability --cases 10000` the long run. A case is a random
graph on a random machine under a random budget by a random strategy: the checker must find nothing, and the bound must
not be above the simulated time. Every `--executed-every`-th case is a random ONNX model that is executed, as its plan
file says, three passes with the bits of the run with everything in memory. `--only SEED` (`--only SEEDx` for an
executed one) repeats a case. Cases run in processes of their own, so one that dies or hangs costs one case.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tensorstow.ir.paths import write_atomic
from tests.faults.cases import Done, run_case
from tests.faults.cycles import cycle_many
from tests.faults.table import COSTLY, FAULTS, SkippedFaultError, try_fault
from tests.fuzz.__main__ import harms
from tests.fuzz.readers import READERS

from .common import MIB, table

CASE_LIMIT_S = 180.0
"""A case that takes longer has hung: its strategies are given a second."""
CHUNK = 20
"""Cases that a worker is given at once."""
PROGRESS_EVERY = 200
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
    ended, failures = _cases(given.cases, given.seed, given.executed_every, given.jobs)
    names = {"planned": "random plans", "executed": "random models, executed"}
    rows = [row for kind, name in names.items() if (row := _case_row(name, kind, ended)).tries]
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
    result = {"seed": given.seed, "rows": [asdict(r) for r in rows], "ended": dict(ended), "failures": failures}
    if given.output is not None:
        write_atomic(given.output, json.dumps(result, indent=1).encode() + b"\n")
    return result


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description="the fault table")
    parser.add_argument("--cases", type=int, default=400, help="random cases, planned or executed")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of cases, and that of faults")
    parser.add_argument("--executed-every", type=int, default=20, help="every so manyth case is executed")
    parser.add_argument("--tries", type=int, default=20, help="tries of each kind of fault")
    parser.add_argument("--cycles", type=int, default=100, help="plan-run cycles in one process")
    parser.add_argument("--mutants", type=int, default=500, help="mutants of a good file for each reader")
    parser.add_argument("--kinds", help="these kinds of faults only: a,b,...")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run cases")
    parser.add_argument("-o", "--output", type=Path, help="where to write the table as JSON")
    parser.add_argument("--only", help="repeat one case: SEED, or SEEDx for an executed one")
    return parser.parse_args(arguments)


def _repeat(text: str) -> dict[str, Any]:
    done = run_case(int(text.rstrip("x")), executed=text.endswith("x"))
    print(f"{_name(done.seed, text.endswith('x'))}: {done.what}: {done.status} {done.said}")
    return {"case": asdict(done)}


def _name(seed: int, executed: bool) -> str:
    return f"{seed}{'x' if executed else ''}"


def _cases(count: int, first: int, every: int, jobs: int) -> tuple[Counter[str], list[str]]:
    """How cases ended, by 'planned', 'executed' and the status; and what failed, with its seed."""
    todo = [(first + i, every > 0 and i % every == every - 1) for i in range(count)]
    ended, failures, began = Counter[str](), list[str](), time.perf_counter()
    for number, (done, executed) in enumerate(_run_all(todo, jobs), 1):
        kind = "executed" if executed else "planned"
        ended[f"{kind}: {done.status}"] += 1
        if done.wrong_bits:
            ended[f"{kind}: wrong bits"] += 1
        if done.status == "failed":
            failures.append(f"--only {_name(done.seed, executed)}: {done.what}: {done.said}")
            print(failures[-1], file=sys.stderr, flush=True)
        if number % PROGRESS_EVERY == 0 or number == count:
            rate = (time.perf_counter() - began) / number
            print(
                f"{number} of {count} cases, {len(failures)} failed, {rate * (count - number):.0f} s to go",
                file=sys.stderr,
                flush=True,
            )
    return ended, failures


def _run_all(todo: list[tuple[int, bool]], jobs: int) -> Iterator[tuple[Done, bool]]:
    """Each case once, in worker processes; where one dies or hangs, its chunk is run again case by case."""
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    pool, pending = _pool(jobs), list[tuple[list[tuple[int, bool]], Future[list[Done]]]]()
    while chunks or pending:
        while chunks and len(pending) < 2 * jobs:
            chunk = chunks.pop(0)
            pending.append((chunk, pool.submit(_run_chunk, chunk)))
        chunk, future = pending.pop(0)
        try:
            results = future.result(timeout=CASE_LIMIT_S * len(chunk))
        except (BrokenProcessPool, FutureTimeoutError) as error:
            _end(pool)
            pool, again = _pool(jobs), [c for c, _ in pending]
            pending.clear()
            if len(chunk) > 1:
                chunks[:0] = [[case] for case in chunk] + again
                continue
            chunks[:0] = again
            how = "hung" if isinstance(error, FutureTimeoutError) else "died"
            results = [Done(chunk[0][0], "its process", "failed", how)]
        for done, (_, executed) in zip(results, chunk, strict=True):
            yield done, executed
    _end(pool)


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _end(pool: ProcessPoolExecutor) -> None:
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.kill()


def _run_chunk(chunk: list[tuple[int, bool]]) -> list[Done]:
    return [run_case(seed, executed=executed) for seed, executed in chunk]


def _case_row(name: str, kind: str, ended: Counter[str]) -> Row:
    done, refused, failed, wrong = (ended[f"{kind}: {s}"] for s in (kind, "refused", "failed", "wrong bits"))
    note = f"{refused} of them refused with a reason" if refused else ""
    return Row(name, done + refused + failed, wrong, 0, failed - wrong, note)


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
