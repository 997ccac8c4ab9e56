"""The store of a plan that places nothing with a home."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from ...ir.errors import PlanMismatchError
from ..directio import BOUNCE_NBYTES, never
from ..reading import Entry


class NoStore:
    """A weight reader that has no weights."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Nothing."""
        return MappingProxyType({})

    def read(
        self,
        blob: str,
        start: int,
        target: memoryview,
        *,
        chunk: int = BOUNCE_NBYTES,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Refused: PlanMismatchError."""
        raise PlanMismatchError(f"the plan reads blob '{blob}', and there is no store; plan again")

    def read_rows(self, blob: str, start: int, target: memoryview) -> None:
        """Refused: PlanMismatchError."""
        self.read(blob, start, target)

    @contextmanager
    def unchecked(self) -> Generator[None]:
        """There is nothing to check."""
        yield

    def close(self) -> None:
        """There is nothing to close."""
