"""The forwards that stand in for a module's own, on the instance alone.

The root's one counts passes and lets threads take turns. Those of modules that own placed weights say that a lazy
parameter is now used by the model, not by someone who looks at it. Layers of PyTorch's own whose code is known get
their values directly: that costs less than the attribute look-ups it saves. Other modules whose code only computes have
real weights while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import nn

from . import functions
from .computing import is_plain, only_computes
from .lazy import LazyTensor
from .lazy_values import detached, overwritten
from .replaced import Forward
from .weights import Source, Weights

Values = tuple[torch.Tensor, ...]


def whole_pass(weights: Weights, module: nn.Module, original: Forward) -> Forward:
    """Of the root: one pass at a time, without gradients; at its end the next one may begin to load."""
    del module
    inside, passing = weights.inside, weights.passing

    def forward(*args: Any, **kwargs: Any) -> Any:
        with passing:
            calls, passes = inside.calls, inside.passes
            inside.calls, inside.passes = calls + 1, passes + 1
            try:
                if torch.is_grad_enabled():
                    with torch.no_grad():
                        result = original(*args, **kwargs)
                else:
                    result = original(*args, **kwargs)
            finally:
                inside.calls, inside.passes = calls, passes
            if not passes:
                weights.finish()
            return result

    return update_wrapper(forward, original)


def part(weights: Weights, module: nn.Module, original: Forward) -> Forward:
    """Of a module that owns weights, or reads those of others."""
    del module
    inside = weights.inside

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls = inside.calls
        inside.calls = calls + 1
        try:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    return original(*args, **kwargs)
            return original(*args, **kwargs)
        finally:
            inside.calls = calls

    return update_wrapper(forward, original)


def layer(weights: Weights, module: nn.Module, original: Forward) -> Forward | None:
    """Of a layer of PyTorch's own that reads its weights in one step; None of any other."""
    compute = _KNOWN.get(_code(module))
    if compute is None or "forward" in module.__dict__:
        return None
    held: dict[str, Any] = module._parameters  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
    lazies = {name: held[name] for name in held if isinstance(held[name], LazyTensor)}
    if not set(held) <= {"weight", "bias"} or "weight" not in lazies:
        return None
    sources: list[Source] = [z.source for z in lazies.values()]
    steps = weights.common_steps(sources)
    if not steps or any(s.lookups is not None for s in sources):
        return None
    values = weights.together(sources)
    if "bias" in lazies:
        return _with_both(weights, module, original, compute, steps, values)
    return _with_weight(weights, module, original, compute, steps, values)


Compute = Callable[[Any, Any, torch.Tensor, "torch.Tensor | None"], Any]


def _with_both(
    weights: Weights, module: Any, original: Forward, compute: Compute, steps: tuple[int, ...], at: dict[int, Values]
) -> Forward:
    held = module._parameters
    weight, bias = held["weight"], held["bias"]
    first = next(iter(held)) == "weight"
    clock, using, arrive, plain = weights.clock, weights.using, weights.arrive, torch.Tensor

    def forward(input: torch.Tensor) -> Any:  # noqa: A002 - PyTorch's name
        with using:  # before the look, for another thread may be in `together`
            if held.get("weight") is weight and held.get("bias") is bias and type(input) is plain:
                values = at.get(clock.step) or at[arrive(steps)]
                w, b = values if first else values[::-1]
                if torch.is_grad_enabled():
                    with torch.no_grad():
                        return compute(module, input, w, b)
                return compute(module, input, w, b)
        return original(input)  # somebody has put another there, or a weight is multiplied by a weight

    return update_wrapper(forward, original)


def _with_weight(
    weights: Weights, module: Any, original: Forward, compute: Compute, steps: tuple[int, ...], at: dict[int, Values]
) -> Forward:
    """The same where there is no bias, or the plan leaves it where it is."""
    held = module._parameters
    weight = held["weight"]
    clock, using, arrive, plain = weights.clock, weights.using, weights.arrive, torch.Tensor

    def forward(input: torch.Tensor) -> Any:  # noqa: A002 - PyTorch's name
        with using:
            if held.get("weight") is weight and type(input) is plain:
                values = at.get(clock.step) or at[arrive(steps)]
                if torch.is_grad_enabled():
                    with torch.no_grad():
                        return compute(module, input, values[0], held.get("bias"))
                return compute(module, input, values[0], held.get("bias"))
        return original(input)

    return update_wrapper(forward, original)


