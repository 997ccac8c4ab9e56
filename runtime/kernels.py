"""ONNX Runtime as provider of kernels: one session per one-operator model, all on one thread pool."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from ..ir.errors import ExecutionError, InputError
from ..ir.program import Program
from ..ir.threads import fix_threads
from .drawing import Seeds, draws

_native: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # it has no stub

# What ONNX Runtime raises; run_with_iobinding raises RuntimeError for all that happens inside a kernel.
ENGINE_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    _native.EPFail,
    _native.Fail,
    _native.InvalidArgument,
    _native.InvalidGraph,
    _native.InvalidProtobuf,
    _native.NotImplemented,
    _native.RuntimeException,
)
PROVIDERS = ["CPUExecutionProvider"]
MAPS = -1
"""Stands for the element type of what has maps for elements, as the results of a classifier may be."""

_MAX_ROOM = (1 << 31) - 1  # what ONNX Runtime's type for it holds
_workspace_nbytes: int | None = None  # of the allocator; ONNX Runtime has one in a process


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a kernel. `kind` is 'tensor', 'sequence', 'optional', 'map' (or a sequence of maps), or
    'other'.

    `element` is ONNX's number of the type of its elements, `MAPS` for maps, 0 where unknown. `shape` is None where the
    model does not fix it.
    """

    name: str
    kind: str
    element: int
    shape: tuple[int, ...] | None

    @property
    def bindable(self) -> bool:
        """Whether it can lie at an address."""
        return self.kind == "tensor" and self.element != onnx.TensorProto.STRING


@dataclass(frozen=True, slots=True)
class Kernel:
    """A session and its ports, in the order of the operator's inputs and outputs."""

    session: Any
    op_type: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def use_threads(threads: int | None) -> int:
    """Make the pool of `threads` threads (None: what it has, else one per physical core); how many it has.

    Raises InputError where the process has a pool of another size already: ONNX Runtime keeps the first.
    """

    def make_pool(count: int) -> None:
        ort.set_global_thread_pool_sizes(count, 1)

    return fix_threads(threads, make_pool)


def use_workspace(nbytes: int) -> None:
    """Let all kernels take their workspace from one allocator, with room for a kernel that needs `nbytes`.

    Measured with five ConvTranspose of 1 to 18 MiB of workspace in turn: glibc as it is keeps 119 MiB after them, with
    fixed thresholds 18 to 76 (freed blocks of unequal size lie between others), and when it returns every block, 18,
    but then page faults double the time of each call. One coalescing region keeps 18.7 and meets no fault. Pages of it
    that are never touched cost nothing, its book-keeping 1/32; so it is twice what the plan says, for kernels that
    take their workspace in pieces. A later plan that needs more makes ONNX Runtime add a region.
    """
    global _workspace_nbytes
    if _workspace_nbytes is not None:
        return
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    room = min(max(2 * nbytes, 1 << 20), _MAX_ROOM)
    settings = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": room}
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({**settings, "max_dead_bytes_per_chunk": -1}))
    except ENGINE_ERRORS as error:
        raise InputError(
            "ONNX Runtime's shared allocator was made by other code of this process; use tensorstow before that code, "
            "or in a process of its own"
        ) from error
    _workspace_nbytes = nbytes


def session_options() -> Any:
    """Options under which a kernel computes the same bits as in a whole-model session without prepacking."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # one for each session would keep its workspace
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False
    options.use_per_session_threads = False
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def load_kernels(program: Program, operators: Mapping[str, str]) -> dict[str, Kernel]:
    """Kernels by operator id for `operators` (id to type); equal models share one, unless they draw random numbers.

    Raises InputError.
    """
    options = session_options()
    seeds = Seeds(op for op, op_type in operators.items() if draws(op, op_type))
    made: dict[str, Kernel] = {}
    found: dict[str, Kernel] = {}
    for op, op_type in operators.items():
        digest = program.kernels.get(op)
        if digest is None or digest not in program.models:
            raise InputError(f"the program has no kernel for operator '{op}'; plan again")
        shared = op if op in seeds else digest
        if shared not in made:
            made[shared] = _load(program.models[digest], op, op_type, seeds, options)
        found[op] = made[shared]
    return found


def _load(content: bytes, op: str, op_type: str, seeds: Seeds, options: Any) -> Kernel:
    try:
        model = onnx.load_model_from_string(content)
        graph = model.graph
        if seeds.give(op, model, options):
            content = model.SerializeToString()
        session = ort.InferenceSession(content, options, providers=PROVIDERS)
    except (*ENGINE_ERRORS, DecodeError) as error:
        raise InputError(f"ONNX Runtime has no kernel for operator '{op}' ({op_type}): {error}") from error
    initialized = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}
    inputs = tuple(_port(v) for v in graph.input if v.name not in initialized)
    return Kernel(session, op_type, inputs, tuple(_port(v) for v in graph.output))


def _port(info: Any) -> Port:
    kind = str(info.type.WhichOneof("value")).removesuffix("_type")
    if kind == "map" or (kind == "sequence" and info.type.sequence_type.elem_type.HasField("map_type")):
        return Port(info.name, "map", MAPS, None)
    if kind == "sequence":
        return Port(info.name, kind, int(info.type.sequence_type.elem_type.tensor_type.elem_type), None)
    if kind != "tensor":
        return Port(info.name, "optional" if kind == "optional" else "other", 0, None)
    tensor = info.type.tensor_type
    shape = None
    if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
        shape = tuple(int(d.dim_value) for d in tensor.shape.dim)
    return Port(info.name, kind, int(tensor.elem_type), shape)


def element_name(element: int) -> str:
    """numpy's name of an ONNX element type."""
    return onnx.helper.tensor_dtype_to_np_dtype(element).name


def run_error(op: str, op_type: str, error: Exception) -> ExecutionError:
    """The error for a kernel that failed."""
    return ExecutionError(
        f"operator '{op}' ({op_type}) failed: {error}; if the input is as the model wants it, report this"
    )
