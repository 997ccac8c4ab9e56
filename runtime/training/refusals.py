"""Why a module has no single graph: PyTorch's reasons in our words, with the line of the user's that they are about."""

from __future__ import annotations

import operator
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import TorchRuntimeError

from ...ir.errors import InputError, TensorstowError


class NoSingleGraphError(InputError):
    """A step cannot be traced as one graph: Python that depends on values, calls that cannot be traced.

    `reason` says why, `where` at which line, as " (file.py:12: the line)", or "" where that is not known.
    """

    def __init__(self, name: str, where: str, reason: str) -> None:
        super().__init__(
            f"{name} has no single training graph{where}: {reason}. Keep Python that depends "
            "on tensors' values, and calls that cannot be traced, out of its forward"
        )
        self.where = where
        self.reason = reason


def refuse_lost_writes(graph: fx.GraphModule, name: str) -> None:
    """NoSingleGraphError where dynamo's `graph` writes in place to a float64 tensor without dimensions that it is
    given: AOT autograd takes it for a Python number and forgets the write (PyTorch 2.13; `aot_eager` does, too)."""
    for node in graph.graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and value.dtype is torch.float64 and value.dim() == 0:
            for user in node.users:
                if _writes(user, node):
                    raise NoSingleGraphError(
                        name,
                        "",
                        f"'{node.name}' is a float64 tensor without dimensions that is written in place, which "
                        "PyTorch's compiler forgets; make it float32, or give it one dimension",
                    )


def _writes(user: fx.Node, tensor: fx.Node) -> bool:
    called = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    by_name = called.endswith("_") and not called.endswith("__") and user.args[:1] == (tensor,)
    return by_name or (user.target in _IN_PLACE and user.args[0] is tensor) or user.kwargs.get("out") is tensor


_IN_PLACE = frozenset(getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem"))
"""What changes its first argument."""


def refuse_sharded(module: nn.Module) -> None:
    """InputError for a module whose parameters are spread over processes."""
    kinds = {c.__name__ for part in module.modules() for c in type(part).__mro__}
    kinds |= {c.__name__ for p in module.parameters() for c in type(p).__mro__}
    found = sorted(kinds & {"FSDPModule", "FullyShardedDataParallel", "DTensor"})
    if found:
        raise InputError(
            f"{type(module).__name__} is sharded over processes ({', '.join(found)}): each holds a part of every "
            "parameter and gathers the rest by hooks between operators, at addresses and times that are not the "
            "plan's. Plan the module without sharding and put the planned step into DistributedDataParallel; what "
            "does not fit is offloaded by the plan. Or use the sharded module without a plan"
        )


def explained(error: Exception, module: nn.Module) -> TensorstowError:
    """The refusal, in our words, with dynamo's reason and the line of the user's that it is about."""
    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, TensorstowError):
        return inner
    lines = [line.strip() for line in str(inner or error).splitlines() if line.strip()]
    told = [line.partition(":")[2].strip() for line in lines if line.startswith("Explanation:")]
    reason = ": ".join(line.rstrip(".") for line in [*lines[:1], *told[:1]]) or type(inner or error).__name__
    where, name = _line_of(error), type(module).__name__
    if isinstance(inner or error, TorchRuntimeError):
        return InputError(f"{name} fails while it is traced{where}: {reason}. Does it take this batch in eager mode?")
    return NoSingleGraphError(name, where, reason)


def _line_of(error: Exception) -> str:
    """' (file.py:12: the line)': the innermost line that dynamo was at of the user's own code, else of a library's."""
    stack: Any = getattr(error, "real_stack", None) or ()
    paths = sysconfig.get_paths()
    installed = (paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"])
    outside = [f for f in stack if not str(f.filename).startswith((str(Path(torch.__file__).parent), _HERE))]
    found = [f for f in outside if not str(f.filename).startswith(installed)] or outside
    return f" ({found[-1].filename}:{found[-1].lineno}: {found[-1].line})" if found else ""


_HERE = str(Path(__file__).parent)
