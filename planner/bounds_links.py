"""Seconds that bytes take over links at the least, and what computing loses to them."""

from __future__ import annotations

from collections.abc import Iterable, Set

from ..ir.machine import Link, Machine
from ..solvers.bounds import Traffic


def two_links_s(traffic: Traffic, load: Link, store: Link | None) -> float:
    """At least so long do these bytes take over two links, side by side or, on one lane, in turn."""
    loads = traffic.loaded / load.bytes_per_s
    if store is None:
        return loads
    stores = traffic.stored / store.bytes_per_s
    return loads + stores if store.lane == load.lane else max(loads, stores)


def lent_s(traffic: Traffic, load: Link, store: Link | None) -> float:
    """What computing takes longer at the least while these bytes move, where links lend from it (`Link.contention`).

    A lane that is busy for L seconds of a pass in which nothing computes for I of them moves bytes beside computing for
    at least L - I, of which c / (1 + c) are lost to a contention c: computing for C, the pass takes
    C + (L - I) c / (1 + c) + I at the least, which is never below C + L c / (1 + c). Of two lanes the one that costs
    more counts.
    """
    lent = [traffic.loaded / load.bytes_per_s * load.contention / (1 + load.contention)]
    if store is not None:
        lent.append(traffic.stored / store.bytes_per_s * store.contention / (1 + store.contention))
    return sum(lent) if store is not None and store.lane == load.lane else max(lent)


def all_links_s(traffic: Traffic, machine: Machine, inside: Set[str]) -> float:
    """At least so long do these bytes take over all links that join the tiers `inside` to others, side by side."""
    into = _rate(k for k in machine.links if k.target in inside and k.origin not in inside)
    out = _rate(k for k in machine.links if k.origin in inside and k.target not in inside)
    both = _rate(k for k in machine.links if (k.origin in inside) != (k.target in inside))
    pairs = ((traffic.loaded, into), (traffic.stored, out), (traffic.moved, both))
    return max((nbytes / rate for nbytes, rate in pairs if rate), default=0.0)


def _rate(links: Iterable[Link]) -> float:
    """Bytes per second of links side by side; those of one lane take turns, so its fastest counts."""
    lanes: dict[str, float] = {}
    for link in links:
        lanes[link.lane] = max(lanes.get(link.lane, 0.0), link.bytes_per_s)
    return sum(lanes.values())
