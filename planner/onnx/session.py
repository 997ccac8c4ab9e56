"""ONNX Runtime as the planner uses it: to optimise a graph once, and to ask what a kernel makes of its inputs."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from ...ir.threads import fix_threads

PROVIDERS = ["CPUExecutionProvider"]


def options(*, optimise: bool = False) -> Any:
    """Session options: the process's one pool, no memory arena, weights never rearranged behind our back."""
    made = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    made.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    made.use_per_session_threads = False
    made.enable_cpu_mem_arena = False
    made.enable_mem_pattern = False
    # Errors come as exceptions; the rest of what ONNX Runtime prints is not for our user.
    made.log_severity_level = 4
    made.add_session_config_entry("session.disable_prepacking", "1")
    return made


def open_session(model: bytes, session_options: Any) -> Any:
    """An InferenceSession over a serialised model on the CPU."""
    fix_threads(None, _make_pool)
    return ort.InferenceSession(model, session_options, providers=PROVIDERS)


def _make_pool(threads: int) -> None:
    ort.set_global_thread_pool_sizes(threads, 1)


def version() -> str:
    """ONNX Runtime's version."""
    return str(ort.__version__)


def reason(error: Exception) -> str:
    """The sentence of an ONNX Runtime error that a user can act on."""
    text = " ".join(str(error).split())
    # '[ONNXRuntimeError] : 1 : FAIL : the sentence'
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
