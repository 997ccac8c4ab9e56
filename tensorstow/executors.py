"""From a plan file to what executes it, and what the process that does so holds beside the plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .hosts import Progress, require_host, silent
from .ir.codec import digest, to_json
from .ir.errors import ExecutionError, InputError, PlanMismatchError, TensorstowError
from .ir.files import PlanFile, read_plan, write_plan
from .ir.paths import cache_dir, cache_scratch
from .ir.program import ModelSource, Program
from .needs import require_torch

if TYPE_CHECKING:
    from types import TracebackType

    from .runtime.passes import Stats
    from .runtime.profile import Profile


class Executor(Protocol):
    """What runs a plan: arrays by name to arrays by name. A context manager."""

    @property
    def stats(self) -> Stats:
        """Of the last pass."""
        ...

    @property
    def threads(self) -> int:
        """How many compute."""
        ...

    def load(self) -> int:
        """Bring what is resident into its place; the bytes read."""
        ...

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One pass."""
        ...

    def compute_only(self) -> float:
        """Seconds of a pass in which nothing moves."""
        ...

    def io_only(self) -> float:
        """Seconds of the transfers of a pass alone."""
        ...

    def profile(self, passes: int) -> Profile:
        """Times of operators and rates of lanes, as they are in real passes."""
        ...

    def close(self) -> None:
        """End the threads and give the memory back."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def open_executor(
    file: PlanFile, *, model: Path | None = None, threads: int | None = None, progress: Progress = silent
) -> Executor:
    """An executor for a plan file: the store opened or built, what runs it made; `load` fills its memory.

    `model` says where the model lies if it moved.
    """
    require_host(file.machine)
    if file.training is not None:
        raise InputError(
            "the plan is of a training step, which runs in a loop of yours: step = ts.apply(plan, module); loss = "
            "step(*batch)"
        )
    if file.module is not None:
        from .module_runs import open_module

        return open_module(file, model, threads=threads, progress=progress)
    from .runtime.onnx_executor import OnnxExecutor
    from .runtime.store import WeightStore

    program, source = _sources(file, model)
    identity = {"engine": program.engine, "files": to_json(source.files)}
    folder = cache_dir() / "stores" / digest([program.blobs, identity])[:32]
    store = WeightStore.open_or_build(
        program,
        identity=identity,
        folder=folder,
        progress=lambda done, total: progress("repacking weights", done / max(total, 1)),
    )
    return OnnxExecutor(file.plan, file.graph, program, store, file.machine, threads=threads)


def _sources(file: PlanFile, model: Path | None) -> tuple[Program, ModelSource]:
    """Program and source of a plan file, with the weights where they are now: at `model` if it moved; and with what
    the engine rearranged made again if it was removed from the cache."""
    program, source = file.program, file.source
    if program is None or source is None:
        raise InputError("the plan holds no program, so it can be shown but not run; plan the model itself")
    here = Path(source.path) if model is None else model
    paths = {b.path for b in program.blobs if b.path is not None}
    if model is None and all(Path(p).exists() for p in paths):
        return program, source
    if not here.exists():
        raise InputError(
            f"the model {here} {'is not there any more' if model is None else 'does not exist'}; say where it is with "
            f"--model, or plan again"
        )
    from .planner.onnx import lower_onnx, model_source

    again = lower_onnx(here, dims=source.dims).program
    for old, new in zip_longest(program.blobs, again.blobs):
        if old is None or new is None or replace(new, path=old.path, file_offset=old.file_offset) != old:
            name = next(b.blob for b in (old, new) if b is not None)
            raise PlanMismatchError(
                f"{here} is not the model that was planned: weight '{name}' differs in name, size or layout; "
                "plan it anew"
            )
    moved = model_source(here, source.dims) if model is not None else source
    return replace(program, blobs=again.blobs), moved


def read_sound(path: Path) -> PlanFile:
    """A plan file whose graph and machine are such as a plan can be made for, and whose plan speaks of them: who forges
    one can put anything there. Otherwise the error that says what is wrong; whether the plan is right, too, is the
    checker's matter."""
    from .ir.check import check_shape
    from .planner.validate import validate

    file = read_plan(path)
    try:
        validate(file.graph, file.machine)
    except InputError as error:
        raise PlanMismatchError(f"{path}: no plan can be for what this file holds: {error}") from error
    violations = check_shape(file.plan, file.graph, file.machine)
    if violations:
        raise PlanMismatchError(
            f"{path}: this is no plan for what the file holds: {violations[0].message}; plan the model again"
        )
    return file


def read_runnable(path: Path) -> PlanFile:
    """A plan file that this box can execute; otherwise the error that says why not."""
    from .ir.check import check

    file = read_sound(path)
    if file.module is not None or file.training is not None:
        require_torch(f"{path}: a plan of a PyTorch module")
    require_host(file.machine)
    violations = check(file.plan, file.graph, file.machine)
    if violations:
        raise PlanMismatchError(
            f"{path}: the plan cannot be run as it is: {violations[0].message} ({len(violations)} things are wrong; "
            "`tensorstow show` lists them); plan the model again"
        )
    return file


def require_room(file: PlanFile, root: Path = Path("/")) -> None:
    """Refuse, with ExecutionError, to run a plan in this process where it may not have what the plan promises to take
    at most: by a limit of its memory cgroup, or since too little is available beside what it has. A plan whose fixed
    part is not known promises nothing of the process. `root` is where /proc and /sys are looked for."""
    from .runtime.memory import available_nbytes, current_rss_nbytes, limit_nbytes

    if not file.fixed_nbytes:
        return
    promised, limit = file.promised_peak_nbytes, limit_nbytes(root)
    held, available = current_rss_nbytes(), available_nbytes(root)
    if limit is not None and limit < promised:
        room, why = limit, f"its memory cgroup allows {limit}"
    elif held + available < promised:
        room, why = held + available, f"it has {held}, and {available} more are available"
    else:
        return
    raise ExecutionError(
        f"the process that runs this plan takes up to {promised} bytes ({file.fixed_nbytes} of them beside what the "
        f"plan manages); {why}; plan with --process-limit {room}, or give it {promised - room} bytes more"
    )


def measure_fixed(file: PlanFile) -> int:
    """Peak resident bytes of the process that `tensorstow run` would be, less what the plan manages of them.

    Measured in a process of its own, which does as `run` does, on zeros for weights; where a kernel dies of those, in
    one that stops before the first pass.
    """
    with cache_scratch() as folder:
        path = folder / "plan.json"
        write_plan(file, path)
        command = [sys.executable, "-m", "tensorstow", "run", str(path), "--json", "--fixed"]
        done = subprocess.run([*command, "rehearsed"], capture_output=True, text=True, check=False)
        if done.returncode < 0:  # killed: an integer division by zero, or too little memory
            done = subprocess.run([*command, "set-up"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TensorstowError(f"measuring the process's fixed part failed:\n{done.stderr.strip()}")
    return int(json.loads(done.stdout)["fixed_nbytes"])
