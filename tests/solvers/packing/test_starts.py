"""Earlier packings as a start: what is right is never made worse, and offsets stay where they can."""

from __future__ import annotations

import random

import pytest

from tensorstow.solvers.packing import Body, Box, PackingProblem, check_packing, load_bound, pack
from tensorstow.solvers.result import Status

from .instances import crowded, cut_rectangle


def body(start: int, end: int, nbytes: int, alignment: int = 1, fixed: int | None = None) -> Body:
    return Body((Box(start, end, 0, nbytes),), alignment, fixed)


def packed(problem: PackingProblem) -> tuple[int, ...]:
    """The offsets of a good packing: no first fit is as low."""
    best = pack(problem, time_limit_s=60.0).solution
    plain = pack(PackingProblem(problem.bodies), time_limit_s=0.0).solution
    assert best is not None
    assert plain is not None
    assert best.peak < plain.peak
    return best.offsets


def test_a_start_between_the_units_is_a_packing_too() -> None:
    """Three bytes at the bottom are gone; what lay above them does not begin at a multiple of its size's unit."""
    problem = cut_rectangle(40, 3)
    start = tuple(offset + 3 for offset in packed(problem))
    for capacity in (None, (1 << 20) + 3):
        result = pack(PackingProblem(problem.bodies, capacity), start=start, time_limit_s=0.0)
        assert result.solution is not None
        assert result.solution.offsets == start
        assert result.method == "start"


def test_offsets_between_the_units_are_kept_one_by_one() -> None:
    problem = cut_rectangle(40, 3)
    start: list[int | None] = [offset + 3 for offset in packed(problem)]
    start[7] = None
    result = pack(PackingProblem(problem.bodies, 2 << 20), start=start, time_limit_s=0.0)
    assert result.solution is not None
    assert [o for i, o in enumerate(result.solution.offsets) if i != 7] == [o for i, o in enumerate(start) if i != 7]


def test_parts_below_the_peak_are_not_moved_in_vain() -> None:
    """No first fit lowers the highest part, and lowering the other is of no use."""
    tall = cut_rectangle(40, 3)
    low = tuple(body(10_000 + 3 * i, 10_004 + 3 * i, 1 << 18) for i in range(6))
    problem = PackingProblem((*tall.bodies, *low))
    above = (1 << 20) + 2048 - (1 << 18)
    start = (*(offset + 4096 for offset in packed(tall)), *(i % 2 * above for i in range(6)))
    result = pack(problem, start=start, time_limit_s=0.0)
    assert result.solution is not None
    assert load_bound(problem) == 1 << 20
    assert result.solution.peak == (1 << 20) + 4096
    assert result.solution.offsets == start


@pytest.mark.parametrize("seed", range(8))
def test_no_start_that_fits_is_made_worse(seed: int) -> None:
    """Several parts, sizes of any unit, gaps below everything; a body that is fixed, one without bytes."""
    rng = random.Random(seed)
    bodies = [b for k in range(3) for b in crowded(12, seed + k, at=40 * k)]
    free = PackingProblem((*bodies, body(0, 2, 0)))
    offsets = [o + rng.randrange(5) for o in packed_one_by_one(free)]
    bodies[0] = body(bodies[0].boxes[0].start, bodies[0].boxes[0].end, bodies[0].boxes[0].hi, fixed=offsets[0])
    problem = PackingProblem((*bodies, body(0, 2, 0)))
    peak = max(o + b.boxes[0].hi for o, b in zip(offsets, problem.bodies, strict=True))
    result = pack(problem, start=offsets, time_limit_s=0.0)
    assert result.solution is not None
    assert result.solution.peak <= peak
    if result.solution.peak == peak:
        assert result.solution.offsets == tuple(offsets)
    within = pack(PackingProblem(problem.bodies, peak), start=offsets, time_limit_s=0.0)
    assert within.solution is not None
    assert within.solution.offsets == tuple(offsets)


def packed_one_by_one(problem: PackingProblem) -> list[int]:
    """Every body above all that it meets, with room for a few bytes between them."""
    offsets: list[int] = []
    for i, b in enumerate(problem.bodies):
        box = b.boxes[0]
        below = (
            offsets[j] + other.boxes[0].hi + 5
            for j, other in enumerate(problem.bodies[:i])
            if other.boxes[0].start < box.end and box.start < other.boxes[0].end
        )
        offsets.append(max(below, default=0))
    return offsets


@pytest.mark.parametrize("far", [10**20, 2**63 - 1, 2**63 - 8, 2**62, 2**61])
def test_a_start_beyond_all_memory_is_no_start(far: int) -> None:
    problem = PackingProblem((body(0, 4, 7), body(0, 4, 16), body(2, 6, 8)))
    for start in ([far, 0, 16], [far, far, None], [far, far + 16, far + 32], [far, far, far]):
        result = pack(problem, start=start)
        assert result.solution is not None
        assert check_packing(problem, result.solution) == ()
        assert result.solution.peak == load_bound(problem)
        assert result.status == Status.OPTIMAL
