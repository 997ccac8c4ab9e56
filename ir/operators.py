"""What an operator's type says of it: whether it draws random numbers, whether it is the turn of a training step."""

from __future__ import annotations

from .graph import Operator

RANDOM_OPERATORS = ("random", "dropout", "bernoulli", "multinomial", "rand", "randn", "randint", "randperm", "uniform")
"""Words of operator types that give other results each time they run. Their masks are saved, never made again."""

TURN = "Turn"
"""The type of the operator that takes the results of a forward pass and hands out the gradients of them."""


def is_random(op: Operator) -> bool:
    """Whether `op` may give other results when it runs again: some word of its type is one of `RANDOM_OPERATORS`.

    Words are what stands between dots, colons and underscores, and between small and capital letters.
    """
    spaced = "".join(f" {c}" if c.isupper() else c if c.isalnum() else " " for c in op.op_type).lower().split()
    joined = {w for w in spaced if len(w) > 1} | {op.op_type.lower()}
    return not joined.isdisjoint(RANDOM_OPERATORS) or "dropout" in op.op_type.lower()


def is_turn(op: Operator) -> bool:
    """Whether `op` stands between the forward and the backward pass of a training step: it is called once."""
    return op.op_type == TURN
