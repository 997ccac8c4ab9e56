"""How fast ONNX Runtime's kernels run here, by cost class. A process of its own: `python -m` this module.

It sets up threads and allocator as the executor does, which a process can do once. It takes one JSON line of options
on its standard input and writes JSON lines: {"progress": x} now and then, {"load": "read"}, {"load": "write"} and
{"load": null} when it wants the disk to be busy so or to be quiet (answered by a line when that is so), and at last
{"result": ...}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import cycle
from statistics import median, quantiles
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..ir.caches import cache_nbytes
from .fit_rates import Observation, fit
from .kernel_samples import Form, Sample, gemm, samples
from .memory import settle_allocator

Array = npt.NDArray[Any]

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    getattr(import_module("onnxruntime.capi.onnxruntime_pybind11_state"), name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
)
# Operands are rotated over this many times the cache that they are not to be found in.
_ROUNDS = 2
_MOST_COPIES = 16
_LEAST_RUNS = 5
_STREAM_NBYTES = 32 << 20
_LOAD_PAIRS = 7
_LOAD_S, _LOAD_QUICK_S = 0.2, 0.08


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds to spend on one sample."""

    seconds: float


class Bench:
    """A sample's session with its operands bound in memory of ours; calling it runs the kernel once."""

    def __init__(self, sample: Sample, threads: int) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.use_per_session_threads = False
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._session = ort.InferenceSession(sample.model, options, providers=["CPUExecutionProvider"])
        operands = [_operand(f) for f in sample.inputs]
        results = self._results(operands)
        self.nbytes = sum(a.nbytes for a in (*operands, *results))
        # Weights come from memory; what small kernels hand on lies in the last cache, not in the inner ones.
        if sample.weights:
            renewed, rotated = sample.weights, _ROUNDS * cache_nbytes(3)
        else:
            renewed, rotated = tuple(range(len(operands))), _ROUNDS * threads * cache_nbytes(2)
        one = sum(operands[k].nbytes for k in renewed)
        copies = min(_MOST_COPIES, max(1, -(-rotated // max(1, one))))
        self._keep: list[Any] = []
        bindings = [self._bind(operands, results, renewed, fresh=not sample.weights) for _ in range(copies)]
        self._next = cycle(bindings)

    def _results(self, operands: list[Array]) -> list[Array]:
        names = [i.name for i in self._session.get_inputs()]
        return [np.asarray(r) for r in self._session.run(None, dict(zip(names, operands, strict=True)))]

    def _bind(self, operands: list[Array], results: list[Array], renewed: tuple[int, ...], *, fresh: bool) -> Any:
        """A binding to copies of the operands `renewed`, and of the results where these are to be `fresh`."""
        binding = self._session.io_binding()
        mine = [a.copy() if k in renewed else a for k, a in enumerate(operands)]
        results = [a.copy() for a in results] if fresh else results
        for slot, array in zip(self._session.get_inputs(), mine, strict=True):
            binding.bind_input(slot.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for slot, array in zip(self._session.get_outputs(), results, strict=True):
            binding.bind_output(slot.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._keep += [mine, results]
        return binding

    def __call__(self) -> None:
        self._session.run_with_iobinding(next(self._next))

    def seconds(self, budget: Budget) -> float:
        """Lower quartile of the times of a run, over as many as the budget allows, five at the least.

        What disturbs a run only adds to it, so this is nearer to the kernel's own time than the median, and steadier
        than the least.
        """
        self()
        times: list[float] = []
        end = time.perf_counter() + budget.seconds
        while len(times) < _LEAST_RUNS or time.perf_counter() < end:
            begin = time.perf_counter()
            self()
            times.append(time.perf_counter() - begin)
        return quantiles(times, n=4)[0]

    def mean_s(self, window_s: float) -> float:
        """Seconds of a run in the mean, over as many as begin in a window, five at the least."""
        self()
        runs, began = 0, time.perf_counter()
        while runs < _LEAST_RUNS or time.perf_counter() - began < window_s:
            self()
            runs += 1
        return (time.perf_counter() - began) / runs


def _operand(form: Form) -> Array:
    """Values in (0, 1), zeros for integers: valid indices; the speed of no kernel here depends on them."""
    dtype, shape = form
    if np.issubdtype(np.dtype(dtype), np.integer):
        return np.zeros(shape, dtype)
    return np.resize(np.random.default_rng(0).random(4093, np.float32).astype(dtype), shape)


def measure(
    threads: int,
    *,
    quick: bool,
    products_only: bool,
    set_load: Callable[[str | None], None],
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """Everything of one unit: see the keys of what it returns; rates in operations and bytes per second."""
    ort.set_global_thread_pool_sizes(threads, 1)
    settle_allocator()
    budget = Budget(0.02 if quick else 0.06)
    launch = _launch(threads, budget)
    todo = [s for s in samples(quick=quick) if not products_only or s.cost_class == "matmul"]
    seen: list[Observation] = []
    skipped: list[str] = []
    for done, sample in enumerate(todo):
        try:
            bench = Bench(sample, threads)
        except _ORT_ERRORS:
            skipped.append(f"{sample.op_type} {sample.dtype}")
            continue
        nbytes = bench.nbytes if sample.moved_nbytes is None else sample.moved_nbytes
        seconds = max(bench.seconds(budget) - launch, 0.01 * launch)
        seen.append(Observation(sample.cost_class, sample.dtype, sample.flops, nbytes, seconds))
        progress((done + 1) / len(todo))
    stream = ("float32", (_STREAM_NBYTES // 4,))
    bench = Bench(Sample("stream", "Add", (stream, stream), 0), threads)
    bandwidth = bench.nbytes / bench.seconds(budget)
    return {
        "launch_s": launch,
        "bytes_per_s": bandwidth,
        "peaks": {o.dtype: _peak(seen, o.dtype) for o in seen if o.cost_class == "matmul"},
        "rates": [asdict(rate) for rate in fit(seen)],
        "contention": {} if products_only else _contention(threads, _LOAD_QUICK_S if quick else _LOAD_S, set_load),
        "skipped": skipped,
    }


def _launch(threads: int, budget: Budget) -> float:
    """Seconds of a kernel with next to nothing to do, as a plan meets it: among other kernels.

    A product with a large weight drives code and data out of the inner caches, a few different small kernels follow.
    That makes a launch two to four times as long as in a loop over one kernel.
    """
    product = Bench(gemm(1, 2048, 2048, transposed=False), threads)
    kinds = ("Relu", "Softmax", "Gelu", "Transpose")
    small = [Bench(Sample("launch", kind, (("float32", (1, 8)),), 0), threads) for kind in kinds]
    times: list[float] = []
    end = time.perf_counter() + 4 * budget.seconds
    while len(times) < _LEAST_RUNS or time.perf_counter() < end:
        product()
        begin = time.perf_counter()
        for bench in small:
            bench()
        times.append((time.perf_counter() - begin) / len(small))
    return quantiles(times, n=4)[0]


def _contention(threads: int, window_s: float, set_load: Callable[[str | None], None]) -> dict[str, float]:
    """What a product takes longer while the disk is read, and while it is written, as a share of its time in quiet: at
    least 0, the median of pairs in turn.

    Taken in turn, because the speed of a shared machine drifts by more than what is looked for; and by how often it
    runs in a while, as a run that lost its core for a moment counts as much as it took.
    """
    bench = Bench(gemm(128, 768, 3072, transposed=False), threads)
    found: dict[str, float] = {}
    for kind in ("read", "write"):
        ratios: list[float] = []
        for _ in range(_LOAD_PAIRS):
            quiet = bench.mean_s(window_s)
            set_load(kind)
            busy = bench.mean_s(window_s)
            set_load(None)
            ratios.append(busy / quiet)
        found[kind] = max(0.0, median(ratios) - 1.0)
    return found


def _peak(seen: list[Observation], dtype: str) -> float:
    return max(o.flops / o.seconds for o in seen if o.dtype == dtype)


def main() -> None:
    """Speak the protocol of the module's docstring."""
    options = json.loads(sys.stdin.readline())

    def say(**message: object) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def set_load(kind: str | None) -> None:
        say(load=kind)
        sys.stdin.readline()

    result = measure(
        options["threads"],
        quick=options["quick"],
        products_only=options.get("products_only", False),
        set_load=set_load,
        progress=lambda part: say(progress=part),
    )
    say(result=result)


if __name__ == "__main__":
    main()
