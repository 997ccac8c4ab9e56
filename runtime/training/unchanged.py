"""Steps of a module that nobody asked for: afterwards it is as it was, and so are the generators of random numbers."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import nn

_Held: TypeAlias = "list[tuple[dict[str, Any], dict[str, Any]]]"
"""Dictionaries of a module, each with a copy of what was in it."""

_IMMUTABLE = (bool, int, float, complex, str, type(None))


@contextmanager
def unchanged(module: nn.Module) -> Generator[None]:
    """What steps change besides parameters is as before afterwards: the buffers of `module` and of its parts, other
    attributes that are tensors, numbers or text, and the numbers that Python, NumPy and PyTorch (on the CPU) draw next.

    Tensors are those of before, with the content of before. What else the module's Python changes (lists, files,
    generators of its own) is not brought back.
    """
    held = _held(module)
    tensors = {id(v): v for _, values in held for v in values.values() if isinstance(v, torch.Tensor)}
    contents = [(tensor, tensor.clone()) for tensor in tensors.values() if not tensor.requires_grad]
    drawn = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
            _restore(held)
            with torch.no_grad():
                for tensor, before in contents:
                    tensor.copy_(before)


def _held(module: nn.Module) -> _Held:
    """The dictionaries of each part in which its buffers and its attributes are."""
    found: _Held = []
    for part in module.modules():
        buffers = cast("dict[str, Any]", vars(part)["_buffers"])
        found += [(buffers, dict(buffers)), (vars(part), dict(vars(part)))]
    return found


def _restore(held: _Held) -> None:
    """Put back what was in the dictionaries, and take out what came in since."""
    for now, before in held:
        for name in [name for name, value in now.items() if name not in before and _is_plain(value)]:
            del now[name]
        now.update({name: value for name, value in before.items() if _is_plain(value) or _is_plain(now.get(name))})


def _is_plain(value: object) -> bool:
    return isinstance(value, (torch.Tensor, *_IMMUTABLE))
