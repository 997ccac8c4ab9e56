"""The main job, step by step: model -> graph -> plan -> file, and file -> executor -> outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from .ir.codec import digest, to_json
from .ir.errors import InfeasibleError, InputError, PlanMismatchError, TensorstowError
from .ir.files import PlanFile, read_plan, write_plan
from .ir.machine import Machine, TierKind
from .ir.paths import cache_dir
from .ir.profiles import load_machine
from .ir.program import ModelSource, Program
from .ir.sizes import format_size

if TYPE_CHECKING:
    from .planner.compare import Comparison, Trials
    from .planner.onnx import Lowered
    from .runtime.onnx_executor import OnnxExecutor

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan. `profile` measures each operator on this box instead of using formulas."""

    model: Path
    machine: Machine
    dims: Mapping[str, int]
    mode: str = "inference"
    profile: bool = False
    time_limit_s: float = 20.0
    seed: int = 0


def silent(what: str, share: float) -> None:
    """Progress that nobody watches."""
    del what, share


def get_machine(name: str, *, progress: Progress = silent) -> Machine:
    """A machine by name or TOML file; 'host' is measured on first use, and again when the box has changed."""
    if name != "host":
        return load_machine(name)
    from .ir.profiles import write_machine
    from .runtime.calibrate import calibrate, host_fingerprint, host_profile_path

    path = host_profile_path()
    if path.exists():
        machine = load_machine("host")
        if machine.fingerprint == host_fingerprint():
            return machine
    machine = calibrate(progress=progress, quick=True)
    write_machine(machine, path)
    return machine


PROFILED_PASSES = 5
PROFILED_NBYTES = 16 << 20
"""A link's rate is taken from a profile when a pass moves at least this much; less says little."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph and program to plan, the model they came from, and the machine with the rates to plan for."""

    lowered: Lowered
    source: ModelSource
    machine: Machine


def prepare(request: Request, progress: Progress = silent) -> Prepared:
    """Lower the model, split its large weights for the machine's budget, and measure it if asked to."""
    from .planner.onnx import lower_onnx, model_source
    from .planner.tile import tile

    if request.mode != "inference":
        raise InputError(f"mode '{request.mode}' is not available for an ONNX file; it holds inference only")
    progress(f"lowering {request.model.name}", 0.0)
    lowered = lower_onnx(request.model, dims=request.dims)
    source = model_source(request.model, request.dims)
    prepared = Prepared(tile(lowered, request.machine), source, request.machine)
    return _profiled(prepared, request, progress) if request.profile else prepared


