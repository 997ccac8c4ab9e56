"""Offsets: bodies with lifetimes, placed in one address space with the least peak."""

from __future__ import annotations

from .check import check_packing
from .problem import Body, Box, Packing, PackingProblem
from .solve import load_bound, pack

__all__ = ["Body", "Box", "Packing", "PackingProblem", "check_packing", "load_bound", "pack"]
