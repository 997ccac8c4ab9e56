"""One node test of the onnx package through plain ONNX Runtime and through our path; a process for many of them.

`python -m bench.conformance_case CASES RESULTS FIRST STEP` runs every STEP-th case of the pickled list CASES from
number FIRST on, and appends what it finds to RESULTS, a JSON object a line, as soon as it is known: where a kernel
kills the process, the lines before it remain.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.backend.test.runner import Runner

from tensorstow.ir.errors import InfeasibleError, TensorstowError, TimeLimitError
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import find_bound, plan_graph, run_strategy
from tensorstow.planner.instance import make_instance
from tensorstow.planner.onnx import Lowered, lower_onnx
from tensorstow.planner.onnx.session import options
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort
from tensorstow.planner.tile import smallest_budget, tile
from tensorstow.runtime.kernels import use_threads
from tensorstow.runtime.onnx_executor import OnnxExecutor
from tensorstow.runtime.store import WeightStore

PASSES = 2
LIMIT_S = 120.0  # a case that takes longer hangs

_PLENTY = 1 << 36
_MACHINE = Machine(
    "conformance",
    (Tier("dram", TierKind.DRAM, _PLENTY), Tier("ssd", TierKind.SSD, 1 << 40, alignment=4096)),
    (Link("ssd", "dram", 1e9), Link("dram", "ssd", 1e9)),
    (Unit("cpu", "dram", (("float32", 1e11),), 1e10, launch_s=5e-6),),
)

# Any right plan does here: no time is spent on a faster one.
_ANY_PLAN = Stow(search_share=0.005)
_EFFORT = Effort(time_limit_s=0.5, seed=0)

Array = np.ndarray[Any, Any]
Values = list[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A test of the onnx package: a serialised model, its inputs, and what it should make of them."""

    name: str
    model: bytes
    inputs: tuple[Any, ...]
    expected: tuple[Any, ...]
    rtol: float
    atol: float


