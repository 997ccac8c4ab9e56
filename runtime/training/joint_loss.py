"""What a step returns, apart from what its module stores: dynamo's graph gives both as its results, one behind another.

Said by `torch._dynamo.comptime`, which runs while dynamo traces and leaves nothing in its graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.comptime import ComptimeContext, comptime

from ...ir.errors import InputError
from .joint_graph import Joint


class Watched:
    """`loss`, which remembers what it returned when it was traced last.

    Graph and bits are those of `loss`.
    """

    def __init__(self, loss: Callable[[Any], Any]) -> None:
        self.returned: type | None = None
        """The type of what it returned; None before it was traced."""

        def look(traced: ComptimeContext) -> None:
            self.returned = traced.get_local("found").python_type()

        def watched(result: Any) -> Any:
            found = loss(result)
            comptime(look)
            return found

        self.loss = watched

    @property
    def is_tensor(self) -> bool:
        """Whether it returned one tensor: then this is the first result of the graph that is no update in place."""
        return self.returned is not None and issubclass(self.returned, torch.Tensor)


def one_loss(joint: Joint, watched: Watched, name: str) -> Joint:
    """`joint`, if what `watched` returned in it is one number. Behind it come the tensors that the module stores.

    Raises InputError, for the module called `name`, where it is none.
    """
    outputs = joint.outputs[: joint.forward_outputs]
    first = next((n for i, n in enumerate(outputs) if i not in joint.updates), None)
    shape = tuple(first.meta["val"].shape) if first is not None else None
    if not watched.is_tensor or shape is None or any(size != 1 for size in shape):
        kind = getattr(watched.returned, "__name__", "value that is unknown")
        found = f"a tensor of shape {list(shape or ())}" if watched.is_tensor else f"a {kind}"
        raise InputError(
            f"'{name}' returns {found} where a training step needs its loss, one number; give loss=, a function of "
            "what the module returns"
        )
    return joint
