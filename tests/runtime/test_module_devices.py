"""Tests of runtime/module/devices.py without a device: what a mark comes after, whatever stream is current."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from tensorstow.runtime.module.devices import CudaDevice


@dataclass(eq=False)
class Stream:
    """What was called in a stream, and what that comes after."""

    before: set[str] = field(default_factory=set[str])

    def __eq__(self, other: object) -> bool:  # as PyTorch's, which makes a new object each time
        return isinstance(other, Stream) and other.before is self.before

    __hash__ = None  # type: ignore[assignment]

    def call(self, kernel: str) -> None:
        self.before.add(kernel)

    def wait_stream(self, other: Stream) -> None:
        self.before.update(other.before)


class Event:
    """What had been called when it was recorded."""

    def __init__(self) -> None:
        self.after: set[str] = set()

    def record(self, stream: Stream) -> None:
        self.after = set(stream.before)


class Current:
    """The stream that PyTorch would say is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = Stream()
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", self.now)

    def now(self, _: torch.device) -> Stream:
        """Another object for the same stream."""
        return Stream(self.stream.before)


def test_a_mark_comes_after_the_kernels_of_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    current = Current(monkeypatch)
    device = CudaDevice(0)
    for instant in (0, 3):
        device.expect(instant)
    marks, events = device.marks, device._events  # pyright: ignore[reportPrivateUsage]
    called: set[str] = set()
    one, two = current.stream, Stream()
    for number, stream in enumerate((one, one, two, two, one, two)):
        current.stream = stream
        for instant in (0, 3):
            marks[instant]()
            assert events[instant].after == called  # type: ignore[attr-defined, comparison-overlap]
            called.add(f"{number} after {instant}")
            stream.call(f"{number} after {instant}")


def test_one_stream_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    current = Current(monkeypatch)
    device = CudaDevice(0)
    device.expect(0)
    waited: list[Stream] = []

    def waiting(_: Stream, other: Stream) -> None:
        waited.append(other)

    monkeypatch.setattr(Stream, "wait_stream", waiting)
    for _ in range(3):
        current.stream.call("kernel")
        device.marks[0]()
    assert not waited
    device.close()
    current.stream = Stream()
    device.expect(0)
    assert not waited
