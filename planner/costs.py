"""What an operator costs: arithmetic, bytes moved, memory of its own; and the time that a unit takes for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ir.graph import Operator
from ..ir.machine import Rate, Unit

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """What the fields of the same names of `ir.graph.Operator` say."""

    cost_class: str
    dtype: str
    flops: int
    moved_nbytes: int
    workspace_nbytes: int


def onnx_cost(
    node: onnx.NodeProto,
    inputs: Sequence[tuple[str, tuple[int, ...]] | None],
    outputs: Sequence[tuple[str, tuple[int, ...]] | None],
    *,
    threads: int | None = None,
) -> OperatorCost:
    """Cost of one ONNX node by formulas over its attributes and the (dtype, shape) of what it is bound to.

    None stands for an input or output that is absent or whose shape is not known before the run: it counts nothing.
    A multiply-add is two operations. Operators without a formula are of class 'other' and cost their bytes. The
    workspace is that of ONNX Runtime's CPU kernels as they run here (no graph optimisation, no prepacking, no arena)
    on `threads` threads, by default as many as this process may use.
    """
    from .costs_onnx import work
    from .costs_onnx_call import Call
    from .costs_workspace import workspace_nbytes

    call = Call.of(node, inputs, outputs)
    done = work(call)
    workers = len(os.sched_getaffinity(0)) if threads is None else threads
    return OperatorCost(
        cost_class=done.cost_class,
        dtype=call.arithmetic,
        flops=done.flops,
        moved_nbytes=call.nbytes if done.moved_nbytes is None else done.moved_nbytes,
        workspace_nbytes=workspace_nbytes(call, workers),
    )


def duration_ns(op: Operator, unit: Unit) -> int:
    """Nanoseconds of `op` on `unit`, at least one.

    A measured time of the operator stands for itself. Else, where the unit's class rates were measured, they were
    fitted to time = launch + flops / rate + bytes / rate: a kernel first packs its operands, then multiplies them,
    so the two add up. A class that was not measured in this dtype runs as in float32. Without a measured class, the
    unit's peaks bound the time from below: launch + max(flops / peak, bytes / peak), the roofline of Williams et al.
    (2009).
    """
    if op.measured_ns is not None:
        return max(1, op.measured_ns)
    rate = unit.rate.get((op.cost_class, op.dtype)) or unit.rate.get((op.cost_class, "float32"))
    seconds = _fitted(op, rate) if rate is not None else _roofline(op, unit)
    return max(1, round(1e9 * (unit.launch_s + seconds)))


def _fitted(op: Operator, rate: Rate) -> float:
    compute = op.flops / rate.flops_per_s if rate.flops_per_s is not None else 0.0
    traffic = op.moved_nbytes / rate.bytes_per_s if rate.bytes_per_s is not None else 0.0
    return compute + traffic


def _roofline(op: Operator, unit: Unit) -> float:
    peaks = dict(unit.flops_per_s)
    # A dtype that the source does not list (an int64 index computation, say) runs at no more than the slowest listed.
    peak = peaks.get(op.dtype, min(peaks.values()))
    return max(op.flops / peak, op.moved_nbytes / unit.bytes_per_s)
