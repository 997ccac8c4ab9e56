"""`tensorstow pack`: offsets for the buffers of a CSV file."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ir.errors import InputError
from .ir.paths import write_atomic
from .solvers.packing.banks import pack_banks
from .solvers.packing.banks_problem import BanksProblem
from .solvers.packing.loading import Progress
from .solvers.packing.problem import Body, Box, PackingProblem
from .solvers.packing.solve import load_bound, pack
from .solvers.result import Status

COLUMNS = ("id", "lower", "upper", "size")
LARGEST = 2**63 - 1
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
    detail: str = ""
    banks: tuple[int, ...] | None = None

    def facts(self) -> dict[str, Any]:
        """The JSON object of `pack --json`."""
        names = ("buffers", "load_bound", "peak", "capacity", "status", "seconds", "method")
        facts = {name: getattr(self, name) for name in names}
        return facts if self.banks is None else {**facts, "banks": list(self.banks)}


def pack_file(
    path: Path,
    *,
    capacity: int | None,
    time_limit_s: float,
    seed: int,
    output: Path | None,
    banks: int = 1,
    start: Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Pack the buffers of a CSV file; with `output`, write the same rows with a column `offset`.

    `start` is a CSV file with columns id and offset: an earlier packing, of which as much as possible is kept. With
    `banks` > 1 there are so many memories of `capacity` each; the output then has a column `bank` too.
    """
    rows, problem = read_buffers(path, capacity)
    if banks > 1:
        if start is not None:
            raise InputError(f"--start {start} is a packing of one bank, --banks asks for {banks}; give one of the two")
        return _pack_banks(rows, problem, banks, time_limit_s, seed, output)
    wished = None if start is None else _read_start(start, problem)
    result = pack(problem, time_limit_s=time_limit_s, seed=seed, start=wished, explained=True, progress=progress)
    if result.solution is not None and output is not None:
        _write(output, rows, {"offset": result.solution.offsets})
    peak = result.solution.peak if result.solution else None
    return Outcome(
        len(rows),
        load_bound(problem),
        peak,
        capacity,
        result.status.value,
        result.seconds,
        result.method,
        EXIT[result.status],
        _advice(result.status, result.detail, result.bound, capacity),
    )


def _advice(status: Status, detail: str, bound: float | int | None, capacity: int | None) -> str:
    """The detail, and what to do about it where no packing was found."""
    if status == Status.INFEASIBLE and bound is not None and capacity is not None and bound > capacity:
        return f"{detail}; give --capacity {bound} or more, or free one of them earlier"
    if status == Status.UNKNOWN:
        return f"{detail}; give a larger --time-limit or a larger --capacity"
    return detail


def _pack_banks(
    rows: list[dict[str, str]], problem: PackingProblem, banks: int, time_limit_s: float, seed: int, output: Path | None
) -> Outcome:
    capacity = problem.capacity
    split = BanksProblem(PackingProblem(problem.bodies, ids=problem.ids), (capacity,) * banks)
    result = pack_banks(split, time_limit_s=time_limit_s, seed=seed)
    peak, peaks = None, None
    if result.solution is not None:
        peak, peaks = max(result.solution.peaks), result.solution.peaks
        if output is not None:
            _write(output, rows, {"offset": result.solution.offsets, "bank": result.solution.banks})
    bound = int(result.bound or 0)
    status = result.status.value
    return Outcome(
        len(rows),
        bound,
        peak,
        capacity,
        status,
        result.seconds,
        result.method,
        EXIT[result.status],
        _advice(result.status, result.detail, None, capacity),
        peaks,
    )


def _read_start(path: Path, problem: PackingProblem) -> list[int | None]:
    """Offsets by id from a file that `pack -o` wrote; None for buffers that it does not name."""
    found: dict[str, int] = {}
    for number, row in enumerate(_read_rows(path, ("id", "offset")), start=2):
        offset = _whole(path, number, row, "offset")
        if offset < 0:
            raise InputError(f"{path}, line {number}: offset {offset} is below 0")
        if offset > LARGEST:
            raise InputError(
                f"{path}, line {number}: offset {offset} is beyond {LARGEST}, the largest 64-bit number; leave it out"
            )
        if row["id"] in found:
            raise InputError(f"{path}, line {number}: id '{row['id']}' has an offset already, {found[row['id']]}")
        found[row["id"]] = offset
    return [found.get(name) for name in problem.ids]


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file that has these columns, and others. Cells behind the last named column must be empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read buffers from {path}: {error}") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        names = list(reader.fieldnames or ())
        rows: list[dict[Any, Any]] = list(reader)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num + 1}: {error}; a cell with commas or line breaks goes between two quotes, "
            "and a quote inside of it is doubled"
        ) from error
    missing = [c for c in columns if c not in names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; the first line must name {','.join(columns)}")
    for number, row in enumerate(rows, start=2):
        beyond: list[str] = row.pop(None, [])
        if any(beyond):
            raise InputError(
                f"{path}, line {number}: {len(names) + len(beyond)} cells for the {len(names)} columns that the first "
                "line names; put a cell that has a comma between quotes"
            )
    return rows


def read_buffers(path: Path, capacity: int | None) -> tuple[list[dict[str, str]], PackingProblem]:
    """Rows and problem of a CSV file with columns id, lower, upper, size; a lifetime is [lower, upper)."""
    rows = _read_rows(path, COLUMNS)
    bodies: list[Body] = []
    for number, row in enumerate(rows, start=2):
        lower, upper, size = (_whole(path, number, row, c) for c in COLUMNS[1:])
        if upper <= lower or size < 0:
            raise InputError(
                f"{path}, line {number}: buffer '{row['id']}' lives in [{lower}, {upper}) with size {size}; "
                "it must end after it begins, and its size be 0 or more"
            )
        if max(abs(lower), abs(upper), size) > LARGEST:
            raise InputError(
                f"{path}, line {number}: buffer '{row['id']}' in [{lower}, {upper}) with size {size} is beyond "
                f"{LARGEST}, the largest 64-bit number; give sizes and times in a larger unit"
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


def _write(path: Path, rows: list[dict[str, str]], columns: dict[str, tuple[int, ...]]) -> None:
    text = io.StringIO()
    names = [name for name in (rows[0] if rows else COLUMNS) if name not in columns]
    writer = csv.DictWriter(text, [*names, *columns], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for i, row in enumerate(rows):
        writer.writerow({**row, **{name: values[i] for name, values in columns.items()}})
    try:
        write_atomic(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
