"""Is the planned run right? Bits against the same executor without a budget, values against ONNX Runtime as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .executors import open_executor
from .hosts import Progress
from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.operators import is_random
from .ir.sizes import format_size

Arrays = Mapping[str, NDArray[Any]]

RELATIVE_TOLERANCE = 1e-3
"""Allowed error beside ONNX Runtime, relative to the largest magnitude of an output: its fusions round differently."""


@dataclass(frozen=True, slots=True)
class Verification:
    """`bit_identical`: to our executor with everything resident and nothing split. `max_abs_err`: the largest
    difference from the whole-model session named in `reference`, infinite (in JSON null) where there is no number for
    it; `within_tolerance` judges it."""

    bit_identical: bool
    max_abs_err: float
    within_tolerance: bool
    reference: str

    def facts(self) -> dict[str, Any]:
        """As `run --json` has it."""
        return {
            "bit_identical": self.bit_identical,
            "max_abs_err": self.max_abs_err if isfinite(self.max_abs_err) else None,
            "within_tolerance": self.within_tolerance,
            "tolerance": RELATIVE_TOLERANCE,
            "reference": self.reference,
        }


def require_memory(file: PlanFile) -> None:
    """Refuse to verify, before any work, where the whole model does not fit the memory at hand."""
    from .runtime.memory import available_nbytes

    needed, available = file.graph.nbytes, available_nbytes()
    if needed > available:
        raise InputError(
            f"--verify runs the model once without a budget: that takes {format_size(needed)}, and "
            f"{format_size(available)} are available; verify on a larger box or outside the memory limit"
        )


def verify_outputs(
    file: PlanFile, model: Path | None, inputs: Arrays, outputs: Arrays, *, threads: int | None, progress: Progress
) -> Verification:
    """Compare `outputs` with both references on the same `inputs`; where the model draws random numbers, those of a
    first pass, as the references' are."""
    if file.module is not None:
        return _verify_module(file, model, inputs, outputs)
    import onnxruntime

    draws = any(is_random(op) for op in file.graph.operators)
    if draws:  # later passes draw other numbers
        with open_executor(file, model=model, threads=threads, progress=progress) as executor:
            outputs = executor.run(inputs)
    exact = _unconstrained(file, model, inputs, threads, progress)
    identical = set(exact) == set(outputs) and all(_same_bits(exact[n], outputs[n]) for n in exact)
    whole = _whole_session(file, model, inputs)
    error, within = 0.0, True
    for name, expected in whole.items():
        difference, allowed = _difference(expected, outputs[name])
        error, within = max(error, difference), within and difference <= allowed
    reference = f"whole-model ONNX Runtime {onnxruntime.__version__}, default options"
    if draws:
        reference += "; compared are first passes, for the model draws random numbers"
    return Verification(identical, error, within, reference)


def _verify_module(file: PlanFile, model: Path | None, inputs: Arrays, outputs: Arrays) -> Verification:
    """Against the module itself with all its weights in memory: the same bits are asked for, and nothing else."""
    import torch

    from .module_alone import unconstrained

    exact = unconstrained(file, model, inputs)
    identical = set(exact) == set(outputs) and all(_same_bits(exact[n], outputs[n]) for n in exact)
    differences = [_difference(exact[n], outputs[n])[0] for n in set(exact) & set(outputs)]
    return Verification(
        identical, max(differences, default=0.0), identical, f"eager PyTorch {torch.__version__}, all in memory"
    )


def _unconstrained(
    file: PlanFile, model: Path | None, inputs: Arrays, threads: int | None, progress: Progress
) -> dict[str, NDArray[Any]]:
    from .planner.build import plan_graph
    from .planner.onnx import lower_onnx

    source = file.source
    if source is None:
        raise InputError("the plan names no model, so there is nothing to verify against")
    lowered = lower_onnx(model or Path(source.path), dims=source.dims)
    tiers = tuple(replace(t, capacity_nbytes=1 << 60, reserve_nbytes=0) for t in file.machine.tiers)
    roomy = replace(file.machine, tiers=tiers)
    plan = plan_graph(lowered.graph, roomy, strategy="resident")
    reference = PlanFile(plan, lowered.graph, roomy, lowered.program, source, 0)
    with open_executor(reference, model=model, threads=threads, progress=progress) as executor:
        executor.load()
        return executor.run(inputs)


def _whole_session(file: PlanFile, model: Path | None, inputs: Arrays) -> dict[str, NDArray[Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.use_per_session_threads = False
    path = model or Path(file.source.path if file.source else "")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    outputs = cast("list[NDArray[Any]]", session.run(names, dict(inputs)))
    return dict(zip(names, outputs, strict=True))


def _same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype.kind == "O":  # text
            return a.tolist() == b.tolist()
        return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):  # of a sequence each tensor
        left, right = cast("Sequence[Any]", a), cast("Sequence[Any]", b)
        return len(left) == len(right) and all(map(_same_bits, left, right))
    if isinstance(a, dict) and isinstance(b, dict):
        here, there = cast("dict[Any, Any]", a), cast("dict[Any, Any]", b)
        return here.keys() == there.keys() and all(_same_bits(here[k], there[k]) for k in here)
    return type(a) is type(b) and repr(a) == repr(b)


def _difference(expected: Any, found: Any) -> tuple[float, float]:
    """Largest absolute difference, and the largest allowed one; equal infinities and NaNs in equal places are equal."""
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        left, right = cast("Sequence[Any]", expected), cast("Sequence[Any]", found)
        if len(left) != len(right):
            return inf, 0.0
        pairs = [_difference(a, b) for a, b in zip(left, right, strict=True)]
        return max((d for d, _ in pairs), default=0.0), max((allowed for _, allowed in pairs), default=0.0)
    if isinstance(expected, dict) and isinstance(found, dict):  # a map's values, by key
        here, there = cast("dict[Any, Any]", expected), cast("dict[Any, Any]", found)
        if here.keys() != there.keys():
            return inf, 0.0
        return _difference(np.asarray(list(here.values())), np.asarray([there[k] for k in here]))
    if not isinstance(expected, np.ndarray) or not _real(expected.dtype) or expected.size == 0:
        return (0.0 if _same_bits(expected, found) else inf), 0.0
    a, b = expected.astype(np.float64), np.asarray(found).astype(np.float64)
    if a.shape != b.shape:
        return inf, 0.0
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a)
    largest = float(np.abs(a[finite]).max(initial=0.0))
    if equal.all():
        return 0.0, RELATIVE_TOLERANCE * largest
    difference = np.abs(a - b)[~equal]
    return float(np.where(np.isnan(difference), inf, difference).max()), RELATIVE_TOLERANCE * largest


def _real(dtype: np.dtype[Any]) -> bool:
    """Whether its elements are real numbers; bfloat16 and other types that NumPy does not know itself are of kind V."""
    return dtype.kind in "fiub" or (dtype.kind == "V" and dtype.names is None and np.can_cast(dtype, np.float64))
