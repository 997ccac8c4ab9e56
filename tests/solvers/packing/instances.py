"""Packing problems made at random, with what is known about them."""

from __future__ import annotations

import random

from tensorstow.solvers.packing import Body, Box, PackingProblem


def body(start: int, end: int, nbytes: int, alignment: int = 1, fixed: int | None = None) -> Body:
    """One box at its own addresses."""
    return Body((Box(start, end, 0, nbytes),), alignment, fixed)


def cut_rectangle(bodies: int, seed: int, *, capacity: int = 1 << 20, dropped: float = 0.0) -> PackingProblem:
    """A rectangle (time x addresses) cut into pieces by full cuts, the largest piece first, in shuffled order.

    Without `dropped` (the fraction of pieces taken out again) every instant is full: the least peak is `capacity`, and
    a packing that reaches it wastes nothing anywhere.
    """
    rng = random.Random(seed)
    pieces = [(0, 16 * bodies, 0, capacity // 1024)]
    while len(pieces) < bodies:
        index = max(range(len(pieces)), key=lambda i: rng.random() ** 0.5 * _area(pieces[i]))
        start, end, lo, hi = pieces.pop(index)
        if end - start >= 2 and (hi - lo < 2 or rng.random() < 0.5):
            cut = rng.randrange(start + 1, end)
            pieces += [(start, cut, lo, hi), (cut, end, lo, hi)]
        elif hi - lo >= 2:
            cut = rng.randrange(lo + 1, hi)
            pieces += [(start, end, lo, cut), (start, end, cut, hi)]
        else:
            pieces.append((start, end, lo, hi))
    rng.shuffle(pieces)
    kept = pieces[: len(pieces) - int(dropped * len(pieces))]
    return PackingProblem(tuple(Body((Box(a, b, 0, 1024 * (hi - lo)),)) for a, b, lo, hi in kept), capacity=capacity)


def _area(piece: tuple[int, int, int, int]) -> int:
    start, end, lo, hi = piece
    return (end - start) * (hi - lo)


def network(bodies: int, seed: int) -> PackingProblem:
    """Lifetimes as in networks: most short, some across, with few distinct sizes; no capacity."""
    rng = random.Random(seed)
    sizes = [1024 * rng.randrange(1, 200) for _ in range(12)]
    made: list[Body] = []
    for _ in range(bodies):
        start = rng.randrange(4 * bodies)
        span = rng.randrange(1, 12) if rng.random() < 0.7 else rng.randrange(10, bodies)
        made.append(Body((Box(start, start + span, 0, rng.choice(sizes)),)))
    return PackingProblem(tuple(made))


def crowded(bodies: int, seed: int, *, alike: int = 1, at: int = 0) -> list[Body]:
    """Bodies of two-digit sizes within 18 instants from `at`, in groups of up to `alike` equal ones."""
    rng = random.Random(seed)
    made: list[Body] = []
    for _ in range(bodies // alike):
        start = at + rng.randrange(12)
        body = Body((Box(start, start + rng.randrange(1, 7), 0, rng.randrange(10, 60)),))
        made += [body] * rng.randrange(1, alike + 1)
    return made
