"""What autograd saves in one step of a module that is run as it is: its profile, and the plan made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Choice: TypeAlias = Literal["keep", "offload", "held"]
"""`held`: something else keeps it in memory, so that saving it costs nothing and offloading it frees nothing."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """Bytes that autograd saves, once however often they are saved, by the clock of a step without stalls.

    They are there from `packed_s`, the backward pass reads them first at `needed_s`, and lets them go at `freed_s`.
    """

    nbytes: int
    packed_s: float
    needed_s: float
    freed_s: float
    held: bool = False


@dataclass(frozen=True, slots=True)
class SavedProfile:
    """Of one step of `seconds`: what was saved, in the order in which it was.

    The forward pass ended at `turn_s`. `other_nbytes` is the most that the step had allocated at one time beside what
    is saved: gradients, results, what kernels take.
    """

    tensors: tuple[SavedTensor, ...]
    seconds: float
    turn_s: float = 0.0
    other_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """Which of the saved tensors leave memory, so that those in it never have more than `capacity_nbytes`.

    Tensor k of a step is the k-th that is saved; `nbytes` tells whether a step goes as the profiled one did.
    """

    capacity_nbytes: int
    nbytes: tuple[int, ...] = ()
    choices: tuple[Choice, ...] = ()
    peak_nbytes: int = 0
    offloaded_nbytes: int = 0
