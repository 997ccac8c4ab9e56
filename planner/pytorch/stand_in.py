"""A module with tensors that have a shape and no data in place of its own, for as long as it is looked at."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ...ir.errors import InputError

Containers = (list, dict, set)


@dataclass(frozen=True)
class Held:
    """A parameter or a buffer of a module, under all of its qualified names."""

    names: tuple[str, ...]
    value: torch.Tensor
    is_buffer: bool


def held_tensors(module: nn.Module) -> tuple[Held, ...]:
    """Parameters, then buffers, each tensor once; tensors over the very same bytes are one."""
    found: dict[object, tuple[list[str], torch.Tensor, bool]] = {}
    named = [(name, p, False) for name, p in module.named_parameters(remove_duplicate=False)]
    named += [(name, b, True) for name, b in module.named_buffers(remove_duplicate=False)]
    for name, value, is_buffer in named:
        found.setdefault(_bytes_of(value), ([], value, is_buffer))[0].append(name)
    return tuple(Held(tuple(names), value, is_buffer) for names, value, is_buffer in found.values())


def _bytes_of(value: torch.Tensor) -> object:
    """Equal for two tensors that are the same elements of the same memory."""
    if value.is_meta or value.layout is not torch.strided or isinstance(value, FakeTensor) or not value.data_ptr():
        return id(value)
    place = value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride()
    return *place, value.is_conj(), value.is_neg()


def device_of(held: tuple[Held, ...], inputs: list[torch.Tensor], name: str) -> torch.device:
    """The one device that weights and inputs are on; tensors on 'meta' are at home anywhere.

    Raises InputError where they are on several.
    """
    found: dict[torch.device, str] = {}
    for one in held:
        found.setdefault(one.value.device, f"'{one.names[0]}'")
    for i, value in enumerate(inputs):
        found.setdefault(value.device, f"input tensor {i}")
    found.pop(torch.device("meta"), None)
    if len(found) > 1:
        (a, what), (b, other) = list(found.items())[:2]
        raise InputError(
            f"module '{name}': {what} is on '{a}' and {other} on '{b}'; move the module and its example inputs to one "
            "device"
        )
    return next(iter(found), torch.device("cpu"))


def fake(value: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    """A tensor without data in a storage of its own, of the shape, strides and type of `value`, on `device`."""
    if value.layout is not torch.strided:
        raise InputError(f"a tensor of layout {value.layout} and shape {tuple(value.shape)} cannot be planned")
    with mode:
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made


def fake_inputs(values: list[torch.Tensor], mode: FakeTensorMode, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The same for inputs; those that share memory still do."""
    made: list[torch.Tensor] = []
    for value in values:
        if value.is_meta or isinstance(value, FakeTensor) or value.layout is not torch.strided:
            made.append(fake(value, mode, device))
        else:
            made.append(mode.from_tensor(value.detach(), static_shapes=True))
    return tuple(made)


@contextmanager
def stand_in(module: nn.Module, held: tuple[Held, ...], mode: FakeTensorMode, device: torch.device) -> Generator[None]:
    """`module` with tensors without data for its own, wherever its submodules hold them: registered, as attributes,
    or in lists and dicts that are attributes. Everything is as it was when the context ends, also by an exception."""
    by_name = {name: one for one in held for name in one.names}
    fakes = {one.names[0]: fake(one.value, mode, device) for one in held}
    made: dict[int, torch.Tensor] = {}
    for name, value in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        made[id(value)] = fakes[by_name[name].names[0]]
    saved = [(vars(m), dict(vars(m)), _contents(vars(m))) for m in module.modules()]
    try:
        for attributes, _, _ in saved:
            for key, value in list(attributes.items()):
                attributes[key] = _replaced(value, made, mode, device)
        yield
    finally:
        for attributes, before, contents in saved:
            attributes.clear()
            attributes.update(before)
            for container, content in contents:
                _restore(container, content)


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes with copies of what they hold."""
    return [(v, v.copy()) for v in attributes.values() if isinstance(v, Containers)]


def _restore(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _replaced(value: Any, made: dict[int, torch.Tensor], mode: FakeTensorMode, device: torch.device) -> Any:
    """`value` with the tensors in it replaced; the dicts and lists themselves stay the same objects."""
    if isinstance(value, torch.Tensor):
        if id(value) not in made and value.is_meta:
            made[id(value)] = fake(value, mode, device)
        return made.get(id(value), value)
    if isinstance(value, dict):
        held = cast("dict[Any, Any]", value)
        for key, inner in list(held.items()):
            held[key] = _replaced(inner, made, mode, device) if isinstance(inner, torch.Tensor) else inner
        return held
    if isinstance(value, list):
        held_list = cast("list[Any]", value)
        held_list[:] = [_replaced(v, made, mode, device) if isinstance(v, torch.Tensor) else v for v in held_list]
        return held_list
    if isinstance(value, tuple) and type(cast("object", value)) is tuple:
        return tuple(_replaced(v, made, mode, device) if isinstance(v, torch.Tensor) else v for v in value)
    return value
