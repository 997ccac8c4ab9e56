"""`tensorstow pack`: offsets for the buffers of a CSV file."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ir.errors import InputError
from .ir.paths import write_atomic
from .solvers.packing.check import check_packing
from .solvers.packing.problem import Body, Box, PackingProblem
from .solvers.packing.solve import load_bound, pack
from .solvers.result import Status

COLUMNS = ("id", "lower", "upper", "size")
EXIT = {Status.OPTIMAL: 0, Status.FEASIBLE: 0, Status.INFEASIBLE: 3, Status.UNKNOWN: 4, Status.ERROR: 1}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What packing a file gave; sizes in the file's unit."""

    buffers: int
    load_bound: int
    peak: int | None
    capacity: int | None
    status: str
    seconds: float
    method: str
    exit_status: int

    def facts(self) -> dict[str, Any]:
        """The JSON object of `pack --json`."""
        names = ("buffers", "load_bound", "peak", "capacity", "status", "seconds", "method")
        return {name: getattr(self, name) for name in names}


def pack_file(path: Path, *, capacity: int | None, time_limit_s: float, seed: int, output: Path | None) -> Outcome:
    """Pack the buffers of a CSV file; with `output`, write the same rows with a column `offset`."""
    rows, problem = read_buffers(path, capacity)
    result = pack(problem, time_limit_s=time_limit_s, seed=seed)
    if result.solution is not None:
        wrong = check_packing(problem, result.solution)
        assert not wrong, f"the packer made a wrong packing: {wrong[0]}"
        if output is not None:
            _write(output, rows, result.solution.offsets)
    peak = result.solution.peak if result.solution else None
    exit_status = EXIT[result.status]
    return Outcome(
        len(rows), load_bound(problem), peak, capacity, result.status.value, result.seconds, result.method, exit_status
    )


def read_buffers(path: Path, capacity: int | None) -> tuple[list[dict[str, str]], PackingProblem]:
    """Rows and problem of a CSV file with columns id, lower, upper, size; a lifetime is [lower, upper)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read buffers from {path}: {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; the first line must name {','.join(COLUMNS)}")
    rows = list(reader)
    bodies: list[Body] = []
    for number, row in enumerate(rows, start=2):
        lower, upper, size = (_whole(path, number, row, c) for c in COLUMNS[1:])
        if upper <= lower or size < 0:
            raise InputError(
                f"{path}, line {number}: buffer '{row['id']}' lives in [{lower}, {upper}) with size {size}; "
                "it must end after it begins, and its size be 0 or more"
            )
        bodies.append(Body((Box(lower, upper, 0, size),)))
    try:
        return rows, PackingProblem(tuple(bodies), capacity, tuple(row["id"] for row in rows))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _whole(path: Path, number: int, row: dict[str, str], column: str) -> int:
    try:
        return int(row[column])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}, line {number}: {column} is {row[column]!r}, not a whole number") from error


def _write(path: Path, rows: list[dict[str, str]], offsets: tuple[int, ...]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0], "offset"] if rows else [*COLUMNS, "offset"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "offset": offset} for row, offset in zip(rows, offsets, strict=True))
    try:
        write_atomic(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
