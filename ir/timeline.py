"""What the simulator finds: when each step ran and each transfer was under way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .plan import Certificate


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Step `step` ran in [start_ns, end_ns) after `wait_ns` of waiting, at last for transfer `waited_for`."""

    step: int
    start_ns: int
    end_ns: int
    wait_ns: int
    waited_for: int | None


@dataclass(frozen=True, slots=True)
class TransferEvent:
    """Transfer `index` of the plan occupied `lane` in [start_ns, end_ns)."""

    index: int
    lane: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """One pass in the steady state, from its own beginning; transfers for it may have begun before, at negative times.

    `pass_ns` is the mean over passes in the steady state, `first_pass_ns` the first pass with the fill before it.
    """

    pass_ns: int
    first_pass_ns: int
    compute_ns: int
    lane_busy_ns: dict[str, int]
    steps: tuple[StepEvent, ...]
    transfers: tuple[TransferEvent, ...]

    @property
    def wait_ns(self) -> int:
        """Nanoseconds of the pass in which nothing computes."""
        return sum(s.wait_ns for s in self.steps)

    @property
    def slowed_ns(self) -> int:
        """Nanoseconds that computing takes longer in the pass because links move bytes meanwhile."""
        return sum(s.end_ns - s.start_ns for s in self.steps) - self.compute_ns


def timed(certificate: Certificate, timeline: Timeline) -> Certificate:
    """`certificate` with the times that the simulator found."""
    return replace(
        certificate,
        simulated_s=timeline.pass_ns / 1e9,
        first_pass_s=timeline.first_pass_ns / 1e9,
        slowed_s=timeline.slowed_ns / 1e9,
    )
