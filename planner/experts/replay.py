"""Hit rates of policies on a trace, side by side, with what each decision cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...ir.errors import InputError
from ...solvers.caching.problem import Outcome, Requests, gap_closed
from .policies import POLICIES, Case, Policy
from .trace import Trace

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Row:
    """How a policy fared with caches of one capacity.

    `gap_closed` is the share of the way from LRU's hit rate to Belady's. `loads_per_token` counts expert loads (their
    bytes where sizes differ), `ahead` the part of it that was brought in before it was asked for. `ns_per_event` is the
    time that the replay took for each layer and token, deciding included.
    """

    policy: str
    cache: int
    causal: bool
    hit_rate: float
    gap_closed: float
    of_belady: float
    loads_per_token: float
    ahead: float
    ns_per_event: float


def replay_all(
    trace: Trace,
    caches: tuple[int, ...],
    policies: tuple[Policy, ...],
    *,
    warm_prompts: int = 0,
    cold: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Row, ...]:
    """Replay a trace under each policy at each capacity (experts, or bytes where sizes differ).

    Rates count from the first prompt after the warm ones. With `cold`, caches are emptied before each prompt.
    Raises InputError where nothing is left to count, InfeasibleError for a capacity below a set.
    """
    if not 0 <= warm_prompts < trace.prompts:
        raise InputError(f"--warm-prompts {warm_prompts}: the trace has {trace.prompts}; leave at least one to count")
    for cache in caches:
        trace.check_capacity(cache)
    case = Case(trace, trace.requests(cold=cold), warm_prompts, seed)
    ends = [[o.hit_rate(_counted(case)) for o in POLICIES[name].replay(case, caches)] for name in ("lru", "belady")]
    rows: list[Row] = []
    for i, policy in enumerate(policies):
        if progress is not None:
            progress(f"replaying {policy.name}", i / len(policies))
        rows += _rows(case, policy, caches, ends)
    order = {cache: i for i, cache in enumerate(caches)}
    return tuple(sorted(rows, key=lambda row: order[row.cache]))


def _counted(case: Case) -> slice:
    """The tokens that count."""
    return slice(case.warm_tokens, None)


def _rows(case: Case, policy: Policy, caches: tuple[int, ...], ends: list[list[float]]) -> list[Row]:
    _compile(case, policy, caches[0])
    began = time.perf_counter()
    outcomes = policy.replay(case, caches)
    took = time.perf_counter() - began
    # 'recall' decides for all capacities in one pass, nearly all of which any one of them would need.
    passes = 1 if policy.name == "recall" else len(caches)
    ns = took * 1e9 / (passes * case.trace.tokens * case.trace.layers)
    return [
        _row(case, policy, cache, outcome, (lru, belady), ns)
        for cache, outcome, lru, belady in zip(caches, outcomes, *ends, strict=True)
    ]


def _row(case: Case, policy: Policy, cache: int, outcome: Outcome, ends: tuple[float, float], ns: float) -> Row:
    rate = outcome.hit_rate(_counted(case))
    tokens = case.trace.tokens - case.warm_tokens
    return Row(
        policy.name,
        cache,
        policy.causal,
        rate,
        gap_closed(rate, *ends),
        rate / ends[1] if ends[1] else 0.0,
        int(outcome.loaded[_counted(case)].sum()) / tokens,
        int(outcome.ahead[_counted(case)].sum()) / tokens,
        ns,
    )


def _compile(case: Case, policy: Policy, cache: int) -> None:
    """Run a policy on the first token, so that compiling it is not timed."""
    whole = case.requests
    gates = None if whole.gates is None else whole.gates[:1]
    begins = None if whole.begins is None else whole.begins[:1]
    requests = Requests(whole.ids[:1], whole.sizes, gates, begins)
    if not policy.needs_profile:  # which replay as LRU does
        policy.replay(Case(case.trace, requests, 0, case.seed), (cache,))
