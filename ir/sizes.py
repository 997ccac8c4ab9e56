"""Numbers of bytes and of seconds as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import InputError

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}{suffix}": 1000 ** (i + 1) for i, letter in enumerate("kmgtp") for suffix in ("", "b")},
    **{f"{letter}ib": 1024 ** (i + 1) for i, letter in enumerate("kmgtp")},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of '64MiB', '24GB', '1.5GiB', '4096'. kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024.

    Raises InputError for what is no size, for a fraction of a byte, and for zero.
    """
    found = _SIZE.fullmatch(text)
    if found is None or found[2].lower() not in _UNITS:
        raise InputError(f"'{text}' is not a size; write it like 64MiB, 24GB, 1.5GiB or as plain bytes, 67108864")
    nbytes = Decimal(found[1]) * _UNITS[found[2].lower()]
    if nbytes != int(nbytes):
        raise InputError(f"'{text}' is {nbytes.normalize():f} bytes; a size is a whole number of bytes")
    if not nbytes:
        raise InputError(f"'{text}' is no size to plan with; give at least one byte")
    return int(nbytes)


def format_size(nbytes: int) -> str:
    """'412.0 MiB': one decimal in the largest unit of 1024 that leaves a number of at least one; whole bytes below."""
    size, unit = float(abs(nbytes)), 0
    names = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    # 1023.95 of a unit would print as 1024.0: that is 1.0 of the next.
    while unit + 1 < len(names) and size >= (1024 if unit == 0 else 1023.95):
        size, unit = size / 1024, unit + 1
    sign = "-" if nbytes < 0 else ""
    return f"{sign}{size:.0f} {'byte' if size == 1 else 'bytes'}" if unit == 0 else f"{sign}{size:.1f} {names[unit]}"


def format_seconds(value: float) -> str:
    """'12.3 ms', '1.84 s': three figures."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value / scale < 100 else f"{value / scale:.0f} {unit}"
    return "0 s" if value == 0 else f"{value * 1e9:.0f} ns"
