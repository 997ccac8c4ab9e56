"""In which order operators run: list schedules, depth first, exact for few downsets, and search by windows."""

from __future__ import annotations

from .depth import from_inputs, from_outputs
from .exact import solve_exact, solve_excess
from .lists import backward_list_order, list_order, lookahead_order
from .portfolio import portfolio, simple_orders
from .problem import Operator, Order, OrderingProblem, Value, check_order, excess, live_profile, mirrored, peak
from .search import improve

__all__ = [
    "Operator",
    "Order",
    "OrderingProblem",
    "Value",
    "backward_list_order",
    "check_order",
    "excess",
    "from_inputs",
    "from_outputs",
    "improve",
    "list_order",
    "live_profile",
    "lookahead_order",
    "mirrored",
    "peak",
    "portfolio",
    "simple_orders",
    "solve_exact",
    "solve_excess",
]
