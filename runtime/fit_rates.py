"""From measured times to the rates of a cost class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir.machine import Rate

# Times of these grow with the operations and with the bytes; of all others, with the bytes alone.
_BOTH = frozenset(
    {
        *("matmul", "matmul_t", "conv", "conv_pointwise", "conv_depthwise", "conv_nchw", "conv_nchw_depthwise"),
        *("matmul_batched", "conv_sum", "pool", "pool_nchw", "recurrent", "attention"),
    }
)


@dataclass(frozen=True, slots=True)
class Observation:
    """A kernel of `cost_class` took `seconds`, beyond the launch, for these operations and bytes."""

    cost_class: str
    dtype: str
    flops: int
    nbytes: int
    seconds: float


def fit(seen: list[Observation]) -> list[Rate]:
    """Rates by class and dtype, sorted, such that flops / rate + bytes / rate is near the observed seconds.

    Least squares of the relative error, so that small kernels count as much as large ones; a negative coefficient,
    which no rate can have, is left out. With one observation, or for a class that only moves bytes, one rate.
    """
    groups: dict[tuple[str, str], list[Observation]] = {}
    for one in seen:
        groups.setdefault((one.cost_class, one.dtype), []).append(one)
    return [_rate(*key, group) for key, group in sorted(groups.items())]


def _rate(cost_class: str, dtype: str, seen: list[Observation]) -> Rate:
    flops = np.array([o.flops / o.seconds for o in seen])
    nbytes = np.array([o.nbytes / o.seconds for o in seen])
    if cost_class not in _BOTH:
        return Rate(cost_class, dtype, bytes_per_s=1 / _slope(nbytes))
    if len(seen) == 1:
        return Rate(cost_class, dtype, flops_per_s=1 / _slope(flops))
    solution, *_ = np.linalg.lstsq(np.stack([flops, nbytes], axis=1), np.ones(len(seen)), rcond=None)
    per_flop, per_byte = (float(x) for x in solution)
    if per_byte <= 0:
        return Rate(cost_class, dtype, flops_per_s=1 / _slope(flops))
    if per_flop <= 0:
        return Rate(cost_class, dtype, bytes_per_s=1 / _slope(nbytes))
    return Rate(cost_class, dtype, flops_per_s=1 / per_flop, bytes_per_s=1 / per_byte)


def _slope(per_second: npt.NDArray[Any]) -> float:
    """Seconds per unit that minimise the sum of (units * slope / seconds - 1)^2."""
    return float(per_second.sum() / (per_second**2).sum())
