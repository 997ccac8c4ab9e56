"""What the engine of saved tensors knows of each: its bytes, where they are, who saved them, and what was counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import torch

from .saved_contents import Shape
from .spill import Job


@dataclass(frozen=True, slots=True)
class SavedStats:
    """Counts since the engine was made; `resident_nbytes` and `disk_nbytes` are of now.

    `peak_nbytes` is the most that contents had in memory at once, `deviations` the contents whose step did not go as
    the profile, `stall_s` the time waited in saving and in reading.
    """

    contents: int = 0
    shared: int = 0
    offloaded: int = 0
    written_nbytes: int = 0
    read_nbytes: int = 0
    forwarded: int = 0
    deviations: int = 0
    resident_nbytes: int = 0
    peak_nbytes: int = 0
    disk_nbytes: int = 0
    stall_s: float = 0.0


class State(Enum):
    """Where the bytes of a content are."""

    KEPT = auto()  # in memory until nobody needs it
    STORING = auto()  # in memory until its store has ended
    BELOW = auto()
    LOADING = auto()
    LOADED = auto()  # in memory until it was read by all who saved it; what is below stays
    GONE = auto()


class Record:
    """What is known of a content without its bytes; it outlives the content until its disk and memory are counted."""

    __slots__ = ("counted", "error", "holder", "job", "modified", "nbytes", "place", "sequence", "state")

    def __init__(self, sequence: int, nbytes: int) -> None:
        self.sequence = sequence
        self.nbytes = nbytes
        self.state = State.KEPT
        self.counted = False  # whether its bytes are in `resident`
        self.place: tuple[int, int] | None = None
        self.job: Job | None = None
        self.error: BaseException | None = None
        self.modified = False
        self.holder: weakref.ref[Content] | None = None

    def content(self) -> Content | None:
        """Its content, while it lives."""
        return self.holder() if self.holder is not None else None


class Content:
    """The bytes of a storage when it was saved; alive while a save of it is. `data` is None while they are below."""

    def __init__(self, record: Record, tensor: torch.Tensor, dropped: Callable[[Record], None]) -> None:
        self.record = record
        self.version = tensor._version
        self.data: torch.Tensor | None = tensor.detach()
        self.unread = 0  # saves of it that the backward pass has not read yet
        self._dropped = dropped

    def check(self) -> None:
        """Whether what is in memory is still what was saved."""
        if self.data is not None and self.record.state is not State.LOADED:
            self.record.modified |= self.data._version != self.version

    def __del__(self) -> None:
        self._dropped(self.record)


class Saved:
    """What autograd holds in place of a tensor."""

    __slots__ = ("content", "read", "shape")

    def __init__(self, content: Content, tensor: torch.Tensor) -> None:
        self.content = content
        self.shape = Shape(tensor)
        self.read = False
