"""Modules made without their parameters' values: on 'meta' at once, and nothing drawn for them."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class NothingRandom(TorchFunctionMode):
    """Tensors without values are not initialised: PyTorch would do that in Python, with its compiler loaded for it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        target = args[0] if args else (kwargs or {}).get("tensor")
        random = func in _RANDOM or getattr(func, "__module__", "") == "torch.nn.init"
        if random and isinstance(target, torch.Tensor) and target.is_meta:
            return target
        return func(*args, **(kwargs or {}))


_RANDOM = frozenset(
    getattr(torch.Tensor, f"{name}_")
    for name in ("normal", "uniform", "exponential", "bernoulli", "log_normal", "cauchy", "geometric", "random")
)


@contextmanager
def parameters_on_meta() -> Generator[None]:
    """Parameters that modules register in here become meta tensors at once; buffers stay what they are.

    A module makes its parameter before it registers it, so one at a time exists, and of that no page is touched unless
    its values are computed from something.
    """
    register = nn.Module.register_parameter
    seen: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            before, made = seen.get(id(param), (None, None))
            if before is None or made is None or before() is not param:
                empty = torch.empty(param.shape, dtype=param.dtype, device="meta")
                made = type(param)(empty, requires_grad=param.requires_grad)
                vars(made).update(vars(param))
                seen[id(param)] = weakref.ref(param), made
            param = made
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
