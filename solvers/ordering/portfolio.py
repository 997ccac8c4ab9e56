"""Orders worth trying, by name, each valid and no two the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from .depth import from_inputs, from_outputs
from .exact import solve_exact
from .lists import backward_list_order, list_order, lookahead_order
from .problem import Order, OrderingProblem, excess, peak
from .search import improve

WINDOWS = (8, 32, 128)
LOOKAHEAD_OPERATORS = 5_000
"""Looking ahead costs some hundred keys an operator; above this the other schedules must do."""
EXACT_OPERATORS = 2_000
"""Sets of operators are numbers of so many bits."""


def simple_orders(
    problem: OrderingProblem, windows: tuple[int, ...] = WINDOWS, *, time_limit_s: float = math.inf
) -> dict[str, Order]:
    """Orders that take O(n log n) each, the program's first; that alone where there is no other. Once time is out no
    more are begun."""
    found: dict[str, Order] = {"program": tuple(range(problem.steps))}
    deadline = time.monotonic() + time_limit_s
    for name, make in _schedules(problem, windows).items():
        if problem.fixed or time.monotonic() > deadline:
            break
        order = make()
        if order not in found.values():
            found[name] = order
    return found


def _schedules(problem: OrderingProblem, windows: tuple[int, ...]) -> dict[str, Callable[[], Order]]:
    """What makes each simple order, those that have been best most often first."""
    made: dict[str, Callable[[], Order]] = {
        "list": partial(list_order, problem),
        "backward list": partial(backward_list_order, problem),
        "depth first by need": partial(from_outputs, problem, by_need=True),
    }
    if problem.steps <= LOOKAHEAD_OPERATORS:
        made["look-ahead"] = partial(lookahead_order, problem)
    for window in windows:
        if window < problem.steps:
            made[f"list within {window}"] = partial(list_order, problem, window)
    made["depth first from the outputs"] = partial(from_outputs, problem)
    made["depth first from the inputs"] = partial(from_inputs, problem)
    return made


def portfolio(
    problem: OrderingProblem,
    *,
    windows: tuple[int, ...] = WINDOWS,
    above_nbytes: int | None = None,
    time_limit_s: float = 5.0,
    seed: int = 0,
) -> dict[str, Order]:
    """`simple_orders`; the one of least peak, proven where there are few downsets ("least peak") and searched for where
    there are many ("searched"); and the best of all of them improved for fewer bytes above a level ("fewest above").
    """
    began = time.monotonic()
    found = simple_orders(problem, windows, time_limit_s=time_limit_s / 2)
    if problem.fixed:
        return found

    def left_s() -> float:
        return max(0.0, time_limit_s - (time.monotonic() - began))

    lowest = min(found.values(), key=lambda o: (peak(problem, o), excess(problem, o)))
    if problem.steps <= EXACT_OPERATORS:
        result = solve_exact(problem, start=lowest, time_limit_s=left_s() / 4)
        proven = result.status == "optimal"
        lowest = result.solution or lowest
    else:
        proven = False
    if not proven:
        lowest = improve(problem, lowest, time_limit_s=left_s() / 2, seed=seed)
    if lowest not in found.values():
        found["least peak" if proven else "searched"] = lowest
    if above_nbytes is not None:
        best = min(found.values(), key=lambda o: (excess(problem, o, above_nbytes), peak(problem, o)))
        fewest = improve(problem, best, above_nbytes=above_nbytes, time_limit_s=left_s(), seed=seed)
        if fewest not in found.values():
            found["fewest above"] = fewest
    return found
