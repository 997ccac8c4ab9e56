"""Colours and units in which all pictures are drawn."""

from __future__ import annotations

COLORS = {
    "weight, stays": "#0072B2",
    "weight, comes and goes": "#E69F00",
    "activation": "#009E73",
    "optimizer state": "#CC79A7",
    "gradient": "#D55E00",
    "input or output": "#999999",
    "computes": "#0072B2",
    "loads": "#E69F00",
    "stores": "#CC79A7",
    "copies": "#009E73",
    "waits": "#D55E00",
}
"""After Okabe and Ito: told apart by colour-blind people as well."""

COLUMNS, ROWS = 1500, 600
"""What is shorter than this share of the pass, or of the addresses, is joined to its neighbours where there is too
much to draw: a screen has as many points."""

Scale = tuple[float, str]


def seconds_scale(pass_ns: int) -> Scale:
    """Nanoseconds of the unit in which times of a pass are best read, and its name."""
    for scale, name in ((1e9, "s"), (1e6, "ms")):
        if pass_ns >= scale:
            return scale, name
    return 1e3, "us"


def bytes_scale(nbytes: int) -> Scale:
    """The same for bytes."""
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            return float(1024**power), name
    return 1.0, "bytes"
