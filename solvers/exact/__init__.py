"""The exact oracle of off-chip bytes: order, residency and addresses in one integer program, in PuLP. Small cases."""

from .check import check_traffic, moved_nbytes
from .problem import Begin, End, Operator, Tensor, TrafficProblem, TrafficSolution
from .solve import solve_traffic

__all__ = [
    "Begin",
    "End",
    "Operator",
    "Tensor",
    "TrafficProblem",
    "TrafficSolution",
    "check_traffic",
    "moved_nbytes",
    "solve_traffic",
]
