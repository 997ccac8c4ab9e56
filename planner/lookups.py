"""Tables of which a pass needs a few rows: whether these are read from the store and the table stays there."""

from __future__ import annotations

from ..ir.errors import InputError
from ..ir.machine import Link, Machine

STREAMED_SHARE = 1 / 50
"""What is larger than this share of the budget is better streamed in pieces, or left (DESIGN 4.1: 2%)."""


def store_link(machine: Machine) -> Link:
    """The link by which weights come from where they are at home: the slowest into the compute tier."""
    into = [k for k in machine.links if k.target == machine.units[0].tier]
    if not into:
        raise InputError(f"machine '{machine.name}' has no link into tier '{machine.units[0].tier}'; add one")
    return min(into, key=lambda k: k.bytes_per_s)


def better_left(nbytes: int, rows: int, row_nbytes: int, budget_nbytes: int, link: Link) -> bool:
    """Whether a table of `nbytes` is large against the budget, and `rows` of it are read faster than the whole."""
    rows_ns = rows * link.transfer_ns(row_nbytes)
    return nbytes > budget_nbytes * STREAMED_SHARE and rows_ns < link.transfer_ns(nbytes)
