"""Fewest off-chip bytes for one pass over a graph: the problem and its solution, in integers.

Li, Gupta and Malik, "Combined Scheduling, Memory Allocation and Tensor Replacement for Minimizing Off-Chip Data
Accesses of DNN Accelerators" (COSMA), arXiv 2311.18246. Step t is the t-th operator call; instant t is the moment
before it, instant T the end of the pass. Bytes move at instants; what is on chip in a step occupies its room in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise


class Begin(str, Enum):
    """Where a tensor is when the pass begins.

    MADE: nowhere, an operator makes it. BELOW: off chip. ARRIVES: written on chip from outside, present in the first
    step, without a copy below. FAST: on chip without a copy below. BOTH: on chip with one.
    """

    MADE = "made"
    BELOW = "below"
    ARRIVES = "arrives"
    FAST = "fast"
    BOTH = "both"


class End(str, Enum):
    """Where a tensor must be when the pass ends.

    FREE: anywhere. BELOW: off chip (or in both). FAST: on chip, in the last step too. BOTH: on chip like that, with a
    good copy below. ALIVE: on chip or below, and if it is not on chip the load that later steps need is charged to this
    pass: that makes a pass of a longer order whose rest is planned afterwards.
    """

    FREE = "free"
    BELOW = "below"
    FAST = "fast"
    BOTH = "both"
    ALIVE = "alive"


@dataclass(frozen=True, slots=True)
class Tensor:
    """`nbytes` are moved whenever it is loaded or stored; `room_nbytes` are occupied on chip (None: as many). Where
    addresses are decided they are multiples of `alignment`."""

    nbytes: int
    begins: Begin = Begin.MADE
    ends: End = End.FREE
    room_nbytes: int | None = None
    alignment: int = 1

    @property
    def room(self) -> int:
        """Bytes that it occupies on chip."""
        return self.nbytes if self.room_nbytes is None else self.room_nbytes


@dataclass(frozen=True, slots=True)
class Operator:
    """Indices of the tensors that it reads and of those that it writes. All of them are on chip while it runs."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def touches(self) -> frozenset[int]:
        """Tensors that it reads or writes."""
        return frozenset(self.inputs) | frozenset(self.outputs)


