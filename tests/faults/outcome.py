"""What came of a fault, and the registry of faults: tests run each kind once or twice, the table many times."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults.cases import unclear_of


@dataclass(frozen=True, slots=True)
class Outcome:
    """`fired` tells whether the fault took place: a try in which it did not shows nothing.

    `wrong_bits`: an answer was given, and it was wrong. `lost_data`: a file of the user's, or a whole store, is not as
    it was, or the next start does not work. `unclear`: an error that is none of ours, or says too little; else ''.
    """

    fired: bool
    wrong_bits: bool = False
    lost_data: bool = False
    unclear: str = ""
    said: str = ""

    @property
    def clean(self) -> bool:
        """Whether the fault came and did no harm."""
        return self.fired and not (self.wrong_bits or self.lost_data or self.unclear)


class SkippedFaultError(Exception):
    """This box cannot produce the fault; the message says why."""


Fault = Callable[[Path, np.random.Generator], Outcome]

FAULTS: dict[str, Fault] = {}
"""Every kind of fault by name, in the order of the table."""
COSTLY: set[str] = set()
"""Kinds that take a second or more a try: processes of their own."""


def fault(kind: str, *, costly: bool = False) -> Callable[[Fault], Fault]:
    """Decorator: make a fault known by its kind. It is given an empty folder and what to choose by."""

    def register(function: Fault) -> Fault:
        if kind in FAULTS:
            raise ValueError(f"the fault '{kind}' is registered twice")
        FAULTS[kind] = function
        if costly:
            COSTLY.add(kind)
        return function

    return register


def try_fault(kind: str, folder: Path, seed: int) -> Outcome:
    """One try. What a fault lets through, an exception that nobody expected, counts as unclear."""
    try:
        return FAULTS[kind](folder, np.random.default_rng([seed, *kind.encode()]))
    except SkippedFaultError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the fault has brought
        return Outcome(fired=True, unclear=unclear_of(error) or "not caught", said=traceback.format_exc(limit=-8))
