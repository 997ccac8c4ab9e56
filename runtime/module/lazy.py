"""Parameters without memory: they know what they are, and ask for their values when an operator needs them.

A lazy tensor stands in the module where a parameter was. What can be told without its values (shape, type, device) is
told; a view of it is a lazy tensor again; and every other function of PyTorch runs on the real values, which are where
the plan has them at that moment and nowhere else. So nothing that outlives the function may lie in the plan's memory:
a result that does is made a lazy tensor, too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from . import functions
from .computing import is_plain
from .functions import Kind
from .weights import Source, Weights

VIEWS = 16
"""Kept of one tensor: a layer makes the same few; who cuts by lengths that vary makes new ones."""
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class LazyTensor(torch.Tensor):
    """A placed buffer, or a view of a placed tensor: what `like` (on 'meta') is of it, as elements of the arena."""

    weights: Weights
    source: Source
    like: torch.Tensor
    is_whole: bool
    cut: tuple[Any, Any, Any] | None
    views: dict[Hashable, LazyTensor]

    @staticmethod
    def __new__(
        cls: type[LazyTensor], weights: Weights, source: Source, like: torch.Tensor, *, requires_grad: bool = False
    ) -> LazyTensor:
        made: Any = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportPrivateUsage]
            cls,
            like.shape,
            strides=like.stride(),
            storage_offset=like.storage_offset(),
            dtype=like.dtype,
            device=weights.where,
            requires_grad=requires_grad,
        )
        made.weights, made.source, made.like = weights, source, like
        made.is_whole = False
        made.cut = None
        made.views = {}
        return made

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """This view, of the whole weight."""
        if self.is_whole:
            return whole
        like, cut = self.like, self.cut
        if like.dtype == whole.dtype:
            if cut is None:
                cut = self.cut = like.shape, like.stride(), like.storage_offset()
            return torch.as_strided(whole, cut[0], cut[1], whole.storage_offset() + cut[2])
        elements = torch.as_strided(whole, (whole.numel(),), (1,)).view(like.dtype)
        return torch.as_strided(elements, like.shape, like.stride(), elements.storage_offset() + like.storage_offset())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        run = _HANDLERS.get(func)
        if run is None:
            run = _HANDLERS[func] = _handler(func)
        return run(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        # What came past __torch_function__: calls from within PyTorch's own C++.
        if functions.writes_to(func, args, kwargs or {}, LazyTensor):
            raise functions.refuse_write(_names(args, kwargs or {}))
        return _compute(func, args, kwargs or {})


class LazyParameter(LazyTensor):
    """A placed parameter; `isinstance(p, torch.nn.Parameter)` holds."""

    _is_param = True


def whole(weights: Weights, source: Source, *, parameter: bool) -> LazyTensor:
    """The lazy tensor that takes the place of a parameter or a buffer."""
    like = torch.empty_strided(source.shape, source.strides, dtype=source.dtype, device="meta")
    kind = LazyParameter if parameter else LazyTensor
    made = LazyTensor.__new__(kind, weights, source, like, requires_grad=source.requires_grad)
    made.is_whole = True
    return made


def _find(values: Any, found: list[LazyTensor]) -> None:
    for value in values:
        if isinstance(value, LazyTensor):
            found.append(value)
        elif type(value) in (list, tuple, dict):
            _find(value.values() if type(value) is dict else value, found)


def _lazies(args: Args, kwargs: Kwargs) -> list[LazyTensor]:
    found: list[LazyTensor] = []
    _find(args, found)
    if kwargs:
        _find(kwargs.values(), found)
    return found


def _names(args: Args, kwargs: Kwargs) -> str:
    return _lazies(args, kwargs)[0].source.name


def _put(value: Any, real: dict[int, torch.Tensor]) -> Any:
    """`value` with lazy tensors replaced by `real` ones, by identity."""
    if isinstance(value, LazyTensor):
        return real[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_put(v, real) for v in value)
    if type(value) is dict:
        return {k: _put(v, real) for k, v in value.items()}
    return value


def _run(func: Any, args: Args, kwargs: Kwargs, real: dict[int, torch.Tensor]) -> Any:
    args = tuple([_put(a, real) for a in args])
    return func(*args, **{k: _put(v, real) for k, v in kwargs.items()})


def _compute_new(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`_compute` for the common case, in as little time as can be: no nested arguments, nothing that is a view."""
    if torch.is_grad_enabled():
        return _compute(func, args, kwargs)
    places = [i for i, a in enumerate(args) if type(a) is LazyParameter or type(a) is LazyTensor]
    if not places or (kwargs and not is_plain(kwargs.values())):
        return _compute(func, args, kwargs)
    first = args[places[0]]
    weights: Weights = first.weights
    if not weights.inside.calls:
        return _compute(func, args, kwargs)
    values = list(args)
    with weights.using:
        step = weights.clock.step
        if len(places) == 1:
            source = first.source
            if step not in source.at:
                if not source.steps:
                    return _compute(func, args, kwargs)
                step = weights.arrive(source.steps)
            values[places[0]] = first.of(source.at[step])
            return func(*values, **kwargs)
        sources = [args[i].source for i in places]
        if any(step not in s.at for s in sources):
            steps = weights.common_steps(sources)
            if not steps:
                return _compute(func, args, kwargs)
            step = weights.arrive(steps)
        for i in places:
            values[i] = args[i].of(args[i].source.at[step])
        return func(*values, **kwargs)


