"""What an operator does with lazy tensors: it runs on their values, where the plan has them at that moment.

Nothing that outlives the operator may lie in the plan's memory: a result that does is made a lazy tensor, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any

import torch

from . import functions
from .computing import is_plain
from .lazy import Args, Kwargs, LazyParameter, LazyTensor
from .weights import Source, Weights


def _find(values: Any, found: list[LazyTensor]) -> None:
    for value in values:
        if isinstance(value, LazyTensor):
            found.append(value)
        elif type(value) in (list, tuple, dict):
            _find(value.values() if type(value) is dict else value, found)


def lazies_in(args: Args, kwargs: Kwargs) -> list[LazyTensor]:
    """Those among the arguments, those in tuples, lists and dictionaries included."""
    found: list[LazyTensor] = []
    _find(args, found)
    if kwargs:
        _find(kwargs.values(), found)
    return found


def first_name(args: Args, kwargs: Kwargs) -> str:
    """Of the first lazy tensor among the arguments."""
    return lazies_in(args, kwargs)[0].source.name


def put(value: Any, real: dict[int, torch.Tensor]) -> Any:
    """`value` with lazy tensors replaced by `real` ones, by identity."""
    if isinstance(value, LazyTensor):
        return real[id(value)]
    if type(value) in (list, tuple):
        return type(value)(put(v, real) for v in value)
    if type(value) is dict:
        return {k: put(v, real) for k, v in value.items()}
    return value


def _run(func: Any, args: Args, kwargs: Kwargs, real: dict[int, torch.Tensor]) -> Any:
    args = tuple([put(a, real) for a in args])
    return func(*args, **{k: put(v, real) for k, v in kwargs.items()})


def compute_new(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`compute` for the common case, in as little time as can be: no nested arguments, nothing that is a view."""
    if torch.is_grad_enabled():
        return compute(func, args, kwargs)
    places: list[int] = []
    for i, value in enumerate(args):  # a comprehension would be one more call
        if type(value) is LazyParameter or type(value) is LazyTensor:
            places.append(i)
    if not places or (kwargs and not is_plain(kwargs.values())):
        return compute(func, args, kwargs)
    first = args[places[0]]
    weights: Weights = first.weights
    if not weights.inside.calls:
        return compute(func, args, kwargs)
    values = list(args)
    with weights.using:
        step = weights.clock.step
        if len(places) == 1:
            real = None if first.at is None else first.at.get(step)
            if real is None:
                source = first.source
                if step not in source.at:
                    if not source.steps:
                        return compute(func, args, kwargs)
                    step = weights.arrive(source.steps)
                real = first.of_step(step)
            values[places[0]] = real
            return func(*values, **kwargs)
        if any(args[i].weights is not weights for i in places):  # whose steps are another plan's
            return compute(func, args, kwargs)
        sources = [args[i].source for i in places]
        if any(step not in s.at for s in sources):
            steps = weights.common_steps(sources)
            if not steps:
                return compute(func, args, kwargs)
            step = weights.arrive(steps)
        for i in places:
            values[i] = args[i].of_step(step)
        return func(*values, **kwargs)


def compute(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`func` on real values, where the plan has them."""
    if torch.is_grad_enabled():
        with torch.no_grad():  # what autograd would keep for later is not there later
            return compute(func, args, kwargs)
    lazies = lazies_in(args, kwargs)
    weights = lazies[0].weights
    if kwargs and lazies_in((kwargs.get("out"),), {}):
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
    """`result` with what lies in the plan's memory made lazy, in lists, tuples and dictionaries, too."""
    if isinstance(result, torch.Tensor):
        if isinstance(result, LazyTensor):
            return result
        if result.layout != torch.strided:
            return result.clone()  # its parts may lie there
        if not weights.in_arena(result):
            return result
        address = result.data_ptr()
        for source, real in there.items():
            distance = address - real.data_ptr()
            if 0 <= distance < source.tensor.nbytes and not result.is_conj() and not result.is_neg():
                return _again(result, weights, source, distance)
        return result.clone()
    if isinstance(result, (list, tuple)):
        parts = [detached(r, weights, there) for r in result]
        return result if _same(parts, result) else _like(result, parts)
    if isinstance(result, dict):
        values = [detached(r, weights, there) for r in result.values()]
        return result if _same(values, result.values()) else _like_dictionary(result, values)
    return result


def _same(parts: list[Any], before: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(parts, before, strict=True))


def _like(before: list[Any] | tuple[Any, ...], parts: list[Any]) -> Any:
    kind = type(before)
    return kind(*parts) if hasattr(kind, "_make") else kind(parts)  # a named tuple takes them one by one


def _like_dictionary(before: dict[Any, Any], values: list[Any]) -> Any:
    made = copy(before)  # with what a class of its own has besides
    for key, value in zip(before, values, strict=True):
        made[key] = value
    return made


def _again(result: torch.Tensor, weights: Weights, source: Source, distance: int) -> torch.Tensor:
    offset, rest = divmod(distance, result.element_size())
    if rest:
        return result.clone()
    elements = torch.empty(source.tensor.nbytes // result.element_size(), dtype=result.dtype, device="meta")
    return LazyTensor(weights, source, torch.as_strided(elements, result.shape, result.stride(), offset))


def compute_whole(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What hands the memory itself on gets memory of its own."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            return compute_whole(func, args, kwargs)
    lazies = lazies_in(args, kwargs)
    there = {z.source: z.weights.read(z.source) for z in lazies}
    return _run(func, args, kwargs, {id(z): z.of(there[z.source]) for z in lazies})


def embed(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Rows of a table: read by the store where the plan never has it in memory."""
    table, indices, norm = functions.embedding_arguments(func, args, kwargs)
    if norm is not None and isinstance(table, LazyTensor):
        raise functions.refuse_write(table.source.name, "an embedding with max_norm writes to its table")
    if not isinstance(table, LazyTensor) or table.source.lookups is None or isinstance(indices, LazyTensor):
        return compute_new(func, args, kwargs)  # rows are gathered, so they are no view of the table
    if table.like.shape != table.source.shape or table.like.stride() != table.source.strides:
        return compute(func, args, kwargs)
    return table.weights.look_up(table.source, table.source.lookups, indices)
