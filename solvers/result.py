"""What a solver answers: a status, the best solution, its objective, a bound, and how it was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S")


class Status(str, Enum):
    """How much is known. INFEASIBLE is proven; UNKNOWN means that time ran out before there was any answer.

    ERROR is a solver that broke down (numerically, or by memory): `Result.detail` says how.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Result(Generic[S]):
    """An answer to a minimisation problem.

    `objective` is that of `solution`, `bound` a proven lower bound on every solution's objective; both in the unit the
    solver's docstring names, None where there is none. `seconds` is wall time. `method` names what found the solution,
    `detail` what the reader should know beside it: the step that cannot fit, the reason of an error.
    """

    status: Status
    solution: S | None
    objective: float | int | None
    bound: float | int | None
    seconds: float
    method: str
    detail: str = ""

    @property
    def gap(self) -> float | None:
        """How far the objective is above the bound, as a fraction of the bound: objective / bound - 1.

        0.0 when both are equal, infinite above a bound of zero, None where either is missing.
        """
        if self.objective is None or self.bound is None:
            return None
        if self.objective <= self.bound:
            return 0.0
        return float(self.objective - self.bound) / float(self.bound) if self.bound > 0 else float("inf")

    def __str__(self) -> str:
        """One line: status, objective, bound, gap, method and seconds."""
        parts = [self.status.value]
        if self.objective is not None:
            parts.append(f"objective {_number(self.objective)}")
        if self.bound is not None:
            parts.append(f"bound {_number(self.bound)}")
        if self.gap is not None:
            parts.append(f"gap {self.gap:.3%}")
        parts.append(f"by {self.method} in {self.seconds:.3f} s")
        return ", ".join(parts) + (f" ({self.detail})" if self.detail else "")

    def __repr__(self) -> str:
        """As `str`, marked as a result: the solution itself may hold thousands of numbers."""
        return f"<Result {self}>"


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
