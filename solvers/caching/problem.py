"""What is asked of caches, and how a policy fared: arrays, nothing of models.

A *round* is a token, or a request of a server; in each round every cache (a layer) is asked for a *set* of objects (its
experts) at once. That is an *event*: the whole set is looked up against what the cache holds, what is missing is
loaded, and only then, with the set itself protected, objects are evicted until the rest fits. Looking the objects of a
set up one after the other would let the first miss of a set evict what its last member needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]
Counts = NDArray[np.int32]
Floats = NDArray[np.float64]
Gates = NDArray[np.float32]
Flags = NDArray[np.bool_]

NONE = -1
"""In `Requests.ids`: no object. A set smaller than the widest one is filled up with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Sets of objects that are asked for, and the objects' sizes.

    `ids` is int32 [rounds, caches, width], `NONE` where a set is smaller; the order within a set is the order of rank,
    the most important first. `sizes` is int64 [caches, objects], in bytes or in any other unit, at least 1. `gates`
    (float32, shaped as `ids`) says how much each object matters in its set. `begins` (bool [rounds]) marks rounds
    before which all caches are emptied.
    """

    ids: Ids
    sizes: Ints
    gates: Gates | None = None
    begins: Flags | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for ids outside the objects, for one twice in a set, and for shapes that disagree."""
        if self.ids.ndim != 3 or self.sizes.ndim != 2 or self.sizes.shape[0] != self.ids.shape[1]:
            raise ValueError(f"ids {self.ids.shape} and sizes {self.sizes.shape} are not of the same caches")
        if self.ids.size and (int(self.ids.min()) < NONE or int(self.ids.max()) >= self.objects):
            raise ValueError(f"ids {self.ids.min()} to {self.ids.max()} are not among {self.objects} objects")
        if self.sizes.size and int(self.sizes.min()) < 1:
            raise ValueError(f"an object has size {self.sizes.min()}; the least is 1")
        if self.gates is not None and self.gates.shape != self.ids.shape:
            raise ValueError(f"gates {self.gates.shape} and ids {self.ids.shape} have different shapes")
        for i in range(self.width):
            for j in range(i):
                if bool(np.any((self.ids[:, :, i] == self.ids[:, :, j]) & (self.ids[:, :, i] != NONE))):
                    raise ValueError("an object stands twice in one set")

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.ids.shape[0]

    @property
    def caches(self) -> int:
        """Number of caches, each with objects of its own."""
        return self.ids.shape[1]

    @property
    def width(self) -> int:
        """Objects in the largest set."""
        return self.ids.shape[2]

    @property
    def objects(self) -> int:
        """Objects of each cache."""
        return self.sizes.shape[1]

    def least_capacity(self) -> Ints:
        """What each cache needs to hold its largest set: int64 [caches]."""
        return np.array([_set_sizes(self, c).max(initial=0) for c in range(self.caches)], dtype=np.int64)

    def capacities(self, capacity: int | Ints) -> Ints:
        """One capacity for each cache. Raises ValueError where it holds less than some set.

        A number is taken to be no larger than twice all objects of a cache: what is larger changes nothing.
        """
        if isinstance(capacity, int):
            capacity = min(capacity, 2 * int(self.sizes.sum(axis=1).max(initial=0)))
        found = np.broadcast_to(np.asarray(capacity, dtype=np.int64), (self.caches,)).copy()
        least = self.least_capacity()
        for c in np.flatnonzero(found < least).tolist():
            raise ValueError(f"cache {c} holds {found[c]}, less than the {least[c]} of one set")
        return found

    def resets(self) -> Flags:
        """`begins`, or nowhere."""
        return np.zeros(self.rounds, dtype=np.bool_) if self.begins is None else self.begins

    def unit_sized(self) -> bool:
        """Whether all objects have one size."""
        return bool(np.all(self.sizes == self.sizes.flat[0])) if self.sizes.size else True


def _set_sizes(requests: Requests, cache: int) -> Ints:
    """Size of the set of each round of one cache."""
    ids = requests.ids[:, cache]
    return np.where(ids == NONE, 0, requests.sizes[cache][ids]).sum(axis=1)


def one_cache(ids: Ids, sizes: Ints) -> Requests:
    """Requests of a single cache: `ids` [events, width], `sizes` [objects]."""
    return Requests(ids[:, None, :].astype(np.int32), np.asarray(sizes, dtype=np.int64)[None, :])


def pooled(requests: Requests) -> Requests:
    """The same events in the same order before one cache that holds the objects of all.

    Object o of cache c becomes c * objects + o; each event is a round of its own.
    """
    shift = (np.arange(requests.caches, dtype=np.int32) * requests.objects)[None, :, None]
    ids = np.where(requests.ids == NONE, NONE, requests.ids + shift).astype(np.int32)
    flat = ids.reshape(requests.rounds * requests.caches, 1, requests.width)
    gates = None if requests.gates is None else requests.gates.reshape(flat.shape)
    begins = None
    if requests.begins is not None:
        begins = np.zeros(flat.shape[0], dtype=np.bool_)
        begins[:: requests.caches] = requests.begins
    return Requests(flat, requests.sizes.reshape(1, -1), gates, begins)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How a policy fared, event by event.

    `hits` and `asked` are int32 [rounds, caches]: objects found, and objects asked for. `loaded` (int64, the same
    shape) is the size of all that was brought in at an event or ahead of it, and `ahead` the part of it that was
    brought in unasked. A load is counted whether or not it was of use.
    """

    hits: Counts
    asked: Counts
    loaded: Ints
    ahead: Ints

    def hit_rate(self, rounds: slice = slice(None)) -> float:
        """Objects found among those asked for, in some rounds. 0.0 where nothing was asked for."""
        asked = int(self.asked[rounds].sum())
        return int(self.hits[rounds].sum()) / asked if asked else 0.0


def asked(requests: Requests) -> Counts:
    """Objects asked for: int32 [rounds, caches]."""
    return (requests.ids != NONE).sum(axis=2).astype(np.int32)


def gap_closed(rate: float, floor: float, ceiling: float) -> float:
    """The share of the way from `floor` (LRU's hit rate) to `ceiling` (Belady's); 0.0 where the two are equal."""
    return (rate - floor) / (ceiling - floor) if ceiling > floor else 0.0
