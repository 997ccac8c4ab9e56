"""Which engine solves a program, by name or by its size; and integer programs whose answer does not hang on tolerances.

What was measured decides: seconds for residency programs of the zoo on one busy core, whole tensors to a gap of 0.1%
within 20 s ('-': no proof in time, and how far above the bound the answer is):

    graph               entries   LP: HiGHS   GLOP    CBC   whole: HiGHS   CBC    CP-SAT
    30 random steps         959        0.07   0.28   0.29
    gpt2, 40%            10,023        0.20   1.01   1.35           0.59   1.27   - 0%
    llama-1b, 20%        14,747        0.79   2.62   4.66           1.91   4.07   - 12%
    resnet50-train, 60%  37,138        4.99  13.46   9.48           18.5   - 0%   - 1%
    gpt2-train, 60%      41,353        9.91  22.02  32.16           17.9   - 0%   - 0%

So 'auto' is HiGHS at every size, and CP-SAT where HiGHS breaks down on an integer program: no other is the faster one
anywhere. HiGHS also keeps its basis when the objective changes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .cbc import solve_cbc
from .cpsat import solve_cpsat
from .linear import Floats, Highs, Indices, LinearAnswer, LinearProgram
from .result import Status

AUTO = "auto"
NAMES = (AUTO, "highs", "glop", "cbc", "cpsat")
"""What a user may ask for. Each solves what it can, HiGHS the rest: GLOP knows no whole numbers, CP-SAT no others."""

Hint = tuple[Indices, Floats]
WholeEngine = Callable[[LinearProgram, float, Hint | None, float], LinearAnswer]
"""Of a program, seconds, a hint, and the gap (absolute, of the objective) at which the search may end."""

SMALL_SHARE = 1e-2
"""An answer below this share of what a column could add is looked for again: tolerances are worth too much of it."""

ROW_TOLERANCE = 1e-6
"""By what share of its terms' sizes an engine may miss a row that has continuous columns."""


def linear_engine(name: str) -> str:
    """The engine of linear programs that `name` stands for: one of `linear.ENGINES`.

    Raises ValueError for a name that is none of `NAMES`.
    """
    _require(name)
    return name if name in ("highs", "glop", "cbc") else "highs"


def whole_engines(name: str) -> tuple[str, ...]:
    """The engines of integer programs that `name` stands for, of `WHOLE`: another only where the first breaks down.

    Raises ValueError for a name that is none of `NAMES`.
    """
    _require(name)
    return (name,) if name in WHOLE else ("highs", "cpsat")


def _require(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"engine {name!r} is unknown; choose one of {', '.join(NAMES)}")


def _highs(program: LinearProgram, time_limit_s: float, hint: Hint | None, gap: float) -> LinearAnswer:
    highs = Highs(program)
    for option, value in (
        ("mip_rel_gap", 0.0),
        ("mip_abs_gap", gap),
        ("mip_feasibility_tolerance", 1e-9),
        ("primal_feasibility_tolerance", 1e-9),
    ):
        highs.option(option, value)
    if hint is not None:
        highs.hint(*hint)
    return highs.solve(time_limit_s)


WHOLE: dict[str, WholeEngine] = {
    "highs": _highs,
    "cbc": lambda program, time_limit_s, hint, gap: solve_cbc(program, time_limit_s),
    "cpsat": lambda program, time_limit_s, hint, gap: solve_cpsat(program, time_limit_s, hint),
}


def solve_whole(
    program: LinearProgram, engine: str, time_limit_s: float, *, hint: Hint | None = None, gap: float = 0.0
) -> LinearAnswer:
    """Solve an integer program by one of `NAMES`; what is called optimal is, whatever the size of its coefficients.

    Engines compare objectives by absolute tolerances, so the objective is brought to a size: costs are divided by what
    the dearest column could add, and the search is repeated where its answer is small beside that, without what would
    cost more than the answer by itself. Whole columns of an answer are rounded, the others solved again with these
    fixed, and every row is looked at: an answer that does not hold is an ERROR. OPTIMAL: the objective is within `gap`
    of the bound, or within 1e-6 of it. `hint`: values of all whole columns, which are an answer if they hold.
    """
    deadline = time.monotonic() + time_limit_s
    program = _row_scaled(program)
    answer = LinearAnswer(Status.UNKNOWN, None, None)
    for one in whole_engines(engine):
        answer = _solve(program, one, deadline, hint, gap)
        if answer.status is not Status.ERROR:
            break
    return answer


