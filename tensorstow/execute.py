"""Running a plan file: inputs, passes, controls, peaks, verification; predicted beside measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .executors import Executor, open_executor, read_runnable, require_room
from .hosts import Progress, silent
from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.npz import NO_ARCHIVE, read_npz
from .ir.paths import atomic_file

if TYPE_CHECKING:
    from .runtime.trace import Event
    from .verify import Verification

Arrays = dict[str, NDArray[Any]]

CONTROLS = 3
"""Passes of each control, compute alone and transfers alone, spread over the run; the median counts."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run measured, beside what its plan promised. Seconds are per pass; bytes are those of the passes alone.

    `compute_s` and `io_s` are the controls; of a training step the first is the plain step, where it was verified, and
    there is no second. `over_limit` is how many times the slower control a pass takes: the median over blocks of passes
    of what each makes with the controls behind it; None where experts are read beside them. `peak_rss_nbytes` is the
    process's peak until the last control, `passes_peak_nbytes` until the first one: what is promised is of passes.
    `resident_nbytes` is what the process had then, by what lay there.
    """

    file: PlanFile
    load_s: float
    load_nbytes: int
    measured_s: tuple[float, ...]
    compute_s: float | None
    io_s: float | None
    peak_rss_nbytes: int
    read_nbytes: int
    written_nbytes: int
    verified: Verification | None
    events: tuple[Event, ...] = ()
    """Of one more pass, where a trace was asked for."""
    experts: dict[str, Any] | None = None
    """Of a plan that caches experts: what these passes hit, missed and read, beside the predicted hit rate."""
    over_limit: float | None = None
    passes_peak_nbytes: int | None = None
    resident_nbytes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def median_s(self) -> float:
        """Median pass."""
        return statistics.median(self.measured_s)

    def facts(self) -> dict[str, Any]:
        """The JSON object of `run --json`."""
        plan = self.file.plan
        verified = self.verified
        return {
            "predicted_s": plan.certificate.simulated_s,
            "measured_s": list(self.measured_s),
            "median_s": self.median_s,
            "bound_s": plan.certificate.bound_s,
            "load_s": self.load_s,
            "load_nbytes": self.load_nbytes,
            "predicted_peak_nbytes": plan.certificate.peak_nbytes,
            "arena_nbytes": plan.arena_nbytes,
            "fixed_nbytes": self.file.fixed_nbytes,
            "promised_peak_nbytes": self.file.promised_peak_nbytes,
            "peak_rss_nbytes": self.peak_rss_nbytes,
            "passes_peak_nbytes": self.passes_peak_nbytes,
            "resident_nbytes": self.resident_nbytes,
            "read_nbytes": self.read_nbytes,
            "written_nbytes": self.written_nbytes,
            "limit_s": {"compute": self.compute_s, "io": self.io_s},
            "over_limit": self.over_limit,
            "verified": None if verified is None else verified.facts(),
            **({} if self.experts is None else {"experts": self.experts}),
        }


def run_plan(
    plan_path: Path,
    *,
    model: Path | None = None,
    input_path: Path | None = None,
    output_path: Path | None = None,
    repeat: int = 5,
    verify: bool = False,
    threads: int | None = None,
    trace: bool = False,
    routing: Path | None = None,
    progress: Progress = silent,
) -> RunReport:
    """Execute a plan file `repeat` times and measure it, then the controls, then verify if asked to. `routing` is where
    to write what the routers chose in these passes."""
    from .moe_recording import RoutingFile
    from .moe_report import run_facts
    from .runtime.memory import peak_rss_nbytes

    file = read_runnable(plan_path)
    require_room(file)
    recorded = None if routing is None else RoutingFile(file, routing)
    if file.training is not None:
        return _run_training(file, model, input_path, output_path, repeat, verify, threads, trace, progress)
    if verify:
        from .verify import require_memory

        require_memory(file)
    with open_executor(file, model=model, threads=threads, progress=progress) as executor:
        inputs = read_inputs(input_path) if input_path else random_inputs(file)
        if recorded is not None:
            recorded.begin(executor)
        measured = _measure(executor, inputs, repeat, progress)
        if recorded is not None:
            recorded.write()
        experts = run_facts(file, executor, repeat)
        peak = peak_rss_nbytes()
        events: tuple[Event, ...] = ()
        if trace:
            progress("tracing a pass", 0.0)
            executor.load()
            executor.profile(1)
            events = executor.stats.events
    if output_path is not None:
        write_outputs(output_path, measured.outputs)
    verified = None
    if verify:
        from .verify import verify_outputs

        progress("verifying", 0.0)
        verified = verify_outputs(file, model, inputs, measured.outputs, threads=threads, progress=progress)
    return RunReport(
        file=file,
        load_s=measured.load_s,
        load_nbytes=measured.load_nbytes,
        measured_s=tuple(measured.passes_s),
        compute_s=statistics.median(measured.compute_s),
        io_s=statistics.median(measured.io_s),
        peak_rss_nbytes=peak,
        read_nbytes=measured.read_nbytes,
        written_nbytes=measured.written_nbytes,
        verified=verified,
        events=events,
        experts=experts,
        over_limit=statistics.median(measured.over_limit) if measured.over_limit and experts is None else None,
        passes_peak_nbytes=measured.peak_nbytes,
        resident_nbytes=measured.resident_nbytes,
    )


def _run_training(
    file: PlanFile,
    model: Path | None,
    input_path: Path | None,
    output_path: Path | None,
    repeat: int,
    verify: bool,
    threads: int | None,
    trace: bool,
    progress: Progress,
) -> RunReport:
    from .training_runs import run_training

    for given, option in ((input_path, "--input"), (output_path, "--output"), (trace or None, "--trace")):
        if given is not None:
            raise InputError(f"{option} is for inference; a training step runs on the batch that it was planned with")
    return run_training(file, model=model, repeat=repeat, verify=verify, threads=threads, progress=progress)


@dataclass(slots=True)
class _Measured:
    """What accumulates over the blocks of a run."""

    load_s: float = 0.0
    load_nbytes: int = 0
    passes_s: list[float] = field(default_factory=list[float])
    compute_s: list[float] = field(default_factory=list[float])
    io_s: list[float] = field(default_factory=list[float])
    over_limit: list[float] = field(default_factory=list[float])
    peak_nbytes: int = 0
    resident_nbytes: dict[str, int] = field(default_factory=dict[str, int])
    read_nbytes: int = 0
    written_nbytes: int = 0
    outputs: Arrays = field(default_factory=dict[str, NDArray[Any]])


def _measure(executor: Executor, inputs: Arrays, repeat: int, progress: Progress) -> _Measured:
    """Passes in blocks, each followed by both controls: what the box does meanwhile meets all three alike.

    The first pass behind a fill is not counted: no lane has begun ahead of it, as each pass does for the next one.
    """
    from .moe_recording import running
    from .runtime.memory import peak_rss_nbytes, resident_nbytes

    found = _Measured()
    blocks = min(CONTROLS, repeat)
    for block in range(blocks):
        progress("filling the arena", 0.0)
        began = time.perf_counter()
        nbytes = executor.load()
        if not block:
            found.load_s, found.load_nbytes = time.perf_counter() - began, nbytes
        if running(executor) is None:  # else what experts did is counted from the very first pass, which stands apart
            progress("running", block / blocks)
            found.outputs = {}  # two passes' outputs at once would be memory that nobody needs
            found.outputs = executor.run(inputs)
        passes = range(block * repeat // blocks, (block + 1) * repeat // blocks)
        for number in passes:
            progress("running", number / repeat)
            found.outputs = {}
            found.outputs = executor.run(inputs)
            found.passes_s.append(executor.stats.seconds)
            found.read_nbytes += executor.stats.read_nbytes
            found.written_nbytes += executor.stats.written_nbytes
        if not block:
            found.peak_nbytes, found.resident_nbytes = peak_rss_nbytes(), resident_nbytes()
        progress("running the controls", 0.0)
        found.compute_s.append(executor.compute_only())
        found.io_s.append(executor.io_only())
        limit_s = max(found.compute_s[-1], found.io_s[-1])
        if limit_s > 0:
            found.over_limit.append(statistics.median(found.passes_s[-len(passes) :]) / limit_s)
    return found


def read_inputs(path: Path) -> Arrays:
    """Arrays by input name from an .npz file. Raises InputError for what is none, or is longer than memory has room."""
    from .runtime.memory import available_nbytes

    try:
        read = read_npz(path, most_nbytes=available_nbytes())
        if read is None:
            raise InputError(f"{path} holds one array without a name, not an .npz; write one with np.savez")
        return read[0]
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot read inputs from {path}: {reason}; it must be an .npz of arrays by name") from error
    except NO_ARCHIVE as error:
        raise InputError(f"cannot read inputs from {path}: {error}; it must be an .npz of arrays by name") from error


def random_inputs(file: PlanFile, seed: int = 0) -> Arrays:
    """Inputs of the planned shapes: normal numbers for floats, 0 and 1 for whole numbers and booleans."""
    if file.module is not None:
        return {}  # those that the module was planned with
    program = file.program
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for name, tensor_id in zip(program.input_names if program else (), file.graph.inputs, strict=True):
        tensor = file.graph.tensor[tensor_id]
        if tensor.shape is None:
            raise InputError(f"input '{name}' has no fixed type or shape; give it with --input X.npz")
        dtype = np.dtype(tensor.dtype) if tensor.dtype in np.sctypeDict or tensor.dtype == "bool" else None
        if dtype is None:
            raise InputError(f"input '{name}' has dtype {tensor.dtype}, which numpy cannot make; give --input X.npz")
        if dtype.kind in "iub":
            arrays[name] = generator.integers(0, 2, tensor.shape).astype(dtype)
        else:
            arrays[name] = generator.standard_normal(tensor.shape).astype(dtype)
    return arrays


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Write outputs by name to an .npz file, whole or not at all. Raises InputError for what such a file does not hold,
    sequences and maps."""
    arrays = {name: _storable(name, value) for name, value in outputs.items()}
    try:
        with atomic_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise InputError(f"cannot write the outputs to {path}: {error.strerror}") from error


def _storable(name: str, value: object) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"output '{name}' is a {type(value).__name__} and no array, which an .npz file does not hold; leave out "
            "--output, or run the plan from Python"
        )
    array: NDArray[Any] = value
    return array.astype(np.str_) if array.dtype.kind == "O" else array  # text
