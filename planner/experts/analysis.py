"""What a routing trace says of the model: how steady, how skewed, how predictable, and what caches could reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...solvers.caching.offline import replay_segment
from ...solvers.caching.problem import NONE
from ...solvers.caching.windows import count_windows, pairs_nbytes, predictability, srp, working_set
from .policies import MOST_PAIRS_NBYTES
from .trace import Trace


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer of a trace.

    `used` experts were asked for at all; `effective` is exp of the entropy of their shares, the number of experts that
    evenly used ones would be as spread as. `repeated` is the share of a token's set that stood in the one before;
    `by_use` and `by_layer_before` the shares that the most used experts, and what went with the set of the layer
    before, would have foreseen (learned as the trace goes); the latter is None where there are too many pairs to count.
    """

    layer: int
    used: int
    effective: float
    repeated: float
    by_use: float
    by_layer_before: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """Windows of `m` consecutive tokens of one prompt: SRP over all layers and of each, and the mean number of experts
    that a window uses, over all layers and of each. `windows` counts them; all figures are 0 where there is none."""

    m: int
    windows: int
    srp: float
    srp_layers: tuple[float, ...]
    working_set: float
    working_set_layers: tuple[float, ...]


def layer_summaries(trace: Trace) -> tuple[LayerSummary, ...]:
    """A summary of each layer."""
    pairs = pairs_nbytes(trace.layers, trace.experts) <= MOST_PAIRS_NBYTES
    by_use, repeated, by_layer = predictability(trace.requests(cold=False), pairs=pairs)
    found: list[LayerSummary] = []
    for layer in range(trace.layers):
        ids = trace.ids[:, layer]
        counts = np.bincount(ids[ids != NONE], minlength=trace.experts)
        shares = counts[counts > 0] / max(1, int(counts.sum()))
        effective = float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
        found.append(
            LayerSummary(
                layer,
                int((counts > 0).sum()),
                effective,
                float(repeated[layer]),
                float(by_use[layer]),
                float(by_layer[layer]) if pairs else None,
            )
        )
    return tuple(found)


def window_summary(trace: Trace, m: int) -> Window:
    """SRP(m) and the working set of `m` tokens. Windows lie within prompts. Raises ValueError for m < 1."""
    if m > int(np.diff(trace.offsets).max()):
        nothing = (0.0,) * trace.layers
        return Window(m, 0, 0.0, nothing, 0.0, nothing)
    histograms = count_windows(trace.requests(cold=True), m)
    pairs = int(histograms[0].sum())
    sets = tuple(working_set(h, trace.experts) for h in histograms)
    return Window(
        m,
        pairs // trace.experts,
        srp(histograms.sum(axis=0))[0],
        tuple(srp(h)[0] for h in histograms),
        float(np.mean(sets)),
        sets,
    )


def sch(trace: Trace, m: int, capacity: int, *, cold: bool = False, warm_tokens: int = 0) -> float:
    """SCH(m, C): the hit rate of a cache, filled on demand, that keeps the C experts most used in the next m tokens."""
    return replay_segment(trace.requests(cold=cold), capacity, min(m, trace.tokens)).hit_rate(slice(warm_tokens, None))