def _solve(program: LinearProgram, engine: str, deadline: float, hint: Hint | None, gap: float) -> LinearAnswer:
    """By one engine, again and again while its answer is small beside what the columns left could cost."""
    best = _from_hint(program, hint, deadline) if hint is not None else None
    left = program if best is None else _without_dearer(program, best)
    while True:
        largest = _most_added(left)
        scaled = replace(left, cost=left.cost / largest)
        answer = _guarded(engine, scaled, deadline - time.monotonic(), hint, gap / largest)
        answer = _checked(program, answer, largest, gap, deadline)
        if best is not None:
            answer = _with_known(program, best, answer, gap)
        if answer.status is not Status.OPTIMAL:
            return answer
        best = answer
        narrower = _without_dearer(left, answer)
        if not 0 < _most_added(narrower) <= SMALL_SHARE * largest:
            return answer
        left = narrower


def _with_known(program: LinearProgram, known: LinearAnswer, answer: LinearAnswer, gap: float) -> LinearAnswer:
    """What is known after a run among what costs no more than `known`: the cheaper answer, and the higher bound.

    An engine that calls this infeasible is disproved by `known` itself, which is among it.
    """
    assert known.values is not None
    least = float(program.cost @ known.values)
    cheaper = answer.values is not None and float(program.cost @ answer.values) <= least
    if cheaper and answer.status is Status.OPTIMAL:
        return answer
    detail = answer.detail
    if answer.status is Status.INFEASIBLE:
        detail = f"an engine calls infeasible what has an answer: {detail}"
    values = answer.values if cheaper else known.values
    assert values is not None
    objective = float(program.cost @ values)
    bounds = [b for b in (known.bound, None if answer.bound is None else min(answer.bound, least)) if b is not None]
    bound = min(max(bounds), objective) if bounds else None
    proven = bound is not None and objective - bound <= max(gap, 1e-6 * abs(objective))
    return LinearAnswer(Status.OPTIMAL if proven else Status.FEASIBLE, values, None, bound, detail)


def _row_scaled(program: LinearProgram) -> LinearProgram:
    """The same program with the largest coefficient of each row within a factor of two of 1, by powers of two."""
    largest = np.zeros(len(program.row_lower))
    np.maximum.at(largest, program.rows_of_entries, np.abs(program.values))
    factor = np.exp2(-np.floor(np.log2(np.where(largest > 0, largest, 1.0))))
    return replace(
        program,
        row_lower=program.row_lower * factor,
        row_upper=program.row_upper * factor,
        values=program.values * factor[program.rows_of_entries],
    )


def _from_hint(program: LinearProgram, hint: Hint, deadline: float) -> LinearAnswer | None:
    """The hint as an answer; None if it is none."""
    values = np.where(np.isfinite(program.col_lower), program.col_lower, 0.0)
    values[hint[0]] = hint[1]
    answer = _checked(program, LinearAnswer(Status.FEASIBLE, values, None), 1.0, 0.0, deadline)
    return answer if answer.values is not None else None


def _most_added(program: LinearProgram) -> float:
    """What the dearest column may add to the objective beyond the least it must; the largest cost where that has no
    limit, 1 where there is nothing to add."""
    with np.errstate(invalid="ignore"):
        added = np.abs(program.cost) * (program.col_upper - program.col_lower)
    added = np.where(program.cost != 0, added, 0.0)
    finite = added[np.isfinite(added) & (added > 0)]
    if np.isinf(added).any() or not len(finite):
        return float(np.abs(program.cost).max(initial=0.0)) or 1.0
    return float(finite.max())


