"""Forwards replaced on instances of modules: neither their classes nor other instances change."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from torch import nn

Forward = Callable[..., Any]


class Replaced:
    """What was replaced, so that it can be put back."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, Any]] = []

    def replace(self, part: nn.Module, make: Callable[[Forward], Forward]) -> None:
        """Let `make` of the forward that `part` has be its forward; it keeps the name and the signature."""
        original = part.forward
        self._before.append((part, part.__dict__.get("forward")))
        part.__dict__["forward"] = update_wrapper(make(original), original)

    def put_back(self) -> None:
        """All as it was, the last first; again is allowed."""
        for part, before in reversed(self._before):
            if before is None:
                part.__dict__.pop("forward", None)
            else:
                part.__dict__["forward"] = before
        self._before.clear()
