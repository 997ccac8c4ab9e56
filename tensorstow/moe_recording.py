"""Routing recorded while a plan runs, and what is at hand of experts that run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.program import ExpertCaching

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .planner.experts.record import Recorder
    from .planner.experts.trace import Trace
    from .runtime.module.experts import ExpertForwards


def caching_of(file: PlanFile) -> ExpertCaching | None:
    """How the plan caches experts; None where it does not."""
    return None if file.module is None else file.module.experts


def running(executor: object) -> ExpertForwards | None:
    """The experts of an executor, or of what holds one."""
    return getattr(getattr(executor, "executor", executor), "experts", None)


def record_routing(experts: ExpertForwards) -> Recorder:
    """From now on record what routers choose; `recorder.trace()` is it. A prompt begins where the first layer is asked
    by more tokens than in the call before. Raises InputError where routing is not seen."""
    from .planner.experts.record import Recorder

    layers = experts.reading.layers
    # of lists no router says how many experts a token may ask for
    width = max(x.top_k if x.fused else x.experts for x in layers)
    recorder = Recorder(len(layers), max(x.experts for x in layers), width)
    before = 0

    def add(layer: int, ids: NDArray[np.int64], gates: NDArray[np.float32] | None) -> None:
        nonlocal before
        if layer == 0:
            if len(ids) > before:
                recorder.begin()
            before = len(ids)
        recorder.add(layer, ids, gates)

    experts.record(add)
    return recorder


def narrowed(trace: Trace) -> Trace:
    """The same, as wide as its largest set: sets are filled up with -1 at their ends."""
    width = max(1, int((trace.ids >= 0).sum(axis=2).max()))
    gates = None if trace.gates is None else trace.gates[:, :, :width]
    return replace(trace, ids=trace.ids[:, :, :width], gates=gates)


class RoutingFile:
    """Routing of a run, to be written to `path`. Raises InputError for a plan that caches no experts."""

    def __init__(self, file: PlanFile, path: Path) -> None:
        if caching_of(file) is None:
            raise InputError(
                "--record-routing records what experts tokens choose; the plan caches none: plan a "
                "mixture-of-experts model for less memory than its experts take"
            )
        self._path = path
        self._experts: ExpertForwards | None = None
        self._recorder: Recorder | None = None

    def begin(self, executor: object) -> None:
        """Record from now on what `executor` runs."""
        self._experts = running(executor)
        assert self._experts is not None
        self._recorder = record_routing(self._experts)

    def write(self) -> None:
        """Write what was recorded, and record no more."""
        from .planner.experts.trace import write_trace

        assert self._recorder is not None
        assert self._experts is not None
        self._experts.record(None)
        write_trace(narrowed(self._recorder.trace()), self._path)
