"""A pass of a module as a graph of ATen operators, found by `torch.export` on tensors without data.

The graph is the one that eager PyTorch executes, in-place operators and views included: `torch.export` gives it before
`run_decompositions`, which makes every operator functional, so that aliases and writes no longer show, and takes as
long again. Which values share memory is read off the storages of the traced values, which are those of eager PyTorch.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ...ir.errors import InputError
from .lifetimes import Lifetimes
from .stand_in import Held, device_of, fake_inputs, held_tensors, stand_in

INDEX = "tensorstow_index"
"""Key of a node's meta: how many operators were recorded before it; what `Captured.ended` counts in."""


@dataclass(frozen=True)
class InputTensor:
    """A tensor in the arguments. `released` says that the module may drop it: that it is in an object, such as a
    cache, which can be given another one; what is an argument itself, the caller keeps."""

    name: str
    value: torch.Tensor
    released: bool


@dataclass(frozen=True)
class Captured:
    """What a pass executes. Placeholders of the graph are named in `weights` (parameters and buffers), `constants`
    (names of other tensors that the module holds) and `inputs`; `ended` is that of `Lifetimes`."""

    program: ExportedProgram
    weights: dict[str, Held]
    constants: dict[str, str]
    inputs: dict[str, InputTensor]
    ended: dict[int, int]

    @property
    def graph_module(self) -> fx.GraphModule:
        """The traced graph; the outputs are the tensors in what the module returns, in order of appearance."""
        return self.program.graph_module


def capture(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, name: str) -> Captured:
    """Trace `module(*args, **kwargs)`; `name` is what messages call the module.

    Neither the module nor the arguments are changed, and no tensor's data is read or copied: they may all be on
    'meta'. Arguments and results may be nested in any way, tensors in caches and other objects included. The shapes
    are those of the arguments. Raises InputError for a module that cannot be traced.
    """
    given = (tuple(args), dict(kwargs))
    inputs = _named_inputs(given)
    held = held_tensors(module)
    device = device_of(held, [i.value for i in inputs], name)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    values = fake_inputs([i.value for i in inputs], mode, device)
    ended: dict[int, int] = {}
    wrapped = _Pass(module, given, inputs, ended)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what tracing changes in the module, which is put back
        with stand_in(module, held, mode, device):
            program = _exported(wrapped, values, name)
    return _captured(program, held, inputs, ended, name)


