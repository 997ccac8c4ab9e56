"""Results of operators at their planned addresses: told to the allocator, checked once, copied where that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .allocator import Region
from .emit_calls import Key
from .placement import Placement


class Steering:
    """The hooks `at`, `done` and `settle` of emitted code, for one placement in one region.

    In the first pass each step is looked at: which of its allocations are its results. From then on nothing is looked
    at but what the allocator reports as missed.

    Behind the turn, or a move, a value is read at its address as it was traced. A result that an operator lays out
    otherwise (one that is not PyTorch's own may, against what its fake says) is copied to its place, each time.
    """

    def __init__(self, placement: Placement, region: Region, view: Callable[[Key, int], torch.Tensor]) -> None:
        self._base = placement.arena.address
        self._nbytes = region.nbytes
        self._view = view
        slots = placement.slots()
        self._script = region.script([list(found.values()) for found in slots])
        self._slotted = [list(found) for found in slots]
        self._places: list[list[tuple[Key, int | None]]] = [
            [(key, placement.address(key, t)) for key, _ in placement.results(step.op)]
            for t, step in enumerate(placement.plan.steps)
        ]
        self._traced = [[value for _, value in placement.results(step.op)] for step in placement.plan.steps]
        self._learned = [False] * len(self._places)
        self.copies = 0

    @property
    def hooks(self) -> dict[str, Any]:
        """What emitted code calls; to be asked for again when a pass has ended."""
        done = self._script.done if all(self._learned) else self._observed
        return {"at": self._script.at, "done": done, "settle": self.settle}

    def enter(self) -> None:
        """What this thread allocates goes by the plan from here on."""
        self._script.enter()
        self._script.logging(not all(self._learned))

    def leave(self) -> None:
        """What this thread allocates goes where it went before."""
        self._script.logging(False)
        self._script.leave()

    def finish(self) -> None:
        """A whole pass has run: there is nothing more to learn."""
        self._learned = [True] * len(self._learned)

    def _observed(self) -> int:
        self._script.done()
        return 1

    def settle(self, t: int, *results: torch.Tensor) -> list[torch.Tensor]:
        """The results of step `t` where the plan has them: as they are, or copied there."""
        if not self._learned[t]:
            self._learn(t, results)
        places = self._places[t]
        # A result that lies in the place of another one, or of nothing that is, leaves it before that one comes.
        settled = [
            result.clone() if self._astray(result, offset, traced) else result
            for result, (_, offset), traced in zip(results, places, self._traced[t], strict=True)
        ]
        for i, (key, offset) in enumerate(places):
            if offset is not None and settled[i].data_ptr() != self._base + offset:
                place = self._view(key, offset)
                place.copy_(settled[i])
                settled[i] = place
                self.copies += 1
        return settled

    def _astray(self, result: torch.Tensor, offset: int | None, traced: torch.Tensor) -> bool:
        """Whether a result lies in the planned memory, and not where it should or not as it should."""
        found = result.data_ptr() - self._base
        return 0 <= found < self._nbytes and (found != offset or not _lies_as(result, traced))

    def _learn(self, t: int, results: tuple[torch.Tensor, ...]) -> None:
        """Which allocations the results are. One that lies otherwise than it was traced is none, so that it is missed,
        and copied, in every pass."""
        places, traced = self._places[t], self._traced[t]
        self._script.learn(
            t,
            [
                results[i].data_ptr() if places[i][1] is None or _lies_as(results[i], traced[i]) else _NOWHERE
                for i in self._slotted[t]
            ],
        )
        self._learned[t] = True


_NOWHERE = -1
"""An address that no allocation has."""


def _lies_as(result: torch.Tensor, traced: torch.Tensor) -> bool:
    strides = zip(result.shape, result.stride(), traced.stride(), strict=True)
    return not result.numel() or all(n == 1 or a == b for n, a, b in strides)
