"""What a checker finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong: a short kind for programs, a sentence with the numbers for people."""

    kind: str
    message: str