def _exported(wrapped: nn.Module, values: tuple[torch.Tensor, ...], name: str) -> ExportedProgram:
    """The traced program. What goes wrong in user code comes as any kind of exception, and is told in our words."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it prints a traceback of its own
    silent, logger.disabled = logger.disabled, True
    said, graph = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(said):
            return export(wrapped, values, strict=False)
    except Exception as error:
        graph = str(getattr(error, "partial_fx_graph", ""))  # which export prints, whoever catches the error
        raise _not_exportable(error, name) from error
    finally:
        logger.disabled = silent
        sys.stderr.write((said.getvalue().replace(graph, "") if graph else said.getvalue()).lstrip("\n"))


def _not_exportable(error: Exception, name: str) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return InputError(
        f"module '{name}' cannot be traced with these example inputs; torch.export says: {said.rstrip('.')}. Give "
        "inputs with which module(*args, **kwargs) runs; keep Python that depends on tensors' values out of its forward"
    )


def _captured(
    program: ExportedProgram, held: tuple[Held, ...], inputs: tuple[InputTensor, ...], ended: dict[int, int], name: str
) -> Captured:
    by_name = {n: one for one in held for n in one.names}
    weights: dict[str, Held] = {}
    constants: dict[str, str] = {}
    given: dict[str, InputTensor] = {}
    order = iter(inputs)
    for spec in program.graph_signature.input_specs:
        placeholder = cast("str", getattr(spec.arg, "name", ""))
        target = (spec.target or "").removeprefix(_Pass.PREFIX)
        if spec.kind is InputKind.USER_INPUT:
            given[placeholder] = next(order)
        elif target in by_name:
            weights[placeholder] = by_name[target]
        else:
            constants[placeholder] = target or placeholder
    (output,) = program.graph.find_nodes(op="output")
    if not any(isinstance(a, fx.Node) for a in _flat(output.args)):
        raise InputError(f"module '{name}' returns no tensor for these example inputs; there is nothing to plan")
    return Captured(program, weights, constants, given, ended)


class _Pass(nn.Module):
    """A module as a function from the tensors in its arguments to the tensors in its result."""

    PREFIX = "_module."

    def __init__(
        self, module: nn.Module, given: object, inputs: tuple[InputTensor, ...], ended: dict[int, int]
    ) -> None:
        super().__init__()
        self._module = module
        # Hidden in a function: what is an attribute, torch.export watches and puts back.
        self._given = lambda: (given, inputs, ended)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given, inputs, ended = self._given()
        mode = get_proxy_mode()
        assert mode is not None, "torch.export traces with a proxy mode"
        graph = mode.tracer.graph
        watch = Lifetimes(lambda: len(graph.nodes))
        args, kwargs = _with_tensors(given, inputs, values, watch)
        with watch:
            result = self._module(*args, **kwargs)
        found = tuple(v for _, v, _ in tensors_in(result, "", {}))
        ended.update(watch.close())
        for index, node in enumerate(graph.nodes):
            node.meta[INDEX] = index
        return found


def _with_tensors(
    given: object, inputs: tuple[InputTensor, ...], values: tuple[torch.Tensor, ...], watch: Lifetimes
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A copy of the arguments around other tensors. What the module may drop is held by nobody else."""
    memo: dict[int, Any] = {id(m): m for m in _modules(given)}
    for one, value in zip(inputs, values, strict=True):
        own = torch.ops.aten.alias.default(value) if one.released else value
        if one.released:
            watch.watch((own,))
        memo[id(one.value)] = own
    return copy.deepcopy(given, memo)  # type: ignore[return-value]


def _named_inputs(given: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[InputTensor, ...]:
    args, kwargs = given
    found: list[InputTensor] = []
    seen: dict[int, object] = {}
    for key, value in [*((str(i), v) for i, v in enumerate(args)), *kwargs.items()]:
        found += [InputTensor(name, v, released) for name, v, released in tensors_in(value, key, seen)]
    return tuple(found)


def tensors_in(
    value: object, path: str, seen: dict[int, object], released: bool = False
) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Every tensor in a nest of containers and objects, once, with where it is and whether an object holds it."""
    if (
        isinstance(value, (str, bytes, int, float, complex, type, nn.Module, torch.dtype, torch.device))
        or value is None
    ):
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield path, value, released
    elif isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            yield from tensors_in(inner, f"{path}.{key}" if path else str(key), seen, released)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for i, inner in enumerate(cast("tuple[object, ...]", value)):
            yield from tensors_in(inner, f"{path}.{i}" if path else str(i), seen, released)
    else:
        for key, inner in _attributes(value).items():
            yield from tensors_in(inner, f"{path}.{key}" if path else key, seen, True)


def _attributes(value: object) -> dict[str, object]:
    slots = [s for kind in type(value).__mro__ for s in cast("Any", getattr(kind, "__slots__", ()))]
    found: dict[str, object] = {s: getattr(value, s) for s in slots if isinstance(s, str) and hasattr(value, s)}
    return found | dict(getattr(value, "__dict__", {}))


def _modules(value: object) -> Iterator[nn.Module]:
    """Modules among arguments: they are used, not copied."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for inner in cast("Mapping[object, object]", value).values():
            yield from _modules(inner)
    elif isinstance(value, (list, tuple)):
        for inner in cast("tuple[object, ...]", value):
            yield from _modules(inner)


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, (tuple, list)):
        for inner in cast("tuple[object, ...]", value):
            yield from _flat(inner)
    else:
        yield value
