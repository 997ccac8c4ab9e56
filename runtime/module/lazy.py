"""Parameters without memory: they know what they are, and ask for their values when an operator needs them.

A lazy tensor stands in the module where a parameter was. What can be told without its values (shape, type, device) is
told; a view of it is a lazy tensor again (`lazy_views`); every other function of PyTorch runs on the real values
(`lazy_values`), which are where the plan has them at that moment, and nowhere else. `lazy_handlers` tells which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from . import functions
from .weights import Source, Weights

VIEWS = 32
"""Kept of one tensor: a layer makes the same few; who cuts by lengths that vary makes new ones."""
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Handler = Callable[[Any, Args, Kwargs], Any]


class LazyTensor(torch.Tensor):
    """A placed buffer, or a view of a placed tensor: what `like` (on 'meta') is of it, as elements of the arena.

    `at` has its values by step, as far as they were needed: those of a whole weight are its source's, and views that
    are not kept have none. `views` are kept by what made them, `same` is what would make this very tensor.
    """

    weights: Weights
    source: Source
    like: torch.Tensor
    is_whole: bool
    at: dict[int, torch.Tensor] | None
    cut: tuple[Any, Any, Any] | None
    views: dict[Hashable, LazyTensor]
    same: set[Hashable]

    # Models ask for these all the time; past `__torch_function__` they cost half as much.
    device = property(lambda self: self.weights.where)  # pyright: ignore[reportAssignmentType]
    shape = property(lambda self: self.like.shape)  # pyright: ignore[reportAssignmentType]
    dtype = property(lambda self: self.like.dtype)  # pyright: ignore[reportAssignmentType]
    ndim = property(lambda self: self.like.ndim)  # pyright: ignore[reportAssignmentType]

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
        made.at = made.cut = None
        made.views = {}
        made.same = set()
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

    def of_step(self, step: int) -> torch.Tensor:
        """This view of the weight where `step`, one of its source's, has it."""
        at = self.at
        if at is None:
            return self.of(self.source.at[step])
        real = at.get(step)
        if real is None:
            real = at[step] = self.of(self.source.at[step])
        return real

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        run = _HANDLERS.get(func)
        if run is None:
            from .lazy_handlers import handler

            run = _HANDLERS[func] = handler(func)
        return run(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        # What came past __torch_function__: calls from within PyTorch's own C++.
        from .lazy_values import compute, first_name

        if functions.writes_to(func, args, kwargs or {}, LazyTensor):
            raise functions.refuse_write(first_name(args, kwargs or {}))
        return compute(func, args, kwargs or {})


_HANDLERS: dict[Any, Handler] = {}
"""By function; found on its first call. Tables by an Enum would call its `__hash__`, which is Python's, every time."""


class LazyParameter(LazyTensor):
    """A placed parameter; `isinstance(p, torch.nn.Parameter)` holds."""

    _is_param = True


def whole(weights: Weights, source: Source, *, parameter: bool) -> LazyTensor:
    """The lazy tensor that takes the place of a parameter or a buffer."""
    like = torch.empty_strided(source.shape, source.strides, dtype=source.dtype, device="meta")
    kind = LazyParameter if parameter else LazyTensor
    made = LazyTensor.__new__(kind, weights, source, like, requires_grad=source.requires_grad)
    made.is_whole = True
    made.at = source.at
    return made
