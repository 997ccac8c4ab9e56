"""What a MODEL names: a Hugging Face directory, or a callable of the user's that makes a module and its inputs."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ..ir.codec import digest
from ..ir.errors import InputError, TensorstowError

HF = "hf:"
RETURNS = "(module, example_inputs), and for training also a loss and an optimizer"


@dataclass(frozen=True, slots=True)
class Directory:
    """`hf:DIR`."""

    path: Path


@dataclass(frozen=True, slots=True)
class Maker:
    """`file.py:callable` (`file`) or `pkg.module:callable` (`package`)."""

    text: str
    name: str
    file: Path | None = None
    package: str | None = None


@dataclass(frozen=True)
class Made:
    """What a callable returned: an nn.Module, the arguments of one call of it, and for training its loss, a function of
    what the module returns (None where it returns its loss), and its optimizer."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Any = None
    optimizer: Any = None


def is_entry(text: str) -> bool:
    """Whether a MODEL is one of these, rather than a path of a file.

    `hf:` begins a directory; else the last colon stands between a Python file or a dotted name, and a name.
    """
    if text.startswith(HF):
        return True
    origin, colon, name = text.rpartition(":")
    return bool(colon) and _dotted(name) and (origin.endswith(".py") or _dotted(origin))


def parse_entry(text: str) -> Directory | Maker:
    """What `text` names. Raises InputError for what is none of the forms."""
    if text.startswith(HF):
        if not text[len(HF) :]:
            raise InputError("'hf:' names no directory; write hf:DIR")
        return Directory(Path(text[len(HF) :]))
    if not is_entry(text):
        raise InputError(f"'{text}' names no model; write hf:DIR, file.py:callable or pkg.module:callable")
    origin, _, name = text.rpartition(":")
    if origin.endswith(".py"):
        return Maker(text, name, file=Path(origin))
    return Maker(text, name, package=origin)


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def make(maker: Maker) -> Made:
    """Call the user's callable, with the common generators of random numbers seeded for that time: whoever makes it
    again, in another process, gets the same weights. Raises InputError, with the line of the user's file where it went
    wrong."""
    with _seeded() as seed:
        found = _callable(maker)
        seed()  # a package may have been imported before, and drawn nothing now
        try:
            returned = found()
        except TensorstowError:
            raise
        except (Exception, SystemExit) as error:  # `exit()` in the user's code is no answer of ours
            raise InputError(f"'{maker.text}' raised {_said(error)}{_where(error)}") from error
        return _checked(maker, returned)


@contextmanager
def _seeded() -> Generator[Callable[[], None]]:
    """Python's, NumPy's and PyTorch's generators, seeded, and again at each call of what is given; at the end as they
    were before."""
    import numpy as np
    import torch

    def seed() -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        seed()
        try:
            yield seed
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _callable(maker: Maker) -> Callable[[], Any]:
    found: Any = _load_file(maker, maker.file) if maker.file is not None else _import(maker)
    for part in maker.name.split("."):
        if not hasattr(found, part):
            names = sorted(n for n, v in vars(found).items() if callable(v) and not n.startswith("_"))
            known = ", ".join(names[:8]) or "no callables"
            raise InputError(f"'{maker.text}': there is no '{part}'; it has {known}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"'{maker.text}' is {type(found).__name__}, which cannot be called; it must return {RETURNS}")
    return cast("Callable[[], Any]", found)


def _load_file(maker: Maker, file: Path) -> ModuleType:
    """The file as a module of its own name, its folder on the path while it is loaded, as if Python ran it."""
    if not file.is_file():
        raise InputError(f"'{maker.text}': there is no file '{file}'")
    path = file.resolve()
    name = f"_tensorstow_entry_{path.stem}_{digest(str(path))[:8]}"  # another folder may have a file of this name, too
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"'{maker.text}': '{file}' cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what is defined there may be looked up by its module's name
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise InputError(f"'{maker.text}': loading '{file}' raised {_said(error)}{_where(error)}") from error
    return module


def _import(maker: Maker) -> ModuleType:
    assert maker.package is not None
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it
    try:
        return importlib.import_module(maker.package)
    except (Exception, SystemExit) as error:
        raise InputError(f"'{maker.text}': importing '{maker.package}' raised {_said(error)}{_where(error)}") from error


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _where(error: BaseException) -> str:
    """The innermost line of what the user wrote: below our own files, and above those of installed packages."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if f.filename != __file__ and not f.filename.startswith("<") and "site-packages" not in Path(f.filename).parts
    ]
    own = [f for f in own if not Path(f.filename).is_relative_to(Path(importlib.__file__).parents[1])]
    return f" ({own[-1].filename}, line {own[-1].lineno}: {own[-1].line})" if own else ""


def _checked(maker: Maker, returned: Any) -> Made:
    from torch import nn

    items = cast("tuple[Any, ...]", returned) if isinstance(returned, tuple) else ()
    if len(items) not in (2, 3, 4):
        what = f"a tuple of {len(items)}" if isinstance(returned, tuple) else type(returned).__name__
        raise InputError(f"'{maker.text}' returned {what}; it must return {RETURNS}")
    module, inputs, loss, optimizer = (*items, None, None)[:4]
    if not isinstance(module, nn.Module):
        raise InputError(f"'{maker.text}' returned a {type(module).__name__} where the torch.nn.Module should be")
    if loss is not None and not callable(loss):
        raise InputError(
            f"'{maker.text}' returned a {type(loss).__name__} as its loss; it must be a function of what the module "
            "returns, or None"
        )
    args, kwargs = as_call(inputs, f"'{maker.text}'")
    return Made(module, args, kwargs, loss, optimizer)


def as_call(inputs: Any, who: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call: of a tuple or list, of a mapping, of one tensor.

    Raises InputError, beginning with `who`, for anything else.
    """
    import torch

    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        named = cast("Mapping[Any, Any]", inputs)
        wrong = next((k for k in named if not isinstance(k, str)), None)
        if wrong is not None:
            raise InputError(f"{who}: example inputs by name have the key {wrong!r}, which is no name of an argument")
        return (), dict(named)
    if isinstance(inputs, (tuple, list)):
        return tuple(cast("tuple[Any, ...]", inputs)), {}
    raise InputError(
        f"{who}: example inputs are {type(inputs).__name__}; give a tensor, a tuple of arguments or a dict"
    )