@dataclass(frozen=True)
class TrafficProblem:
    """Run every operator once, one in each step, with the fewest bytes loaded and stored.

    An operator runs after those that write what it reads; `precedence` adds pairs (before, after). A tensor that
    several operators write is written in the order of their indices. The first of them makes one that is nowhere when
    the pass begins; every other write changes what is on chip by then, in whole or in part, so that it must have been
    kept or loaded, and leaves the copy below outdated. `order` fixes the order. `offsets`: addresses are decided too,
    below `capacity_nbytes`; a tensor keeps its address while it stays. `cyclic`: passes follow one another, and a
    tensor that begins below begins as the pass before left it: on chip, with a good copy below, or both. One that is
    written then need not go below in every pass: of `End.BELOW` and `End.BOTH` nothing is asked but that it is there.
    `one_way`: nothing can be stored.

    Raises:
        ValueError: indices that do not exist, negative numbers, a tensor that nothing makes, an order that is none.
    """

    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    capacity_nbytes: int
    precedence: tuple[tuple[int, int], ...] = ()
    order: tuple[int, ...] | None = None
    offsets: bool = False
    cyclic: bool = False
    one_way: bool = False

    def __post_init__(self) -> None:
        if self.capacity_nbytes < 0:
            raise ValueError(f"negative capacity {self.capacity_nbytes}")
        for i, tensor in enumerate(self.tensors):
            if tensor.nbytes < 0 or tensor.room < 0 or tensor.alignment < 1:
                raise ValueError(
                    f"tensor {i}: {tensor.nbytes} bytes in {tensor.room} at multiples of {tensor.alignment}; sizes are "
                    "0 or more, alignments 1 or more"
                )
        for o, operator in enumerate(self.operators):
            wrong = [i for i in operator.touches if not 0 <= i < len(self.tensors)]
            if wrong:
                raise ValueError(f"operator {o} names tensor {wrong[0]}; there are {len(self.tensors)}")
            for i in operator.inputs:
                if self.tensors[i].begins is Begin.MADE and not self.writers[i]:
                    raise ValueError(f"operator {o} reads tensor {i}, which is neither there nor made by any operator")
        wrong_pairs = [p for p in self.precedence if not all(0 <= o < len(self.operators) for o in p)]
        if wrong_pairs:
            raise ValueError(f"precedence {wrong_pairs[0]} names an operator of {len(self.operators)}")
        sorter: TopologicalSorter[int] = TopologicalSorter()
        for a, b in self.before:
            sorter.add(b, a)
        try:
            sorter.prepare()
        except CycleError as error:
            raise ValueError(f"operators {error.args[1]} must each run before the next, which is a circle") from error
        if self.order is not None:
            self._check_order(self.order)

    def _check_order(self, order: tuple[int, ...]) -> None:
        if sorted(order) != list(range(len(self.operators))):
            raise ValueError(
                f"the order has {len(order)} entries, not each of the {len(self.operators)} operators once"
            )
        place = {o: t for t, o in enumerate(order)}
        for a, b in self.before:
            if place[a] >= place[b]:
                raise ValueError(f"the order runs operator {b} in step {place[b]}, before operator {a} that it needs")

    @property
    def steps(self) -> int:
        """Number of steps of a pass."""
        return len(self.operators)

    @cached_property
    def writers(self) -> tuple[tuple[int, ...], ...]:
        """Operators that write each tensor, ascending."""
        found: list[list[int]] = [[] for _ in self.tensors]
        for o, operator in enumerate(self.operators):
            for i in sorted(set(operator.outputs)):
                found[i].append(o)
        return tuple(tuple(w) for w in found)

    def maker(self, i: int) -> int | None:
        """The operator that brings tensor i into being, None for one that is there from the beginning."""
        return self.writers[i][0] if self.tensors[i].begins is Begin.MADE and self.writers[i] else None

    def wraps(self, i: int) -> bool:
        """Whether tensor i begins as the pass before left it."""
        return self.cyclic and self.tensors[i].begins is Begin.BELOW

    @cached_property
    def before(self) -> frozenset[tuple[int, int]]:
        """Pairs (a, b) of operators: a runs before b. A reader that also stands among the writers follows the writers
        of lower index only; one that `precedence` puts before a writer follows those before that one, whose result it
        reads; a tensor that is there from the beginning may be read before it is written."""
        pairs = set(self.precedence)
        followers: dict[int, set[int]] = {}
        for a, b in self.precedence:
            followers.setdefault(a, set()).add(b)
        for writers in self.writers:
            pairs.update(pairwise(writers))
        for o, operator in enumerate(self.operators):
            for i in operator.inputs:
                own = o in self.writers[i]
                if self.tensors[i].begins is Begin.MADE:
                    later = followers.get(o, set[int]())
                    end = next((n for n, w in enumerate(self.writers[i]) if n and w in later), None)
                    pairs.update((w, o) for w in self.writers[i][:end] if w < o or (w != o and not own))
        return frozenset(pairs)


@dataclass(frozen=True, slots=True)
class TrafficSolution:
    """`order`: operators by step. `present`: per step the tensors on chip, ascending. `loads` and `stores`: per instant
    0..T the tensors moved. `at_end`: what is on chip after the pass. `offsets`: per step the addresses of `present`,
    None where they were not decided."""

    order: tuple[int, ...]
    present: tuple[tuple[int, ...], ...]
    loads: tuple[tuple[int, ...], ...]
    stores: tuple[tuple[int, ...], ...]
    at_end: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...] | None = None