def run_case(case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    """Facts about `case`, each when it is known; its files go to `folder`.

    `plain`, `free` and `tight` are '' where ONNX Runtime by itself, our path with plenty of memory, and our path in
    the smallest budget pass, else what went wrong. `random` cases have no bits to compare. `tight_nbytes` is the budget
    that was enough, `smallest_nbytes` what the largest working set alone takes.
    """
    feeds = _feeds(case)
    expected = [_array(v) for v in case.expected]
    default = ort.SessionOptions()
    default.log_severity_level, default.use_per_session_threads = 4, False
    try:
        (found,) = _plain(case, feeds, default, 1)
        _require_similar(case, expected, found)
    except Exception as error:  # noqa: BLE001  its exceptions share no other base; the case is then not one of ours
        yield {"plain": _reason(error)}
        return
    yield {"plain": ""}
    # The bits that must come out, unless another session computes others: then the case draws random numbers.
    try:
        exact = _plain(case, feeds, options(optimise=True), PASSES)
        again = _plain(case, feeds, options(optimise=True), PASSES)
    except Exception as error:  # noqa: BLE001  as above; what passes with prepacking should pass without
        yield {"free": _reason(error), "tight": _reason(error)}
        return
    random = not all(map(_same_bits, exact, again))
    yield {"random": random}
    (folder / "model.onnx").write_bytes(case.model)
    yield _through_us(case, feeds, None if random else exact, folder, tight=False)
    yield _through_us(case, feeds, None if random else exact, folder, tight=True)


def _through_us(
    case: Case, feeds: Mapping[str, Any], exact: list[Values] | None, folder: Path, *, tight: bool
) -> dict[str, Any]:
    """What our path makes of the case: the values must be as expected, the bits, where there are any, as in `exact`."""
    key = "tight" if tight else "free"
    expected = [_array(v) for v in case.expected]
    try:
        lowered = lower_onnx(folder / "model.onnx", dims=_dims(case, feeds))
        plan, lowered, sizes = _plan(lowered, tight=tight)
        for number, found in enumerate(_ours(plan, lowered, feeds, folder / key)):
            _require_similar(case, expected, found, values=exact is not None)
            if exact is not None and not _same_bits(exact[number], found):
                raise AssertionError(f"pass {number + 1}: the bits are not those of ONNX Runtime")
    except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
        return {key: _reason(error)}
    return {key: "", **sizes}


def _plan(lowered: Lowered, *, tight: bool) -> tuple[Plan, Lowered, dict[str, int]]:
    """A plan with plenty of memory, or in the smallest budget for which there is one, weights split for it.

    `smallest_nbytes` is the smallest budget that the largest working set allows; addresses may take more.
    """
    if not tight:
        return plan_graph(lowered.graph, _MACHINE, strategy="resident"), lowered, {}
    smallest = budget = max(smallest_budget(lowered, _MACHINE), 1)
    while True:
        machine = _MACHINE.with_capacity({"dram": budget})
        tiled = tile(lowered, machine)
        try:
            instance = make_instance(tiled.graph, machine)
            bound = find_bound(instance, time_limit_s=_EFFORT.time_limit_s)
            plan = run_strategy(_ANY_PLAN, instance, bound, _EFFORT)
        except (InfeasibleError, TimeLimitError) as error:
            if budget > smallest + sum(-(-s.nbytes // 4096) * 4096 for s in tiled.graph.storages):
                raise  # everything fits in there, side by side
            stated = error.smallest_nbytes if isinstance(error, InfeasibleError) else None
            budget = max(budget + max(smallest // 8, 64), stated or 0)
        else:
            return plan, tiled, {"smallest_nbytes": smallest, "tight_nbytes": budget}


def _ours(plan: Plan, lowered: Lowered, feeds: Mapping[str, Any], folder: Path) -> list[Values]:
    identity: dict[str, Any] = {"engine": lowered.program.engine, "files": []}
    with (
        WeightStore.open_or_build(lowered.program, identity=identity, folder=folder) as store,
        OnnxExecutor(plan, lowered.graph, lowered.program, store, _MACHINE, scratch=folder.parent) as executor,
    ):
        executor.load()
        return [list(executor.run(feeds).values()) for _ in range(PASSES)]


def _plain(case: Case, feeds: Mapping[str, Any], settings: Any, passes: int) -> list[Values]:
    """What a whole-model session makes of the case, pass after pass."""
    model = onnx.load_model_from_string(case.model)
    session: Any = ort.InferenceSession(case.model, settings, providers=["CPUExecutionProvider"])
    ports = (*model.graph.input, *model.graph.output)
    if not all(p.type.HasField("tensor_type") and p.type.tensor_type.elem_type != TensorProto.STRING for p in ports):
        return [list(session.run(None, dict(feeds))) for _ in range(passes)]
    # Python values do not carry every element type; bytes at an address do.
    held: list[bytes] = []
    binding = session.io_binding()
    for name, value in feeds.items():
        tensor = numpy_helper.from_array(value)
        content = tensor.raw_data
        held.append(content)
        at = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value
        binding.bind_input(name, "cpu", 0, tensor.data_type, list(value.shape), at)
    for output in model.graph.output:
        binding.bind_output(output.name, "cpu")
    results: list[Values] = []
    for _ in range(passes):
        session.run_with_iobinding(binding)
        results.append([_taken(v) for v in binding.get_outputs()])
    return results


def _taken(value: Any) -> Any:
    """A copy of the tensor that an OrtValue holds."""
    tensor = TensorProto(data_type=value.element_type(), dims=value.shape())
    if not value.is_tensor() or value.element_type() == TensorProto.STRING:
        return value.numpy()
    count = int(np.prod(value.shape(), dtype=np.int64))
    probe = numpy_helper.from_array(np.zeros(count, onnx.helper.tensor_dtype_to_np_dtype(value.element_type())))
    tensor.raw_data = ctypes.string_at(value.data_ptr(), len(probe.raw_data)) if count else b""
    return numpy_helper.to_array(tensor)


def _feeds(case: Case) -> dict[str, Any]:
    graph = onnx.load_model_from_string(case.model).graph
    fixed = {t.name for t in graph.initializer}
    names = [i.name for i in graph.input if i.name not in fixed]
    return {n: _array(v) for n, v in zip(names, case.inputs, strict=True)}


def _dims(case: Case, feeds: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the symbolic dimensions, as the inputs have them."""
    sizes: dict[str, int] = {}
    for port in onnx.load_model_from_string(case.model).graph.input:
        tensor = port.type.tensor_type
        if port.name in feeds and tensor.HasField("shape") and tensor.elem_type != TensorProto.STRING:
            for axis, (dim, size) in enumerate(zip(tensor.shape.dim, feeds[port.name].shape, strict=True)):
                if not dim.HasField("dim_value"):
                    sizes[dim.dim_param or f"{port.name}.{axis}"] = size
    return sizes


def _array(value: Any) -> Any:
    """A value of the onnx package as arrays, lists of arrays, or None."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [_array(v) for v in cast("Sequence[Any]", value)]
    return None if value is None else np.asarray(value)


def _require_similar(case: Case, expected: Values, found: Values, *, values: bool = True) -> None:
    """Raise AssertionError unless `found` is as the onnx package's own runner wants it; without `values`, in form."""
    assert len(expected) == len(found), f"{len(found)} outputs, {len(expected)} expected"
    for e, f in zip(expected, found, strict=True):
        if isinstance(e, list) and isinstance(f, list):
            _require_similar(case, cast(Values, e), cast(Values, f), values=values)
            continue
        assert isinstance(e, np.ndarray) and isinstance(f, np.ndarray), f"{type(f).__name__} instead of an array"
        wanted, got = cast(Array, e), cast(Array, f)
        if not values:
            form = (wanted.shape, wanted.dtype) == (got.shape, got.dtype)
            assert form, f"{got.dtype}{got.shape} instead of {wanted.dtype}{wanted.shape}"
        elif not _same_bits([wanted], [got]):
            # numpy compares no eight-bit floats and their like; float32 holds every value of theirs.
            if wanted.dtype == got.dtype and wanted.dtype.kind == "V" and wanted.dtype.name != "bfloat16":
                wanted, got = wanted.astype(np.float32), got.astype(np.float32)
            Runner.assert_similar_outputs([wanted], [got], case.rtol, case.atol)


def _same_bits(one: Values, other: Values) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            x, y = cast(Array, a), cast(Array, b)
            if x.dtype != y.dtype or x.shape != y.shape:
                return False
            if x.tolist() != y.tolist() if x.dtype.kind in "OUS" else x.tobytes() != y.tobytes():
                return False
        elif isinstance(a, list) and isinstance(b, list):
            if not _same_bits(cast(Values, a), cast(Values, b)):
                return False
        elif a is not None or b is not None:
            return False
    return True


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, TensorstowError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:1000]


def main(cases: Path, results: Path, first: int, step: int) -> None:
    """Run a share of the cases; those that `results` mentions already are left out."""
    use_threads(None)  # before any session, as ONNX Runtime keeps the pool that it makes first
    known = {json.loads(line)["name"] for line in results.read_text().splitlines()} if results.exists() else set[str]()
    wanted: list[Case] = pickle.loads(cases.read_bytes())[first::step]
    with results.open("a", buffering=1) as out:
        for case in wanted:
            if case.name in known:
                continue
            out.write(json.dumps({"name": case.name}) + "\n")
            faulthandler.dump_traceback_later(LIMIT_S, exit=True)
            with tempfile.TemporaryDirectory(dir=results.parent) as folder:
                for facts in run_case(case, Path(folder)):
                    out.write(json.dumps({"name": case.name, **facts}) + "\n")
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
