"""The caches of the processor that this runs on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .errors import InputError
from .sizes import parse_size

# Taken where the system does not tell, as in some virtual machines: the second-level cache of common server cores.
_UNKNOWN = 1 << 20


@cache
def cache_nbytes(level: int) -> int:
    """Bytes of the first processor's data cache of `level`; of the largest one below where there is none of that."""
    indexes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    found = [entry for entry in map(_data_cache, indexes) if entry is not None]
    return max((nbytes for at, nbytes in found if at <= level), default=_UNKNOWN)


def _data_cache(index: Path) -> tuple[int, int] | None:
    """(level, bytes) of a cache that holds data; None for another and for a half filled entry."""
    try:
        if (index / "type").read_text().strip() == "Instruction":
            return None
        return int((index / "level").read_text()), parse_size((index / "size").read_text().strip() + "iB")
    except (OSError, ValueError, InputError):
        return None
