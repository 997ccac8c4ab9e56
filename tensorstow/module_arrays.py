"""What goes into a module and comes out of it, as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ir.errors import InputError
from .modules import ModuleModel


def fresh_inputs(made: ModuleModel, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs with those of `given` in their places, copied: a pass writes into caches that it is given.

    Names are those of the forward's parameters. Raises InputError for a name, type or shape that is not the example's.
    """
    import copy
    import inspect

    import torch

    args, kwargs = copy.deepcopy((made.args, made.kwargs))
    if not given:
        return args, kwargs
    positional = list(inspect.signature(made.module.forward).parameters)[: len(args)]
    named: dict[str, Any] = {**dict(zip(positional, args, strict=False)), **kwargs}
    known = {n: v for n, v in named.items() if isinstance(v, torch.Tensor)}
    for name, array in given.items():
        if name not in known:
            raise InputError(f"the module takes no array '{name}'; its inputs: {', '.join(known)}")
        expected = known[name]
        value = _tensor(name, array, expected.dtype)
        if value.dtype != expected.dtype:
            raise InputError(f"input '{name}' is {value.dtype}, the plan is for {expected.dtype}")
        if value.shape != expected.shape:
            raise InputError(
                f"input '{name}' has shape {list(value.shape)}, the plan is for {list(expected.shape)}; plan for it, "
                "or call the module that ts.apply returns, which takes any shape"
            )
        named[name] = value
    return tuple(named[n] for n in positional), {n: named[n] for n in kwargs}


def _tensor(name: str, array: Any, dtype: Any) -> Any:
    """The values of an array in memory of their own. Files know no types but numpy's: they hold others as nameless
    bytes ('|V2'), which are taken for `dtype` if numpy has not got that and its elements are as long.

    Raises InputError for what no tensor holds.
    """
    import numpy as np
    import torch

    kind, wanted = array.dtype, str(dtype).removeprefix("torch.")
    unknown = kind.fields is None and kind.name in (wanted, f"void{8 * dtype.itemsize}") and not hasattr(np, wanted)
    if unknown:
        whole = torch.uint8 if dtype.itemsize == 1 else torch.int16
        own = array.copy(order="C").view(str(whole).removeprefix("torch."))
        return torch.from_numpy(own).view(dtype)
    try:
        return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C"))
    except TypeError as error:
        said = kind.name if kind.isbuiltin == 2 else kind.str  # 2: of another package
        raise InputError(f"input '{name}' has the dtype '{said}', the plan is for {dtype}; convert it") from error


def on_device(value: Any, device: Any) -> Any:
    """`value` with its tensors on `device`: tuples, lists and dictionaries made anew, caches changed."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        moved = {k: on_device(v, device) for k, v in value.items()}
        return moved if type(value) is dict else type(value)(**moved)
    if type(value) in (tuple, list):
        return type(value)(on_device(v, device) for v in value)
    own = type(value).__module__
    if own.startswith("transformers.") and "config" not in own and hasattr(value, "__dict__"):
        for name, held in list(vars(value).items()):
            setattr(value, name, on_device(held, device))
    return value


def arrays(result: Any) -> dict[str, Any]:
    """The tensors in what a module returns, as arrays by where they are in it ('logits', 'past_key_values.0.1')."""
    from .planner.pytorch.capture import tensors_in

    return {name: _array(tensor) for name, tensor, _ in tensors_in(result, "", {})}


def _array(tensor: Any) -> Any:
    import torch

    content = tensor.detach().cpu().contiguous()
    name = str(content.dtype).removeprefix("torch.")
    try:
        return content.numpy()
    except TypeError:  # numpy has no such type; its package of further ones may
        import ml_dtypes

        return (
            content.view(torch.uint8 if content.element_size() == 1 else torch.int16)
            .numpy()
            .view(getattr(ml_dtypes, name))
        )
