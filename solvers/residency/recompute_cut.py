"""Minimum cuts, and the cheapest way to have values again: hold them, or make them again from others.

Each value is held, at a price, or made again by its maker, at the maker's price, and then all that the maker reads must
be had in the same way. The least total is a minimum cut (a closure problem, Picard 1976; PyTorch's
`min_cut_rematerialization_partition` cuts the same graph with bytes alone).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

INFINITE = 1 << 100
"""A capacity that no sum of prices reaches: a step's activations may be terabytes, at a billion a byte."""


@dataclass(slots=True)
class Network:
    """A directed graph with integer capacities; edge 2k and 2k+1 are opposite."""

    nodes: int
    heads: list[int] = field(default_factory=list[int])
    left: list[int] = field(default_factory=list[int])
    edges_of: list[list[int]] = field(default_factory=list[list[int]])

    def __post_init__(self) -> None:
        self.edges_of = [[] for _ in range(self.nodes)]

    def add(self, tail: int, head: int, capacity: int) -> None:
        """An edge that lets `capacity` through."""
        self.edges_of[tail].append(len(self.heads))
        self.edges_of[head].append(len(self.heads) + 1)
        self.heads += [head, tail]
        self.left += [capacity, 0]


def minimum_cut(network: Network, source: int, sink: int) -> tuple[int, frozenset[int]]:
    """The value of a minimum cut, and the nodes on the side of the source. Dinic's algorithm (1970).

    Consumes the network's capacities. The side is the smallest one: nodes that unused capacity reaches.

    Raises:
        ValueError: every cut is infinite.
    """
    total = 0
    while True:
        level = _levels(network, source)
        if level[sink] < 0:
            return total, frozenset(n for n, depth in enumerate(level) if depth >= 0)
        total += _blocking_flow(network, level, source, sink)
        if total >= INFINITE:
            raise ValueError("no finite cut separates source and sink: some value can be neither held nor made again")


def _levels(network: Network, source: int) -> list[int]:
    level = [-1] * network.nodes
    level[source] = 0
    frontier = deque([source])
    while frontier:
        node = frontier.popleft()
        for e in network.edges_of[node]:
            if network.left[e] and level[network.heads[e]] < 0:
                level[network.heads[e]] = level[node] + 1
                frontier.append(network.heads[e])
    return level


def _blocking_flow(network: Network, level: list[int], source: int, sink: int) -> int:
    """Push along shortest paths until none is left, depth first, without recursion."""
    heads, left, edges_of = network.heads, network.left, network.edges_of
    at = [0] * network.nodes
    total, node = 0, source
    path: list[int] = []
    while True:
        if node == sink:
            pushed = min(left[e] for e in path)
            total += pushed
            for e in path:
                left[e] -= pushed
                left[e ^ 1] += pushed
            shortest = next(i for i, e in enumerate(path) if not left[e])
            node = heads[path[shortest] ^ 1]
            del path[shortest:]
            continue
        edges = edges_of[node]
        while at[node] < len(edges):
            e = edges[at[node]]
            if left[e] and level[heads[e]] == level[node] + 1:
                break
            at[node] += 1
        else:
            if not path:
                return total
            level[node] = -1
            node = heads[path.pop() ^ 1]
            continue
        path.append(e)
        node = heads[e]


@dataclass(frozen=True, slots=True)
class CutProblem:
    """Values and their makers. `hold[v]` is the price of holding value v; None: it cannot be held.

    `maker[v]` is the maker of v or -1, `price[m]` what making again costs, `reads[m]` the values that it needs.
    `needed` are the values that must be had. Prices are integers >= 0.

    Raises:
        ValueError: a negative price, or an index out of range.
    """

    hold: tuple[int | None, ...]
    maker: tuple[int, ...]
    price: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    needed: tuple[int, ...]

    def __post_init__(self) -> None:
        values, makers = len(self.hold), len(self.price)
        if len(self.maker) != values or len(self.reads) != makers:
            raise ValueError(f"{values} values have {len(self.maker)} makers; {makers} makers {len(self.reads)} reads")
        for v, (hold, maker) in enumerate(zip(self.hold, self.maker, strict=True)):
            if (hold is not None and hold < 0) or not -1 <= maker < makers:
                raise ValueError(f"value {v}: price {hold}, maker {maker} of {makers}; both must be in range")
        for m, (price, reads) in enumerate(zip(self.price, self.reads, strict=True)):
            if price < 0 or not all(0 <= v < values for v in reads):
                raise ValueError(f"maker {m}: price {price}, reads {reads} of {values} values; both must be in range")


def cheapest_makers(problem: CutProblem) -> tuple[int, frozenset[int]]:
    """The least price of having all that is needed, and the makers that are called again for it.

    Each value is an edge of the price of holding it, from the node of its maker (or the source) to its own node; each
    maker an edge of its price from the source; infinite edges lead from what a maker reads to the maker, and from what
    is needed to the sink. A maker on the side of the sink is called again, and with it, all it reads is had.

    Raises:
        ValueError: something that is needed can be neither held nor made again.
    """
    values, makers = len(problem.hold), len(problem.price)
    source, sink = values + makers, values + makers + 1
    network = Network(values + makers + 2)
    for v, (hold, maker) in enumerate(zip(problem.hold, problem.maker, strict=True)):
        network.add(source if maker < 0 else values + maker, v, INFINITE if hold is None else hold)
    for m, (price, reads) in enumerate(zip(problem.price, problem.reads, strict=True)):
        network.add(source, values + m, price)
        for v in reads:
            network.add(v, values + m, INFINITE)
    for v in problem.needed:
        network.add(v, sink, INFINITE)
    total, _ = minimum_cut(network, source, sink)
    again = reaching(network, sink)  # of equal cuts the one that makes least again
    return total, frozenset(m for m in range(makers) if values + m in again)


def reaching(network: Network, sink: int) -> frozenset[int]:
    """Nodes from which unused capacity leads to the sink: the smallest side of the sink."""
    seen = {sink}
    frontier = [sink]
    while frontier:
        node = frontier.pop()
        for e in network.edges_of[node]:
            tail = network.heads[e]
            if network.left[e ^ 1] and tail not in seen:
                seen.add(tail)
                frontier.append(tail)
    return frozenset(seen)
