"""Row-sparse feed-forward layers read from flash: the cost model of LLM in a flash (Alizadeh et al., 2023, arXiv
2312.11514).

A feed-forward layer of n neurons reads, for a neuron, one row of each of its input projections and one column of its
output projection. Where the activation function is zero for most neurons (ReLU), a token needs few of them.

- Section 3.1, windowing: the neurons of the last k tokens stay in memory. With S(k) the union of the active sets of the
  last k tokens, a token reads the |S(k + 1)| - |S(k)| neurons that are active and not in memory.
- Section 3.2, bundling: the row and the column of a neuron are stored together, so that a read brings
  `matrices` x d_model elements instead of d_model.
- Section 3.2 and figure 2b: a read of c bytes takes latency + c / bandwidth, so chunks of c bytes arrive at the rate
  c / (latency + c / bandwidth), which only large chunks bring near to the bandwidth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from ...ir.errors import InputError
from ...ir.machine import Link


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """A feed-forward layer of `neurons`, each with `matrices` vectors of `d_model` elements of `item_nbytes` bytes.

    That is two matrices, or three with a gate. `bundled` stores the vectors of a neuron together; else every matrix is
    stored by itself, by neuron, in the same order.
    """

    neurons: int
    d_model: int
    item_nbytes: int
    matrices: int = 2
    bundled: bool = True

    def __post_init__(self) -> None:
        if min(self.neurons, self.d_model, self.item_nbytes, self.matrices) < 1:
            raise InputError(f"a feed-forward layer with a size below 1: {self}")

    @property
    def neuron_nbytes(self) -> int:
        """Bytes of all vectors of a neuron."""
        return self.matrices * self.d_model * self.item_nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the layer."""
        return self.neurons * self.neuron_nbytes

    @property
    def regions(self) -> int:
        """Files, or parts of one, in which a neuron has a piece."""
        return 1 if self.bundled else self.matrices

    @property
    def piece_nbytes(self) -> int:
        """Bytes of a neuron's piece in each region."""
        return self.neuron_nbytes // self.regions


@dataclass(frozen=True, slots=True)
class WindowStep:
    """A token's neurons: those that it reads, and how many are in memory while it is computed."""

    loaded: frozenset[int]
    resident: int


@dataclass(frozen=True, slots=True)
class FlashCost:
    """What a sequence of tokens reads: bytes as asked for (blocks of the disk whole), bytes of neurons among them,
    requests, seconds; and the most bytes of neurons in memory at a time."""

    tokens: int
    read_nbytes: int
    needed_nbytes: int
    requests: int
    seconds: float
    resident_nbytes: int

    @property
    def token_s(self) -> float:
        """Mean seconds a token."""
        return self.seconds / self.tokens if self.tokens else 0.0

    @property
    def chunk_nbytes(self) -> float:
        """Mean bytes of a request."""
        return self.read_nbytes / self.requests if self.requests else 0.0


def read_rate(chunk_nbytes: float, link: Link) -> float:
    """Bytes per second of reads of `chunk_nbytes` one after the other (figure 2b)."""
    return chunk_nbytes / (link.latency_s + chunk_nbytes / link.bytes_per_s)


def windowed(active: Sequence[Set[int]], window: int) -> tuple[WindowStep, ...]:
    """What each token reads when the neurons of the `window` tokens before it are in memory; 0 keeps none.

    `active` are the neurons that each token needs. The first token finds an empty memory. While a token is computed,
    its own neurons and those of the window are in memory: S(k + 1).
    """
    if window < 0:
        raise InputError(f"a window of {window} tokens; give 0 or more")
    users: dict[int, int] = {}
    recent: deque[Set[int]] = deque()
    steps: list[WindowStep] = []
    for needed in active:
        loaded = frozenset(needed) - users.keys()
        _count(users, needed, 1)
        recent.append(needed)
        steps.append(WindowStep(loaded, len(users)))
        if len(recent) > window:
            _count(users, recent.popleft(), -1)
    return tuple(steps)


def _count(users: dict[int, int], neurons: Set[int], change: int) -> None:
    for n in neurons:
        left = users.get(n, 0) + change
        if left:
            users[n] = left
        else:
            del users[n]


def read_runs(
    positions: Iterable[int], piece_nbytes: int, *, alignment: int = 4096, bridge_nbytes: int = 0
) -> tuple[tuple[int, int], ...]:
    """Byte ranges [begin, end) to read for the pieces at these positions of a region, sorted and disjoint.

    Ranges are widened to `alignment`, which unbuffered reads ask for; those that then touch become one, and so do those
    with at most `bridge_nbytes` between them: reading what is not needed is faster than another request while it is
    less than latency x bandwidth.
    """
    runs: list[tuple[int, int]] = []
    for position in sorted(set(positions)):
        begin = position * piece_nbytes // alignment * alignment
        end = -(-(position + 1) * piece_nbytes // alignment) * alignment
        if runs and begin - runs[-1][1] <= bridge_nbytes:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end))
        else:
            runs.append((begin, end))
    return tuple(runs)


def flash_cost(
    layer: SparseLayer,
    active: Sequence[Set[int]],
    link: Link,
    *,
    window: int,
    order: Sequence[int] | None = None,
    alignment: int = 4096,
) -> FlashCost:
    """What the tokens with these active neurons read over `link`, requests one after the other.

    `order` lists the neurons as they are stored, by default by number: neurons that are active together are read
    together where they lie together. Gaps are read where that is faster than another request. Raises InputError for an
    order that does not list every neuron once, or an active neuron that the layer has not.
    """
    place = _places(layer, order)
    bridge = int(link.latency_s * link.bytes_per_s)
    steps = windowed(active, window)
    read = needed = requests = 0
    for step in steps:
        unknown = next((n for n in step.loaded if not 0 <= n < layer.neurons), None)
        if unknown is not None:
            raise InputError(f"neuron {unknown} is active; the layer has neurons 0 to {layer.neurons - 1}")
        positions = step.loaded if place is None else [place[n] for n in step.loaded]
        runs = read_runs(positions, layer.piece_nbytes, alignment=alignment, bridge_nbytes=bridge)
        requests += layer.regions * len(runs)
        read += layer.regions * sum(end - begin for begin, end in runs)
        needed += layer.neuron_nbytes * len(step.loaded)
    seconds = requests * link.latency_s + read / link.bytes_per_s
    resident = max((step.resident for step in steps), default=0) * layer.neuron_nbytes
    return FlashCost(len(steps), read, needed, requests, seconds, resident)


def dense_cost(layer: SparseLayer, tokens: int, link: Link) -> FlashCost:
    """The same without sparsity: every token reads the whole layer in requests of the link's chunk."""
    requests = tokens * -(-layer.nbytes // link.chunk_nbytes)
    nbytes = tokens * layer.nbytes
    seconds = requests * link.latency_s + nbytes / link.bytes_per_s
    return FlashCost(tokens, nbytes, nbytes, requests, seconds, layer.nbytes if tokens else 0)


def _places(layer: SparseLayer, order: Sequence[int] | None) -> dict[int, int] | None:
    if order is None:
        return None
    place = {neuron: k for k, neuron in enumerate(order)}
    if len(order) != layer.neurons or place.keys() != set(range(layer.neurons)):
        raise InputError(
            f"an order of {len(order)} neurons, {len(place)} of them different; the layer has {layer.neurons}: list "
            "each once"
        )
    return place