def _compute(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`func` on real values, where the plan has them."""
    if torch.is_grad_enabled():
        with torch.no_grad():  # what autograd would keep for later is not there later
            return _compute(func, args, kwargs)
    lazies = _lazies(args, kwargs)
    weights = lazies[0].weights
    if kwargs and _lazies((kwargs.get("out"),), {}):
        raise functions.refuse_write(lazies[0].source.name)
    with weights.using:
        ours = list(dict.fromkeys(z.source for z in lazies if z.weights is weights))
        there = dict(zip(ours, weights.resolve(ours), strict=True))
        for z in lazies:
            if z.source not in there:  # of another module, run by another plan
                there[z.source] = z.weights.read(z.source)
        result = _run(func, args, kwargs, {id(z): z.of(there[z.source]) for z in lazies})
        if func in functions.MAKE_NEW:
            return result
        if weights.written():
            raise overwritten(weights, lazies[0].source)
        return detached(result, weights, there)


def overwritten(weights: Weights, source: Source) -> Exception:
    """The error for a write to the plan's memory. What was overwritten is read again."""
    weights.clock.ready = False
    weights.clock.step = -1
    return functions.refuse_write(source.name)


def detached(result: Any, weights: Weights, there: dict[Source, torch.Tensor]) -> Any:
    """`result` with what lies in the plan's memory made lazy."""
    if isinstance(result, torch.Tensor):
        if isinstance(result, LazyTensor) or result.layout != torch.strided or not weights.in_arena(result):
            return result
        address = result.data_ptr()
        for source, real in there.items():
            distance = address - real.data_ptr()
            if 0 <= distance < source.tensor.nbytes and not result.is_conj() and not result.is_neg():
                return _again(result, weights, source, distance)
        return result.clone()
    if isinstance(result, (list, tuple)):
        parts = [detached(r, weights, there) for r in result]
        if all(a is b for a, b in zip(parts, result, strict=True)):
            return result
        return parts if isinstance(result, list) else tuple(parts)
    return result


def _again(result: torch.Tensor, weights: Weights, source: Source, distance: int) -> torch.Tensor:
    offset, rest = divmod(distance, result.element_size())
    if rest:
        return result.clone()
    elements = torch.empty(source.tensor.nbytes // result.element_size(), dtype=result.dtype, device="meta")
    return LazyTensor(weights, source, torch.as_strided(elements, result.shape, result.stride(), offset))


def _told(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What needs no values."""
    with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
        return func(*args, **kwargs)


def _view(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """A view of a lazy tensor is one, too. What turns out not to be a view is computed."""
    lazy = args[0] if args else None
    if not kwargs and len(args) == 3 and isinstance(lazy, LazyTensor) and type(args[1]) is type(args[2]) is int:
        return _view_again(func, lazy, args)
    return _view_anew(func, lazy, args, kwargs)


def _view_again(func: Any, lazy: LazyTensor, args: Args) -> Any:
    """The view of two numbers that was made before (`transpose(-2, -1)` in every call of a layer), or a new one."""
    key = func, args[1], args[2], torch.is_inference_mode_enabled()
    known = lazy.views.get(key)
    if known is not None:
        return known
    made = _view_anew(func, lazy, args, {})
    if type(made) is LazyTensor and made is not lazy and len(lazy.views) < VIEWS:
        lazy.views[key] = made
    return made


def _view_anew(func: Any, lazy: Any, args: Args, kwargs: Kwargs) -> Any:
    if isinstance(lazy, LazyTensor) and len(_lazies(args[1:], kwargs)) == 0:
        try:
            result = func(lazy.like, *args[1:], **kwargs)
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
            return _compute(func, args, kwargs)  # which tells what is wrong with it
        if result is lazy.like:
            return lazy
        if _all_views(result, lazy.like):
            return _lazy_views(result, lazy)
    elif func in functions.SHAPE_ONLY and not isinstance(lazy, LazyTensor):
        # Only the shape or the type of the lazy ones is asked for.
        real = {id(z): torch.empty(1, dtype=z.dtype, device=z.device).expand(z.shape) for z in _lazies(args, kwargs)}
        return func(*(_put(a, real) for a in args), **{k: _put(v, real) for k, v in kwargs.items()})
    return _compute(func, args, kwargs)


def _all_views(result: Any, of: torch.Tensor) -> bool:
    if isinstance(result, torch.Tensor):
        same = result.untyped_storage()._cdata == of.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
        return same and not result.is_conj() and not result.is_neg()
    return isinstance(result, (list, tuple)) and all(_all_views(r, of) for r in result)


def _lazy_views(result: Any, of: LazyTensor) -> Any:
    if isinstance(result, torch.Tensor):
        return LazyTensor(of.weights, of.source, result)
    parts = [_lazy_views(r, of) for r in result]
    return parts if isinstance(result, list) else tuple(parts)


def _iterate(func: Any, args: Args, kwargs: Kwargs) -> Any:
    return iter(_view(torch.Tensor.unbind, args, kwargs))


def _convert(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`Tensor.to` and its relatives: nothing to do where it is so already."""
    lazy = args[0]
    if isinstance(lazy, LazyTensor) and not _lazies(args[1:], kwargs) and functions.is_so(func, lazy, args[1:], kwargs):
        return lazy
    return _compute(func, args, kwargs) if isinstance(lazy, LazyTensor) else _view(func, args, kwargs)


def _whole(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What hands the memory itself on gets memory of its own."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _whole(func, args, kwargs)
    lazies = _lazies(args, kwargs)
    there = {z.source: z.weights.read(z.source) for z in lazies}
    return _run(func, args, kwargs, {id(z): z.of(there[z.source]) for z in lazies})


def _embed(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Rows of a table: read by the store where the plan never has it in memory."""
    table, indices, norm = functions.embedding_arguments(func, args, kwargs)
    if norm is not None and isinstance(table, LazyTensor):
        raise functions.refuse_write(table.source.name, "an embedding with max_norm writes to its table")
    if not isinstance(table, LazyTensor) or table.source.lookups is None or isinstance(indices, LazyTensor):
        return _compute(func, args, kwargs)
    if table.like.shape != table.source.shape or table.like.stride() != table.source.strides:
        return _compute(func, args, kwargs)
    return table.weights.look_up(table.source, table.source.lookups, indices)


def _write(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Functions that write to their first argument, or to `out`."""
    if functions.harmless_write(func, args):
        return args[0]
    wanted = functions.wanted_grad(func, args, kwargs)
    if wanted is not None and isinstance(args[0], LazyTensor) and args[0].is_whole:
        args[0].source.require_grad(wanted)
        return _told(func, args, kwargs)
    first = _lazies(args[:1], {}) or ([] if args else _lazies((), kwargs)) or _lazies((kwargs.get("out"),), {})
    if first:
        raise functions.refuse_write(first[0].source.name)
    return _compute(func, args, kwargs)


def _address(func: Any, args: Args, kwargs: Kwargs) -> Any:
    raise functions.refuse_address(_names(args, kwargs), func)


def _answer(func: Any, args: Args, kwargs: Kwargs) -> Any:
    return False


_RUN: dict[Kind, Callable[[Any, Args, Kwargs], Any]] = {
    Kind.COMPUTE: _compute,
    Kind.TOLD: _told,
    Kind.VIEW: _view,
    Kind.ITERATE: _iterate,
    Kind.CONVERT: _convert,
    Kind.WHOLE: _whole,
    Kind.EMBED: _embed,
    Kind.WRITE: _write,
    Kind.ADDRESS: _address,
    Kind.NEVER: _answer,
}
_HANDLERS: dict[Any, Callable[[Any, Args, Kwargs], Any]] = {}
"""By function; found on its first call. Tables by an Enum would call its `__hash__`, which is Python's, every time."""


def _handler(func: Any) -> Callable[[Any, Args, Kwargs], Any]:
    if func in functions.MAKE_NEW:
        return _compute_new
    if func in functions.GEOMETRY:
        return _geometry
    if func == torch.Tensor.device.__get__:  # pyright: ignore[reportFunctionMemberAccess, reportUnknownMemberType, reportAttributeAccessIssue]
        return _device
    return _RUN[functions.kind_of(func)]


def _geometry(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What 'meta' tells as well; asked of that, nothing has to be switched off first."""
    lazy = args[0]
    return func(lazy.like, *args[1:], **kwargs) if isinstance(lazy, LazyTensor) else _told(func, args, kwargs)


def _device(func: Any, args: Args, kwargs: Kwargs) -> Any:
    return args[0].weights.where