def _profiled(prepared: Prepared, request: Request, progress: Progress) -> Prepared:
    """Plan by formulas, run that plan, and take operators and links as they were then: beside one another."""
    from .planner.build import plan_graph

    _require_host(request.machine)
    graph, machine = prepared.lowered.graph, prepared.machine
    progress("planning by formulas", 0.0)
    plan = plan_graph(graph, machine, time_limit_s=request.time_limit_s, seed=request.seed)
    file = PlanFile(plan, graph, machine, prepared.lowered.program, prepared.source, 0)
    with open_executor(file, progress=progress) as executor:
        progress(f"measuring {PROFILED_PASSES} passes", 0.0)
        executor.load()
        profile = executor.profile(PROFILED_PASSES)
    operators = tuple(replace(op, measured_ns=profile.operator_ns.get(op.id)) for op in graph.operators)
    moved = plan.certificate.moved_nbytes
    links = tuple(
        replace(k, bytes_per_s=profile.lane_bytes_per_s[k.lane], latency_s=0.0, source="profile of this model")
        if k.lane in profile.lane_bytes_per_s and moved.get(k.name, 0) >= PROFILED_NBYTES
        else k
        for k in machine.links
    )
    lowered = replace(prepared.lowered, graph=replace(graph, operators=operators))
    return Prepared(lowered, prepared.source, replace(machine, links=links))


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan file, and the seconds that lowering, solving and checking took."""

    file: PlanFile
    solve_s: float


def make_plan(request: Request, *, strategy: str = "stow", progress: Progress = silent) -> Planned:
    """Plan a model: the whole path from an ONNX file to a certified plan file."""
    from .planner.build import plan_graph

    began = time.perf_counter()
    try:
        prepared = prepare(request, progress)
        progress(f"planning {len(prepared.lowered.graph.operators)} operators", 0.0)
        plan = plan_graph(
            prepared.lowered.graph,
            prepared.machine,
            strategy=strategy,
            mode=request.mode,
            time_limit_s=request.time_limit_s,
            seed=request.seed,
        )
    except InfeasibleError as error:
        raise _with_smallest_budget(error, request, progress) from error
    lowered = prepared.lowered
    file = PlanFile(plan, lowered.graph, prepared.machine, lowered.program, prepared.source, 0)
    solve_s = time.perf_counter() - began
    if not runs_here(request.machine):
        return Planned(file, solve_s)
    progress("measuring the process's fixed part", 0.0)
    return Planned(replace(file, fixed_nbytes=measure_fixed(file)), solve_s)


def limit_process(request: Request, limit_nbytes: int, strategy: str, progress: Progress = silent) -> Planned:
    """A plan whose promised process peak stays within `limit_nbytes`: plan, measure the fixed part, plan again inside
    what it leaves, until the sum holds (the fixed part depends a little on the plan)."""
    _require_host(request.machine)
    tier = request.machine.units[0].tier
    fixed = 0
    for _ in range(4):
        budget = limit_nbytes - fixed
        if budget <= request.machine.tier[tier].reserve_nbytes:
            raise InfeasibleError(
                f"the process's fixed part takes {format_size(fixed)} of the limit of {format_size(limit_nbytes)}; "
                "nothing is left for the model: raise --process-limit",
                smallest_nbytes=fixed,
            )
        machine = request.machine.with_capacity({tier: budget})
        try:
            planned = make_plan(replace(request, machine=machine), strategy=strategy, progress=progress)
        except InfeasibleError as error:
            raise _with_fixed_part(error, fixed, limit_nbytes) from error
        if planned.file.promised_peak_nbytes <= limit_nbytes:
            return planned
        fixed = max(fixed + 4096, planned.file.fixed_nbytes)
    raise InputError(f"the fixed part did not settle within a limit of {format_size(limit_nbytes)}; raise it a little")


def _with_fixed_part(error: InfeasibleError, fixed: int, limit_nbytes: int) -> InfeasibleError:
    """The same error in terms of the process: what it must be allowed in all."""
    text = str(error).split("; the smallest feasible")[0]
    if error.smallest_nbytes is None:
        return error
    if not fixed:
        return InfeasibleError(
            f"{text}; a process limit of {format_size(limit_nbytes)} must hold at least {error.smallest_nbytes} bytes "
            "for the model, and interpreter and libraries beside them: raise --process-limit",
            smallest_nbytes=error.smallest_nbytes,
        )
    smallest = fixed + error.smallest_nbytes
    return InfeasibleError(
        f"{text}, since the process's fixed part takes {format_size(fixed)} of {format_size(limit_nbytes)}; give it "
        f"--process-limit {smallest}",
        smallest_nbytes=smallest,
    )


def make_comparison(
    request: Request, names: tuple[str, ...], progress: Progress = silent, *, trials: Trials | None = None
) -> Comparison:
    """Every named strategy on one model, scored by one simulator against one bound; `trials` says how often, and in
    how many processes."""
    from .planner.compare import compare

    try:
        prepared = prepare(request, progress)
        progress(f"comparing {len(names)} strategies", 0.0)
        return compare(
            prepared.lowered.graph,
            prepared.machine,
            names,
            mode=request.mode,
            time_limit_s=request.time_limit_s,
            seed=request.seed,
            trials=trials,
            progress=progress,
        )
    except InfeasibleError as error:
        raise _with_smallest_budget(error, request, progress) from error


def _with_smallest_budget(error: InfeasibleError, request: Request, progress: Progress) -> InfeasibleError:
    """The same error, with the smallest budget that works when weights are split as finely as that budget asks."""
    from .planner.onnx import lower_onnx
    from .planner.tile import smallest_budget

    progress("looking for the smallest feasible budget", 0.0)
    tier = request.machine.units[0].tier
    smallest = smallest_budget(lower_onnx(request.model, dims=request.dims), request.machine)
    text = str(error).split("; the smallest feasible")[0]
    return InfeasibleError(
        f"{text}; the smallest feasible budget is {format_size(smallest)}: --tier {tier}={smallest}",
        smallest_nbytes=smallest,
    )


def runs_here(machine: Machine) -> bool:
    """Whether plans for `machine` can be executed on this box: it computes from DRAM, and was measured here."""
    from .runtime.calibrate import host_fingerprint

    computes_from = machine.tier[machine.units[0].tier].kind
    return computes_from is TierKind.DRAM and machine.fingerprint == host_fingerprint()


def _require_host(machine: Machine) -> None:
    if not runs_here(machine):
        raise PlanMismatchError(
            f"machine '{machine.name}' (fingerprint {machine.fingerprint or 'none: a published profile'}) is not this "
            "box; plans for it can be shown and compared here, and run there. For this box plan with --machine host"
        )


def measure_fixed(file: PlanFile) -> int:
    """Peak resident bytes of the process that `tensorstow run` would be, less what the plan manages of them.

    Measured in a process of its own, which does as `run` does, on zeros for weights; where a kernel dies of those, in
    one that stops before the first pass.
    """
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        path = Path(folder) / "plan.json"
        write_plan(file, path)
        command = [sys.executable, "-m", "tensorstow", "run", str(path), "--json", "--fixed"]
        done = subprocess.run([*command, "rehearsed"], capture_output=True, text=True, check=False)
        if done.returncode < 0:  # killed: an integer division by zero, or too little memory
            done = subprocess.run([*command, "set-up"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TensorstowError(f"measuring the process's fixed part failed:\n{done.stderr.strip()}")
    return int(json.loads(done.stdout)["fixed_nbytes"])


def open_executor(
    file: PlanFile, *, model: Path | None = None, threads: int | None = None, progress: Progress = silent
) -> OnnxExecutor:
    """An executor for a plan file: the store opened or built, sessions and bindings made, arena filled by `load`."""
    from .runtime.onnx_executor import OnnxExecutor
    from .runtime.store import WeightStore

    _require_host(file.machine)
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


def read_runnable(path: Path) -> PlanFile:
    """A plan file that this box can execute; otherwise the error that says why not."""
    from .ir.check import check

    file = read_plan(path)
    _require_host(file.machine)
    violations = check(file.plan, file.graph, file.machine)
    if violations:
        raise PlanMismatchError(
            f"{path}: the plan cannot be run as it is: {violations[0].message} ({len(violations)} things are wrong; "
            "`tensorstow show` lists them); plan the model again"
        )
    return file
