"""Whether a module's forward only computes: then its weights may be real while it runs, and nothing of them is left.

Looked at is the compiled code of the class's `forward`, for arguments that are plain (`is_plain`). Whoever stores
something elsewhere, calls something that is not PyTorch's or Python's own, hands memory on, or calls what changes a
tensor in place, does not qualify. What remains can still write to a weight by an operator (`w += 1`), or return a view
of one: that is seen afterwards, in the version and the address.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from .functions import Kind, kind_of

_STORING = ("STORE_ATTR", "STORE_SUBSCR", "STORE_SLICE", "STORE_GLOBAL", "STORE_NAME", "STORE_DEREF", "DELETE_")
_CALLING = ("IMPORT_", "MAKE_FUNCTION", "LOAD_CLOSURE", "LOAD_DEREF", "YIELD", "SEND", "GET_AWAITABLE", "BEFORE_WITH")
_OTHERS = ("SETUP_WITH", "LOAD_BUILD_CLASS", "LOAD_SUPER_ATTR", "LOAD_FROM_DICT", "BUILD_SET")
_REFUSED_OPCODES = (*_STORING, *_CALLING, *_OTHERS)
# Nothing that may hide a weight in a result: what is in a set, an iterator or a slice cannot be seen or exchanged.
_BUILTINS = frozenset((int, float, bool, len, tuple, list, dict, range, min, max, abs, sum, isinstance, None))
_HANDING_ON = frozenset((Kind.ADDRESS, Kind.WHOLE))
_OTHER_LIBRARIES = frozenset(("ops", "save", "library", "utils", "multiprocessing", "register_hook", "__dict__"))
_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size))


def is_plain(values: Iterable[Any]) -> bool:
    """Whether these are tensors of PyTorch's own class, or values without parts that could be changed."""
    for value in values:  # noqa: SIM110 - a generator takes longer
        if type(value) is not torch.Tensor and type(value) not in _PLAIN:
            return False
    return True


def only_computes(module: nn.Module) -> bool:
    """Whether `module.forward` is that of its class, and leaves nothing of its weights anywhere but in its result."""
    forward: Any = type(module).forward
    if "forward" in module.__dict__ or not isinstance(forward, FunctionType) or forward.__closure__:
        return False
    code = forward.__code__
    if any(isinstance(constant, CodeType) for constant in code.co_consts) or code.co_flags & _GENERATORS:
        return False
    return all(_harmless(i, module, forward) for i in dis.get_instructions(code))


_GENERATORS = 0x20 | 0x80 | 0x200  # inspect's CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


def _harmless(instruction: dis.Instruction, module: nn.Module, forward: FunctionType) -> bool:
    name, value = instruction.opname, instruction.argval
    if name.startswith(_REFUSED_OPCODES):
        return False
    if name == "LOAD_GLOBAL":
        return _known_global(forward.__globals__.get(value, getattr(builtins, str(value), forward)))
    if name in ("LOAD_ATTR", "LOAD_METHOD"):
        return _harmless_attribute(str(value), module)
    keywords = forward.__code__.co_consts[instruction.arg or 0] if name == "KW_NAMES" else value
    return not (isinstance(keywords, tuple) and "out" in keywords)


def _constant(value: Any) -> bool:
    return all(map(_constant, value)) if type(value) is tuple else type(value) in _PLAIN


def _known_global(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return value is torch or value is torch.nn.functional or value.__name__ == "math"
    if type(value) in _PLAIN or isinstance(value, torch.memory_format):
        return True
    if isinstance(value, (type, *_CALLABLES)):
        return value in _BUILTINS or value in (torch.Tensor, torch.Size) or _of_torch(value)
    return False


_CALLABLES = (type(len), FunctionType)


def _of_torch(value: Any) -> bool:
    own = str(getattr(value, "__module__", ""))
    return own in ("torch", "torch.functional", "torch.nn.functional", "torch._C._nn", "torch._C")


def _harmless_attribute(name: str, module: nn.Module) -> bool:
    """Of the module only its weights and plain values; of tensors and PyTorch what hands no memory on."""
    if name in module.__dict__:
        return _constant(module.__dict__[name])
    if name in module._parameters or name in module._buffers:  # pyright: ignore[reportPrivateUsage]
        return True
    if name in _OTHER_LIBRARIES or (hasattr(type(module), name) and not hasattr(torch.Tensor, name)):
        return False
    held = getattr(torch.Tensor, name, None)
    if held is not None and name.endswith("_") and not name.endswith("__"):
        return False
    getter = type(held).__name__ in ("getset_descriptor", "property")
    return held is None or kind_of(held.__get__ if getter else held) not in _HANDING_ON
