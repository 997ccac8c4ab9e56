"""What routing costs in time: waits for expert loads under a link model, against a bound that no schedule beats."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from ...ir.errors import InputError
from ...solvers.caching.problem import Requests
from ...solvers.caching.stall import Pace, Stall, stall_known, stall_on_demand
from ...solvers.caching.stall_bound import Links, StallBound, stall_bound
from ...solvers.caching.stall_foreseen import Ahead, stall_foreseen
from ...solvers.result import Status
from .trace import Trace


@dataclass(frozen=True, slots=True)
class StallRow:
    """Waits of one schedule at one capacity, per token. `of_lru`: against LRU on demand. `of_bound`: against the bound
    over the same tokens, None where that is zero; it is too much where the bound is not `complete`, as time ran out and
    some tokens count nothing in it. `decide_ms` is the time that forecasts took, per token; it counts in `net_ms`, the
    wait with it."""

    schedule: str
    cache: int
    stall_ms: float
    of_lru: float
    of_bound: float | None
    decide_ms: float
    net_ms: float
    demanded: float
    ahead: float
    wasted: float
    complete: bool


@dataclass(frozen=True, slots=True)
class LinkModel:
    """`load_ms` for one expert over the link (where sizes differ, for one of their mean size, and for others in
    proportion), `compute_ms` for a layer."""

    load_ms: float
    compute_ms: float


def stall_rows(
    trace: Trace,
    caches: tuple[int, ...],
    link: LinkModel,
    *,
    warm_tokens: int,
    cold: bool = False,
    time_limit_s: float = 60.0,
) -> tuple[StallRow, ...]:
    """Replay with time at each capacity, counting from token `warm_tokens` on; the bound knows all routes.

    `cold`: caches are empty at the start of every prompt.

    Raises InputError where nothing is left to count, InfeasibleError for a capacity below a set.
    """
    if not (0 < link.load_ms < inf and 0 <= link.compute_ms < inf):  # nor what is no number
        raise InputError(f"a load of {link.load_ms} ms and a layer of {link.compute_ms} ms: give times above 0")
    if not 0 <= warm_tokens < trace.tokens:
        raise InputError(f"{warm_tokens} tokens only warm up, of {trace.tokens}; leave at least one to count")
    trace.check_capacity(min(caches))
    mean = 1.0 if trace.sizes is None else float(trace.sizes.mean())
    requests = trace.of_used().requests(cold=cold)
    begins = None if requests.begins is None else requests.begins[warm_tokens:]
    found: list[StallRow] = []
    for cache in caches:
        pace = Pace(link.load_ms * 1e6 / mean, link.compute_ms * 1e6, warm_tokens)
        counted = Requests(requests.ids[warm_tokens:], requests.sizes, begins=begins)
        bound = stall_bound(
            counted, cache, Links(pace.load_ns), pace.compute_ns, warm=warm_tokens > 0, time_limit_s=time_limit_s
        )
        found += _schedules(requests, cache, pace, bound)
    return tuple(found)


def _schedules(requests: Requests, cache: int, pace: Pace, bound: StallBound) -> list[StallRow]:
    tokens, bound_ns, complete = requests.rounds - pace.warm_rounds, bound.stall_ns, bound.status is Status.OPTIMAL
    schedules: tuple[tuple[str, Callable[[Requests, Pace], Stall], bool], ...] = (
        ("lru on demand", lambda r, p: stall_on_demand(r, cache, p), False),
        ("recall on demand", lambda r, p: stall_foreseen(r, cache, p, ahead=Ahead(depth=0)), True),
        ("recall, prefetch by forecast", lambda r, p: stall_foreseen(r, cache, p), True),
        ("known routes", lambda r, p: stall_known(r, cache, p), False),
    )
    rows = [
        StallRow(
            "bound",
            cache,
            bound_ns / 1e6 / tokens,
            0.0,
            1.0 if bound_ns else None,
            0.0,
            bound_ns / 1e6 / tokens,
            0.0,
            0.0,
            0.0,
            complete,
        )
    ]
    lru_ns = 0.0
    for name, replay, decides in schedules:
        replay(Requests(requests.ids[:1], requests.sizes), Pace(pace.load_ns, pace.compute_ns))  # compile it
        began = time.perf_counter()
        stall = replay(requests, pace)
        took_ms = (time.perf_counter() - began) * 1e3 / requests.rounds if decides else 0.0
        lru_ns = lru_ns or stall.stall_ns
        wait = stall.stall_ns / 1e6 / tokens
        rows.append(
            StallRow(
                name,
                cache,
                wait,
                stall.stall_ns / lru_ns if lru_ns else 0.0,
                stall.stall_ns / bound_ns if bound_ns else None,
                took_ms,
                wait + took_ms,
                stall.demanded / tokens,
                stall.ahead / tokens,
                stall.wasted / tokens,
                complete,
            )
        )
    return rows
