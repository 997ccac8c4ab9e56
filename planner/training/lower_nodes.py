"""What the lowering of a training step asks of single nodes, and names that are not taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from ..pytorch.traced import schema_of

_KNOWN = frozenset({"aten", "prims"})
"""Namespaces whose operators say by a tag whether they draw."""


def draws(node: fx.Node) -> bool:
    """Whether a call takes from the random number generator, or may: of an operator that is not PyTorch's own, and of
    one that calls graphs, nothing says that it does not, nor that it changes nothing else."""
    if isinstance(node.target, HigherOrderOperator):
        return True
    if not isinstance(node.target, OpOverload):
        return False
    if node.target.namespace not in _KNOWN:
        return True
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    schema = schema_of(node)
    names = [a.name for a in schema.arguments]
    given: Mapping[str, object] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("train") is False or given.get("training") is False:
        return False
    return "dropout_p" not in names or given.get("dropout_p", 0.0) not in (0, 0.0)


def last_of_forward(graph: fx.Graph, results: Sequence[fx.Node | None]) -> int:
    """The position of the last node that the forward's results need; -1 where they need none."""
    wanted = {n for n in results if n is not None and n.op == "call_function"}
    return max((i for i, n in enumerate(graph.nodes) if n in wanted), default=-1)


def unique(name: str, taken: Mapping[str, object]) -> str:
    """`name`, or `name` with the first number that makes it new."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}#{count}"
    return found
