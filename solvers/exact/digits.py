"""Large integers inside a solver of floats: inequalities and objectives in digits, so that no coefficient is large.

A MIP engine takes 0.999999 for 1 and a row as met when it is off by 1e-6 or more; beside a coefficient of 2^40 bytes
either is worth a megabyte, and past 2^53 the number itself is rounded. Here a sum is divided by its gcd and, where a
coefficient is still `BASE` or larger, split:

    sum a x <= L   with a = A B + a', L = M B + l'   <=>   sum a' x <= l' + B c,  sum A x + c <= M,  c >= 0 whole

The smallest c that the first row allows is the carry; the second row is split again if need be. An objective becomes
its digits, most significant first, to be minimised one after another:

    min sum a x   <=>   lexmin (sum A x + c, d)   with   sum a' x = d + B c,  0 <= d < B
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import gcd
from typing import Any

BASE = 1 << 12
"""The largest coefficient: times an engine's tolerance (1e-9 is asked of it) it is far below 1. CBC calls some feasible
programs infeasible at 2^16, none that were tried at 2^12 to 2^14."""

Terms = Sequence[tuple[int, Any]]


def unit_of(numbers: Sequence[int]) -> int:
    """The greatest common divisor, at least 1."""
    return reduce(gcd, numbers, 0) or 1


def at_most(pulp: Any, model: Any, terms: Terms, limit: int, name: str) -> None:
    """sum a x <= L, for binary x and whole a >= 0, in rows whose coefficients are at most BASE."""
    unit = unit_of([a for a, _ in terms])
    limit = limit // unit
    # What cannot fit alone is as well a little too large: the same solutions, smaller numbers.
    small = [(min(a // unit, limit + 1), x) for a, x in terms if a]
    if sum(a for a, _ in small) > limit:
        _split(pulp, model, small, limit, name, 0)


def _split(pulp: Any, model: Any, terms: Terms, limit: int, name: str, level: int) -> None:
    if max(a for a, _ in terms) < BASE:
        model += _sum(pulp, terms) <= limit, name if not level else f"{name}_{level}"
        return
    carry = pulp.LpVariable(f"{name}_carry_{level}", 0, len(terms), pulp.LpInteger)
    model += _sum(pulp, [(a % BASE, x) for a, x in terms]) <= limit % BASE + BASE * carry, f"{name}_{level}"
    _split(pulp, model, [*((a // BASE, x) for a, x in terms), (1, carry)], limit // BASE, name, level + 1)


def objective_digits(pulp: Any, model: Any, terms: Terms, name: str) -> list[Any]:
    """Expressions whose lexicographic minimum is the minimum of sum a x, each with coefficients below BASE."""
    unit = unit_of([a for a, _ in terms])
    left = [(a // unit, x) for a, x in terms if a]
    digits: list[Any] = []
    while left and max(a for a, _ in left) >= BASE:
        level = len(digits)
        carry = pulp.LpVariable(f"{name}_carry_{level}", 0, len(left), pulp.LpInteger)
        digit = pulp.LpVariable(f"{name}_digit_{level}", 0, BASE - 1, pulp.LpInteger)
        model += _sum(pulp, [(a % BASE, x) for a, x in left]) == digit + BASE * carry, f"{name}_{level}"
        digits.append(digit)
        left = [*((a // BASE, x) for a, x in left if a >= BASE), (1, carry)]
    return [_sum(pulp, left), *reversed(digits)]


def _sum(pulp: Any, terms: Terms) -> Any:
    return pulp.LpAffineExpression([(x, a) for a, x in terms if a])
