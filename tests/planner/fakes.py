"""Strategies that go wrong in every way, and one that orders operators its own way. Workers import them from here."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tensorstow.ir.errors import NotApplicableError
from tensorstow.ir.plan import Plan
from tensorstow.planner.baselines import OnDemand
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.strategies import Effort


@dataclass(frozen=True, slots=True)
class Raises:
    """Has a bug."""

    name: ClassVar[str] = "raises"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """Divides by zero."""
        raise ZeroDivisionError(f"{effort.seed} divided by nothing")


@dataclass(frozen=True, slots=True)
class Dies:
    """A solver with a fault in native code."""

    name: ClassVar[str] = "dies"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """Reads address 0, after it has said something on both streams."""
        os.write(1, b"printed by a solver\n")
        os.write(2, b"free(): invalid pointer\n")
        ctypes.string_at(0)
        raise AssertionError("not reached")


@dataclass(frozen=True, slots=True)
class Hangs:
    """Does not look at the clock, and has a child that does not either."""

    name: ClassVar[str] = "hangs"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """Says who the child is, and sleeps."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        path = Path(os.environ["TENSORSTOW_TEST_CHILD"])
        path.with_suffix(".new").write_text(str(child.pid))
        path.with_suffix(".new").rename(path)
        time.sleep(600)
        raise AssertionError("not reached")


@dataclass(frozen=True, slots=True)
class Hungry:
    """Wants more memory than it may have."""

    name: ClassVar[str] = "hungry"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """Asks for 64 MiB at a time."""
        held = [bytearray(1 << 26) for _ in range(1 << 14)]
        raise AssertionError(f"got {len(held)} times 64 MiB")


@dataclass(frozen=True, slots=True)
class Killed:
    """Is killed from outside, as by a system without memory."""

    name: ClassVar[str] = "killed"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """Ends itself as the kernel would."""
        os.kill(os.getpid(), 9)
        raise AssertionError("not reached")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Is made for other graphs."""

    name: ClassVar[str] = "elsewhere"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """Says so."""
        raise NotApplicableError(f"'{instance.graph.name}' has no experts; use another strategy")


@dataclass(frozen=True, slots=True)
class Backwards:
    """On demand, with the two operators before the last in the other order."""

    name: ClassVar[str] = "backwards"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the other order."""
        *first, a, b, last = instance.order
        order = (*first, b, a, last)
        other = make_instance(instance.graph, instance.machine, mode=instance.mode, order=order)
        return OnDemand().plan(other, effort)


@dataclass(frozen=True, slots=True)
class Lucky:
    """Succeeds with even seeds only."""

    name: ClassVar[str] = "lucky"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """On demand, or a bug."""
        if effort.seed % 2:
            raise NotApplicableError(f"seed {effort.seed} is odd")
        return OnDemand().plan(instance, effort)
