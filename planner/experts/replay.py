"""Hit rates of policies on a trace, side by side, with what each decision cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...ir.errors import InputError
from ...solvers.caching.bounds import load_bound
from ...solvers.caching.problem import Outcome, Requests, gap_closed
from ...solvers.result import Status
from .policies import POLICIES, Case, Policy
from .trace import Trace

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Row:
    """How a policy fared with caches of one capacity.

    `gap_closed` is the share of the way from LRU's hit rate to Belady's; where sizes differ, from LRU's bytes to the
    least (`Least`), for Belady's rule is no more than a rule there. `loads_per_token` counts expert loads (their
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


@dataclass(frozen=True, slots=True)
class Least:
    """No policy that loads on demand, with caches of `cache` bytes, loads fewer than `nbytes_per_token`, whatever is in
    them when counting begins. One is not `complete` for which time ran out: of some tokens it has first uses alone."""

    cache: int
    nbytes_per_token: float
    complete: bool


def least_loads(
    trace: Trace, caches: tuple[int, ...], *, warm_prompts: int = 0, cold: bool = False, time_limit_s: float = 20.0
) -> tuple[Least, ...]:
    """What must be loaded of experts that differ in size, for each capacity; none where they are alike, for Belady's
    rule says it then. Up to `time_limit_s` for each. Raises InputError where nothing is left to count."""
    _check_warm(trace, warm_prompts)
    if trace.sizes is None:
        return ()
    requests = trace.requests(cold=cold)
    start = int(trace.offsets[warm_prompts])
    begins = None if requests.begins is None else requests.begins[start:]
    before = start > 0 and not cold
    found: list[Least] = []
    for cache in caches:
        total, complete, deadline = 0.0, True, time.monotonic() + time_limit_s
        for layer in range(trace.layers):
            here = slice(layer, layer + 1)
            one = Requests(requests.ids[start:, here], requests.sizes[here], None, begins)
            bound = load_bound(one, cache, time_limit_s=deadline - time.monotonic())
            total += max(0.0, bound.cost - before * cache)
            complete = complete and bound.status is Status.OPTIMAL
        found.append(Least(cache, total / (trace.tokens - start), complete))
    return tuple(found)


def _check_warm(trace: Trace, warm_prompts: int) -> None:
    if not 0 <= warm_prompts < trace.prompts:
        raise InputError(f"--warm-prompts {warm_prompts}: the trace has {trace.prompts}; leave at least one to count")


def replay_all(
    trace: Trace,
    caches: tuple[int, ...],
    policies: tuple[Policy, ...],
    *,
    warm_prompts: int = 0,
    cold: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    least: tuple[Least, ...] | None = None,
) -> tuple[Row, ...]:
    """Replay a trace under each policy at each capacity (experts, or bytes where sizes differ).

    Rates count from the first prompt after the warm ones. With `cold`, caches are emptied before each prompt. `least`
    are the `least_loads` of the same, if they are known.
    Raises InputError where nothing is left to count, InfeasibleError for a capacity below a set.
    """
    _check_warm(trace, warm_prompts)
    for cache in caches:
        trace.check_capacity(cache)
    if least is None:
        least = least_loads(trace, caches, warm_prompts=warm_prompts, cold=cold)
    trace = trace.of_used()
    case = Case(trace, trace.requests(cold=cold), warm_prompts, seed)
    ends = _ends(case, caches, least)
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


@dataclass(frozen=True, slots=True)
class _Ends:
    """Of one capacity: Belady's hit rate, and what of LRU and of the best there is spans the gap: hit rates, or bytes
    loaded a token, below zero."""

    belady: float
    low: float
    high: float


def _ends(case: Case, caches: tuple[int, ...], least: tuple[Least, ...]) -> list[_Ends]:
    lru, belady = (POLICIES[name].replay(case, caches) for name in ("lru", "belady"))
    rates = [[o.hit_rate(_counted(case)) for o in outcomes] for outcomes in (lru, belady)]
    if not least:
        return [_Ends(b, a, b) for a, b in zip(*rates, strict=True)]
    pairs = zip(rates[1], lru, least, strict=True)
    return [_Ends(rate, -_loads(case, outcome), -bound.nbytes_per_token) for rate, outcome, bound in pairs]


def _loads(case: Case, outcome: Outcome) -> float:
    """A token's, in units of size."""
    return int(outcome.loaded[_counted(case)].sum()) / (case.trace.tokens - case.warm_tokens)


def _rows(case: Case, policy: Policy, caches: tuple[int, ...], ends: list[_Ends]) -> list[Row]:
    _compile(case, policy, caches[0])
    began = time.perf_counter()
    outcomes = policy.replay(case, caches)
    took = time.perf_counter() - began
    # 'recall' decides for all capacities in one pass, nearly all of which any one of them would need.
    passes = 1 if policy.name == "recall" else len(caches)
    ns = took * 1e9 / (passes * case.trace.tokens * case.trace.layers)
    return [
        _row(case, policy, cache, outcome, end, ns) for cache, outcome, end in zip(caches, outcomes, ends, strict=True)
    ]


def _row(case: Case, policy: Policy, cache: int, outcome: Outcome, ends: _Ends, ns: float) -> Row:
    rate, loads = outcome.hit_rate(_counted(case)), _loads(case, outcome)
    tokens = case.trace.tokens - case.warm_tokens
    return Row(
        policy.name,
        cache,
        policy.causal,
        rate,
        gap_closed(rate if case.trace.sizes is None else -loads, ends.low, ends.high),
        rate / ends.belady if ends.belady else 0.0,
        loads,
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