def borrowed(weights: Weights, module: nn.Module, original: Forward) -> Forward | None:
    """Of a module that only computes, with its own weights alone, all read in one step: they are real while it runs.

    They are so in a stand-in for the module, made for the call: whoever else looks at it meanwhile, another thread
    perhaps, finds lazy ones.
    """
    held: dict[str, Any] = module._parameters  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
    lazies = tuple((name, value) for name, value in held.items() if isinstance(value, LazyTensor))
    names, sources = [name for name, _ in lazies], [z.source for _, z in lazies]
    if not lazies or any(True for _ in module.children()) or any(s.lookups is not None for s in sources):
        return None
    if not _found_plainly(type(module)):
        return None
    steps = weights.common_steps(sources)
    if not steps or _holds_lazy(module._buffers) or not only_computes(module):  # pyright: ignore[reportPrivateUsage]
        return None
    values, clock, using, arrive = weights.together(sources), weights.clock, weights.using, weights.arrive
    (name, lazy), (last, last_lazy) = lazies[0], lazies[-1]  # the same one where there is one; mostly that is all
    between = lazies[1:-1]
    kind, own, compute = type(module), module.__dict__, type(module).forward
    make, plain, strided = object.__new__, torch.Tensor, torch.strided

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            with torch.no_grad():
                return forward(*args, **kwargs)
        simple = len(args) == 1 and type(args[0]) is plain and not kwargs
        if not simple and not (is_plain(args) and is_plain(kwargs.values())):
            return original(*args, **kwargs)
        with using:
            if (
                held.get(name) is lazy
                and held.get(last) is last_lazy
                and not (between and any(held.get(n) is not z for n, z in between))
            ):
                here = values.get(clock.step) or values[arrive(steps)]
                stand_in = make(kind)
                attributes = stand_in.__dict__
                attributes.update(own)
                attributes[name] = here[0]  # found before parameters are looked for
                attributes[last] = here[-1]
                if between:
                    attributes.update(zip(names, here, strict=True))
                result = compute(stand_in, *args, **kwargs)
                if weights.written():
                    raise overwritten(weights, lazy.source)
                if type(result) is plain and result.layout is strided and not weights.in_arena(result):
                    return result
                return detached(result, weights, dict(zip(sources, here, strict=True)))
        return original(*args, **kwargs)  # somebody has put another there

    return update_wrapper(forward, original)


def _found_plainly(kind: type[nn.Module]) -> bool:
    """Whether such modules are made, and their attributes found, as those of all others are."""
    own = kind.__new__, kind.__getattribute__, kind.__getattr__
    return own == (object.__new__, object.__getattribute__, nn.Module.__getattr__)


def _holds_lazy(held: Mapping[str, object]) -> bool:
    return any(isinstance(value, LazyTensor) for value in held.values())


def together(weights: Weights, module: nn.Module, original: Forward) -> Forward | None:
    """Of PyTorch's attention and encoder layer: with lazy parameters they would leave their fast path, and compute
    other bits. So the parameters of the whole layer are real while it runs; None of any other module.

    A weight that is an argument is copied first: to ask for it later would move what is real by then.
    """
    if _code(module) not in _FUSED:
        return None

    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tuple(map(_own, args)), {k: _own(v) for k, v in kwargs.items()}
        calls = weights.inside.calls
        with weights.using, torch.no_grad():  # before the look, for another thread may be here
            held = [(m._parameters, n, p) for m in module.modules() for n, p in m._parameters.items()]  # pyright: ignore
            lazies = [(h, n, p) for h, n, p in held if isinstance(p, LazyTensor) and p.weights is weights]
            weights.inside.calls = calls + 1
            try:
                real = weights.resolve([p.source for _, _, p in lazies])
                for (h, n, _), value in zip(lazies, real, strict=True):
                    h[n] = value  # pyright: ignore[reportArgumentType]
                return original(*args, **kwargs)
            finally:
                weights.inside.calls = calls
                for h, n, p in lazies:
                    h[n] = p  # pyright: ignore[reportArgumentType]

    return update_wrapper(forward, original)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, LazyTensor) else value


def _code(module: nn.Module) -> Any:
    return type(module).forward


def _linear(module: Any, x: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return F.linear(x, weight, bias)


def _layer_norm(module: Any, x: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def _rms_norm(module: Any, x: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return F.rms_norm(x, module.normalized_shape, weight, module.eps)


def _group_norm(module: Any, x: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return F.group_norm(x, module.num_groups, weight, bias, module.eps)


def _convolution(module: Any, x: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return module._conv_forward(x, weight, bias)


def _embedding(module: Any, x: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    if module.max_norm is not None:
        name = module._parameters["weight"].source.name
        raise functions.refuse_write(name, "an embedding with max_norm writes to its table")
    return F.embedding(x, weight, module.padding_idx, None, module.norm_type, module.scale_grad_by_freq, module.sparse)


_KNOWN: dict[Any, Compute] = {
    nn.Embedding.forward: _embedding,
    nn.Linear.forward: _linear,
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.Conv1d.forward: _convolution,
    nn.Conv2d.forward: _convolution,
    nn.Conv3d.forward: _convolution,
}
_FUSED: frozenset[Any] = frozenset((nn.MultiheadAttention.forward, nn.TransformerEncoderLayer.forward))
