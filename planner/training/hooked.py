"""A training step that cannot be traced, as a graph to plan: what autograd saves, and the moments at which it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from ...ir.operators import TURN as TURN_TYPE
from ...ir.program import HookedStep, TrainingProgram
from ...ir.saved import SavedProfile, SavedTensor
from ..pytorch.views import OPAQUE
from .lowered import TURN
from .placed import ENGINE, TrainingLowered

_NEEDED, _TURNED, _FREED, _SAVED = range(4)
"""What happens at one instant, in this order."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """At `at_s` something happens to saved tensor `number`."""

    at_s: float
    what: int
    number: int


def lower_profile(profile: SavedProfile, *, name: str, why: str, kept_nbytes: int, updates: bool) -> TrainingLowered:
    """The step between its marks: an operator is what is computed from one of them to the next, none is called twice.

    `kept_nbytes` is what is in memory all the time (parameters, buffers, batch, states); with what the step allocates
    beside what is saved it counts in every operator. `why` and `updates` are those of `HookedStep`.
    """
    saved = {k: t for k, t in enumerate(profile.tensors) if not t.held and t.nbytes}
    workspace = kept_nbytes + profile.other_nbytes
    operators: list[Operator] = []
    reading: dict[int, None] = {}
    token: tuple[str, ...] = ()
    for before, mark in pairwise(_marks(profile, saved)):
        if before.what == _NEEDED:
            reading[before.number] = None
        if before.what == _FREED:
            reading.pop(before.number, None)
        made = (_storage(mark.number),) if mark.what == _SAVED else ()
        read = dict.fromkeys(map(_storage, [*reading, *([mark.number] if mark.what == _FREED else [])]))
        follows = f"then:{len(operators)}"
        is_turn = mark.what == _TURNED
        operators.append(
            Operator(
                id=TURN if is_turn else f"{_VERBS[mark.what]}:{mark.number}",
                op_type=TURN_TYPE if is_turn else "random:Stretch",
                inputs=(*read, *token),
                outputs=(*made, follows),
                workspace_nbytes=workspace,
                measured_ns=round((mark.at_s - before.at_s) * 1e9),
            )
        )
        token = (follows,)
    storages = tuple(Storage(_storage(k), t.nbytes, StorageKind.ACTIVATION) for k, t in saved.items())
    tokens = (Tensor(f"then:{i}", OPAQUE, None, None, 0) for i in range(len(operators)))
    tensors = (*(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages), *tokens)
    graph = Graph(name, storages, tensors, tuple(operators), (), ())
    held = tuple(k for k in range(len(profile.tensors)) if k not in saved)
    step = HookedStep(why, tuple(t.nbytes for t in profile.tensors), held, updates)
    return TrainingLowered(graph, TrainingProgram(ENGINE, None, "", TURN, workspace, {}, hooked=step))


_VERBS = {_NEEDED: "until_read", _FREED: "until_freed", _SAVED: "until_saved"}


def _storage(number: int) -> str:
    return f"saved:{number}"


def _marks(profile: SavedProfile, saved: dict[int, SavedTensor]) -> Iterator[_Mark]:
    """From the beginning of the step to its end. What is let go unread is read as it goes: it was in memory."""
    found = [_Mark(profile.turn_s, _TURNED, -1)]
    for k, t in saved.items():
        found.append(_Mark(t.packed_s, _SAVED, k))
        found += [_Mark(t.needed_s, _NEEDED, k)] if t.packed_s < t.needed_s < t.freed_s else []
        found.append(_Mark(max(t.freed_s, t.packed_s), _FREED, k))

    def order(mark: _Mark) -> tuple[float, int, int]:
        at_once = mark.what == _FREED and saved[mark.number].packed_s == mark.at_s  # let go as it is saved, not before
        return mark.at_s, _SAVED + 1 if at_once else mark.what, mark.number

    ordered = sorted(found, key=order)
    yield _Mark(0.0, _TURNED, -1)
    yield from ordered
    yield _Mark(max(profile.seconds, ordered[-1].at_s), _NEEDED, -2)
