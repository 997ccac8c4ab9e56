"""Offsets: bodies with lifetimes, placed in one address space with the least peak, or in several."""

from __future__ import annotations

from .banks import pack_banks
from .banks_problem import BanksPacking, BanksProblem, check_banks
from .check import check_packing
from .explain import Conflict, explain
from .problem import Body, Box, Packing, PackingProblem
from .solve import load_bound, pack

__all__ = [
    "BanksPacking",
    "BanksProblem",
    "Body",
    "Box",
    "Conflict",
    "Packing",
    "PackingProblem",
    "check_banks",
    "check_packing",
    "explain",
    "load_bound",
    "pack",
    "pack_banks",
]
