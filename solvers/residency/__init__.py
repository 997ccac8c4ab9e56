"""Residency: what is absent from the fast tier between its uses, for a fixed order of steps."""

from __future__ import annotations

from .bounds import compulsory_bound, compulsory_nbytes
from .check import check_residency, fluid_time
from .lp import solve_residency
from .mip import improve_residency
from .problem import Gap, ResidencyProblem, ResidencySolution
from .rounding import round_and_repair

__all__ = [
    "Gap",
    "ResidencyProblem",
    "ResidencySolution",
    "check_residency",
    "compulsory_bound",
    "compulsory_nbytes",
    "fluid_time",
    "improve_residency",
    "round_and_repair",
    "solve_residency",
]
