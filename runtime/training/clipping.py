"""Gradients clipped inside a planned step, as torch.nn.utils clips those of a plain loop: to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype  # pyright: ignore[reportPrivateUsage]

from ...ir.errors import ExecutionError, PlanMismatchError
from ...ir.program import Clip

_torch: Any = torch  # what torch.nn.utils calls has no public name

Scale = Callable[[torch.Tensor], torch.Tensor]
"""Of a gradient, or a range of one, the clipped one; what is given stays as it is."""


class Clipping:
    """The norms of a step's gradients, and the factor that they give; `clip` says how, `trained` are the parameters
    that have updates, by first name.

    The order in which norms are summed up is that of `module.parameters()`, which loops clip. Raises PlanMismatchError
    where the plan takes norms of other gradients, or says no one way to clip.
    """

    def __init__(self, clip: Clip, module: nn.Module, trained: Mapping[str, torch.Tensor]) -> None:
        given = [v for v in (clip.max_norm, clip.clip_value) if v is not None]
        if len(given) != 1 or not given[0] > 0:
            raise PlanMismatchError(
                f"the plan clips gradients by max_norm {clip.max_norm} and clip_value {clip.clip_value}; it needs one "
                "number above 0: plan again"
            )
        if clip.max_norm is not None and set(clip.norms.values()) != set(trained):
            raise PlanMismatchError(
                f"the plan takes the norms of {len(clip.norms)} gradients and updates {len(trained)} parameters; plan "
                "again"
            )
        self._clip = clip
        self.norms = clip.norms
        """The operators that take norms, with the first name of the parameter of each."""
        ordered = [name for name, _ in module.named_parameters() if name in trained]
        self._order = _grouped(ordered, trained)
        self._norms: dict[str, torch.Tensor] = {}
        self._factor: torch.Tensor | None = None
        self.total: torch.Tensor | None = None
        """The norm of all gradients of the last step, before they were clipped: what clip_grad_norm_ returns."""

    def begin(self) -> None:
        """A step begins."""
        self._norms.clear()
        self._factor = None

    def take(self, operator: str, gradient: torch.Tensor) -> None:
        """The gradient whose norm `operator` takes, laid out as its parameter."""
        with torch.no_grad():
            self._norms[self._clip.norms[operator]] = _torch._foreach_norm([gradient], 2.0)[0]

    def finish(self) -> None:
        """All norms were taken: the factor, as `clip_grads_with_norm_` makes it."""
        missing = [name for name in self._order if name not in self._norms]
        if self._clip.max_norm is None or missing:
            raise ExecutionError(
                f"the norms of {len(missing)} gradients were not taken before they are clipped; plan again"
            )
        with torch.no_grad():
            total = torch.linalg.vector_norm(torch.stack([self._norms[name] for name in self._order]), 2.0)
            self._factor = torch.clamp(self._clip.max_norm / (total + 1e-6), max=1.0)
        self.total = total

    def scale(self, gradient: torch.Tensor) -> torch.Tensor:
        """The clipped gradient, of all of one or of a range."""
        if self._clip.clip_value is not None:
            clipped = _torch._foreach_clamp_min([gradient], -self._clip.clip_value)
            _torch._foreach_clamp_max_(clipped, self._clip.clip_value)
            return clipped[0]
        if self._factor is None:
            raise ExecutionError("an update ran before all gradients were there to be clipped; plan again")
        return _torch._foreach_mul([gradient], self._factor)[0]


def _grouped(names: Sequence[str], trained: Mapping[str, torch.Tensor]) -> list[str]:
    """`names` as torch groups them by type, which is the order in which it sums up norms."""
    if not names:
        return []
    found = _group_tensors_by_device_and_dtype([[trained[n].detach() for n in names]], with_indices=True)
    return [names[i] for _, indices in found.values() for i in indices]


def clip_plain(clip: Clip, module: nn.Module) -> torch.Tensor | None:
    """Clip the gradients that the module's parameters have, and return their norm, if it is by that."""
    if clip.max_norm is not None:
        return clip_grad_norm_(list(module.parameters()), clip.max_norm)
    if clip.clip_value is not None:
        clip_grad_value_(list(module.parameters()), clip.clip_value)
    return None


def clip_ns(norm: bool, dtype: str, elements: int, *, passes: int = 3) -> int:
    """Nanoseconds of taking the norm of a gradient here, or of scaling one: the median over `passes`, after one. At
    most 2^24 elements are measured; what is larger takes in proportion."""
    measured = min(max(elements, 1), 1 << 24)
    gradient = torch.full((measured,), 1e-3, dtype=getattr(torch, dtype))
    factor = torch.tensor(0.5)
    taken: list[int] = []
    for _ in range(passes + 1):
        begin = perf_counter_ns()
        if norm:
            _torch._foreach_norm([gradient], 2.0)
        else:
            _torch._foreach_mul([gradient], factor)
        taken.append(perf_counter_ns() - begin)
    return max(1, sorted(taken[1:])[passes // 2] * max(elements, 1) // measured)