def _without_dearer(program: LinearProgram, answer: LinearAnswer) -> LinearProgram:
    """`program` with limits that nothing better than `answer` passes, by each column's own cost."""
    assert program.integer is not None
    assert answer.values is not None
    cheap = np.where(program.cost >= 0, program.col_lower, program.col_upper)
    least = math.fsum((program.cost * np.where(program.cost != 0, cheap, 0.0)).tolist())
    if not math.isfinite(least):
        return program
    excess = max(0.0, float(program.cost @ answer.values) - least) * (1 + 1e-9)
    reach = np.full(len(program.cost), math.inf)
    priced = program.cost != 0
    reach[priced] = excess / np.abs(program.cost[priced])
    reach = np.where(program.integer, np.floor(reach + 1e-6), reach)
    upper = np.where(program.cost > 0, np.minimum(program.col_upper, program.col_lower + reach), program.col_upper)
    lower = np.where(program.cost < 0, np.maximum(program.col_lower, program.col_upper - reach), program.col_lower)
    return replace(program, col_lower=lower, col_upper=upper)


def _guarded(engine: str, program: LinearProgram, time_limit_s: float, hint: Hint | None, gap: float) -> LinearAnswer:
    """An engine that raises has broken down."""
    if time_limit_s <= 0:
        return LinearAnswer(Status.UNKNOWN, None, None, detail="time ran out")
    try:
        return WHOLE[engine](program, time_limit_s, hint, gap)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        return LinearAnswer(Status.ERROR, None, None, detail=f"{engine} broke down: {type(error).__name__}: {error}")


def _checked(program: LinearProgram, answer: LinearAnswer, scale: float, gap: float, deadline: float) -> LinearAnswer:
    """An answer to the program with costs over `scale` as one to the program itself; an ERROR if it does not hold."""
    bound = None if answer.bound is None or not math.isfinite(answer.bound) else answer.bound
    if bound is not None:
        bound = (bound - 1e-9 * max(1.0, abs(bound))) * scale  # the engine's own floats
    if answer.values is None:
        return replace(answer, bound=bound)
    values = _settled(program, answer.values, deadline)
    wrong = _broken_row(program, values) if values is not None else "with whole numbers as they are, no others fit"
    if values is None or wrong:
        return LinearAnswer(Status.ERROR, None, None, bound, f"the engine's answer does not hold: {wrong}")
    objective = float(program.cost @ values)
    far = bound is None or objective - bound > max(gap, 1e-6 * abs(objective), 1e-8 * scale)
    status = Status.FEASIBLE if far and answer.status is Status.OPTIMAL else answer.status
    return LinearAnswer(status, values, None, bound, answer.detail)


def _settled(program: LinearProgram, values: Floats, deadline: float) -> Floats | None:
    """Whole columns made whole, the others solved again under these; None where there are none."""
    assert program.integer is not None
    whole = np.round(values)
    if program.integer.all():
        return whole
    lower = np.where(program.integer, whole, program.col_lower)
    upper = np.where(program.integer, whole, program.col_upper)
    fixed = replace(program, col_lower=lower, col_upper=upper, integer=None)
    found = Highs(fixed).solve(max(1.0, deadline - time.monotonic()))
    return found.values if found.status is Status.OPTIMAL else None


def _broken_row(program: LinearProgram, values: Floats) -> str:
    """The first row that `values` miss by more than rounding, or than `ROW_TOLERANCE` where columns are continuous."""
    assert program.integer is not None
    rows, count = program.rows_of_entries, len(program.row_lower)
    terms = program.values * values[program.indices]
    sums = np.bincount(rows, weights=terms, minlength=count)
    sizes = np.bincount(rows, weights=np.abs(terms), minlength=count)
    mixed = np.bincount(rows, weights=~program.integer[program.indices], minlength=count) > 0
    slack = sizes * np.where(mixed, ROW_TOLERANCE, 1e-14) + np.where(mixed, ROW_TOLERANCE, 0.0)
    for i in np.flatnonzero((sums < program.row_lower - slack) | (sums > program.row_upper + slack)).tolist():
        return f"row {i} is {sums[i]:.17g}, outside [{program.row_lower[i]:.17g}, {program.row_upper[i]:.17g}]"
    return ""
